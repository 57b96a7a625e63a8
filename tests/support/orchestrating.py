"""The Airflow DAG and the Dagster asset with stand-ins for Airflow and Dagster, and a program that runs both on a cluster.

The program is a process of its own, because Ray reads RAY_AUTH_MODE when it is first imported.

usage: python -m tests.support.orchestrating JSON, an object {corpus, output, models}; prints the results as JSON
"""

from __future__ import annotations

import json
import os
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pydantic

from tests.support.corpus import ROOT

EXAMPLES = ROOT / "examples"
DAY = "2026-11-22"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))  # both files import ray_job, as they do in a DAG folder


class FinalError(Exception):
    """Stand in for AirflowFailException, after which Airflow does not retry."""


class Interrupted(BaseException):
    """Stand in for the error that Dagster raises in a run that a person ends."""


class Failure(Exception):
    """Stand in for Dagster's Failure."""

    def __init__(self, description: str, *, allow_retries: bool) -> None:
        super().__init__(description)
        self.allow_retries = allow_retries


class Operator:
    """Stand in for Airflow's BaseOperator."""

    made: Operator
    dag_id = "speech_emotion"

    def __init__(self, *, retries: int, **_: Any) -> None:
        self.retries, self.output = retries, None
        Operator.made = self


def load_dag() -> tuple[Any, Any]:
    """Execute the DAG file. Returns: its operator and the function of the task after it."""
    tasks: list[Any] = []
    sdk = {"BaseOperator": Operator, "Param": _anything, "dag": _decorator, "task": lambda f: _keeping(tasks, f)}
    _load("airflow_dag", {"airflow.sdk": sdk, "airflow.sdk.exceptions": {"AirflowFailException": FinalError}})
    return Operator.made, tasks[0]


def airflow_context(tries: int = 1, max_tries: int = 3, **params: Any) -> dict[str, Any]:
    """Return the context of a task's try."""
    known = {"by": ["language"], "options": [], "working_dir": None, "timeout_hours": 1}
    instance = SimpleNamespace(try_number=tries, max_tries=max_tries)
    return {"params": {**known, **params}, "run_id": f"scheduled__{DAY}", "ti": instance}


def load_assets() -> dict[str, Any]:
    """Execute the file of the asset. Returns: its names."""
    names = ("AssetCheckExecutionContext", "AssetExecutionContext", "DagsterRun", "DailyPartitionsDefinition", "Definitions",
             "RetryPolicy", "build_schedule_from_partitioned_job", "define_asset_job")  # fmt: skip
    stand_ins = dict.fromkeys(names, _anything) | {
        "AssetCheckResult": SimpleNamespace, "ConfigurableResource": pydantic.BaseModel, "EnvVar": str, "Failure": Failure,
        "DagsterExecutionInterruptedError": Interrupted, "MaterializeResult": dict, "asset": _decorator,
        "asset_check": _decorator,
    }  # fmt: skip
    return _load("dagster_asset", {"dagster": stand_ins})


def dagster_context(run_id: str, root_run_id: str | None = None, lines: list[str] | None = None) -> SimpleNamespace:
    """Return the context of a materialisation or of a check."""
    log = SimpleNamespace(info=lambda line: None if lines is None else lines.append(line))
    return SimpleNamespace(run=SimpleNamespace(run_id=run_id, root_run_id=root_run_id), partition_key=DAY, log=log)


def main() -> None:
    """Run one night of the DAG, ask for it again, and materialise two assets, the second with a mistyped option."""
    request = json.loads(sys.argv[1])
    corpus, output, models = request["corpus"], request["output"], request["models"]
    operator, summarise = load_dag()
    context = airflow_context(corpus=corpus, output=output, options=models)
    nights = [summarise(operator.execute(context)) for _ in range(2)]  # a try that succeeded unseen is not repeated
    names = load_assets()
    cluster = names["Cluster"](dashboard=os.environ["RAY_DASHBOARD"], corpus=corpus, output=output, options=models)
    nothing_new = names["utterances"](dagster_context("1"), cluster)
    try:
        names["utterances"](dagster_context("2"), cluster.model_copy(update={"options": ["--modee", "mean"]}))
        failure = None
    except Failure as error:
        failure = {"message": str(error), "retry": error.allow_retries}
    print(json.dumps({"nights": nights, "new_runs": nothing_new["metadata"]["runs"], "failure": failure}))


def _load(name: str, packages: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Execute one of the files with stand-ins for its imports from the orchestrator."""
    top = next(iter(packages)).partition(".")[0]
    modules = {package: ModuleType(package) for package in (top, *packages)}
    for package, names in packages.items():
        vars(modules[package]).update(names)
    before = {package: sys.modules.get(package) for package in modules}
    sys.modules.update(modules)
    space: dict[str, Any] = {"__name__": name}
    try:
        exec(compile((EXAMPLES / f"{name}.py").read_text(), f"{name}.py", "exec"), space)
    finally:
        for package, module in before.items():
            if module is None:
                del sys.modules[package]
    return space


def _decorator(*arguments: Any, **_: Any) -> Any:
    """Leave the decorated function unchanged, used bare or called."""
    if len(arguments) == 1 and callable(arguments[0]) and not isinstance(arguments[0], type):
        return arguments[0]
    return lambda function: function


def _anything(*_: Any, **__: Any) -> None:
    """Stand in for an object that only the orchestrator uses."""


def _keeping(kept: list[Any], function: Any) -> Any:
    """Stand in for Airflow's `task`: keep the function; calling it inside the DAG runs nothing."""
    kept.append(function)
    return lambda *_: None


if __name__ == "__main__":
    main()
