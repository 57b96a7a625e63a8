"""A program that runs the Airflow DAG and the Dagster asset against a cluster, with stand-ins for Airflow and Dagster.

It is a process of its own, because Ray reads RAY_AUTH_MODE when it is first imported.

usage: python -m tests.support.orchestrating JSON, an object {corpus, output, models}; prints the results as JSON
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

from tests.support.corpus import ROOT

EXAMPLES = ROOT / "examples"


def main() -> None:
    """Run two nights of the DAG and two materialisations of the asset, the second with a mistyped option."""
    asked = json.loads(sys.argv[1])
    corpus, output, models = asked["corpus"], asked["output"], asked["models"]
    tasks: list[Any] = []
    params = {"corpus": corpus, "output": output, "by": ["language"], "options": models}
    context = {"params": params, "run_id": "scheduled__2026-11-22", "ti": SimpleNamespace(try_number=1)}
    _load(
        "airflow_dag", "airflow.sdk", Param=_anything, dag=_decorator, get_current_context=lambda: context,
        task=lambda *a, **k: _keeping(tasks, *a, **k),
    )  # fmt: skip
    run, summarise = tasks
    nights = [summarise(run()), summarise(run())]  # the same try is joined, not started again
    asset = _load("dagster_asset", "dagster", Config=SimpleNamespace, asset=_decorator, **_DAGSTER)["utterances"]
    dashboard = os.environ["RAY_DASHBOARD"]
    config = SimpleNamespace(dashboard=dashboard, corpus=corpus, output=output, by=["language"], options=models)
    log = SimpleNamespace(info=lambda _: None)
    nothing_new = asset(SimpleNamespace(run_id="1", retry_number=0, log=log), config)
    config.options = ["--modee", "mean"]
    try:
        asset(SimpleNamespace(run_id="1", retry_number=1, log=log), config)
        failure = None
    except RuntimeError as error:
        failure = str(error)
    print(json.dumps({"nights": nights, "new_runs": nothing_new["metadata"]["runs"], "failure": failure}))


def _load(name: str, package: str, **names: Any) -> dict[str, Any]:
    """Execute one of the files with stand-ins for its imports from the orchestrator."""
    module = ModuleType(package)
    vars(module).update(names)
    sys.modules[package.partition(".")[0]] = sys.modules[package] = module
    space: dict[str, Any] = {"__name__": name}
    exec(compile((EXAMPLES / f"{name}.py").read_text(), f"{name}.py", "exec"), space)
    return space


def _decorator(*arguments: Any, **_: Any) -> Any:
    """Leave the decorated function unchanged, used bare or called."""
    if len(arguments) == 1 and callable(arguments[0]) and not isinstance(arguments[0], type):
        return arguments[0]
    return lambda function: function


def _anything(*_: Any, **__: Any) -> None:
    """Stand in for an object that only the orchestrator uses."""


def _keeping(kept: list[Any], *arguments: Any, **options: Any) -> Any:
    """Stand in for Airflow's `task`: keep the function; calling it inside the DAG runs nothing."""
    if not arguments:
        return lambda function: _keeping(kept, function, **options)
    kept.append(arguments[0])
    return lambda *_: None


_DAGSTER = {
    "AssetExecutionContext": SimpleNamespace,
    "Definitions": _anything,
    "MaterializeResult": dict,
    "RetryPolicy": _anything,
    "ScheduleDefinition": _anything,
    "define_asset_job": _anything,
}


if __name__ == "__main__":
    sys.path.insert(0, str(EXAMPLES))
    main()
