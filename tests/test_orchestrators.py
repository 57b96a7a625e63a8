"""The Airflow DAG and the Dagster asset: their own code, run against a real Ray cluster and a real S3 server.

Airflow and Dagster are not among the packages of the tests: their decorators are stood in for by ones that hand back the
function. That both files load and run under the real ones is tried by hand; cluster/README.md says with which versions.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests import iam
from tests.corpus import ROOT, rows
from tests.fault_proxy import fault_proxy
from tests.s3_server import S3Server
from tests.test_cluster import head

ORCHESTRATORS = ROOT / "cluster" / "orchestrators"


def _decorator(*arguments: Any, **_: Any) -> Any:
    """Used bare or called: what it decorates is left as it is."""
    if len(arguments) == 1 and callable(arguments[0]) and not isinstance(arguments[0], type):
        return arguments[0]
    return lambda function: function


def _anything(*_: Any, **__: Any) -> None:
    """Stands for what is only made, and used by the orchestrator alone."""


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Executes one of the files with stand-ins for what it imports of its orchestrator."""
    monkeypatch.syspath_prepend(str(ORCHESTRATORS))

    def load(name: str, package: str, **names: Any) -> dict[str, Any]:
        module = ModuleType(package)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, package.partition(".")[0], module)
        monkeypatch.setitem(sys.modules, package, module)
        space: dict[str, Any] = {"__name__": name}
        exec(compile((ORCHESTRATORS / f"{name}.py").read_text(), f"{name}.py", "exec"), space)
        return space

    yield load
    sys.modules.pop("ray_job", None)


@pytest.fixture
def models(s3: S3Server, checkpoints: Path, asr: Path) -> list[str]:
    """Puts a manifest, its audio and models below the prefixes that cluster/aws speaks of; options that name the models."""
    filesystem = s3.filesystem()
    records = rows(3)
    for record in records:
        audio = Path(str(record["audio"]))
        filesystem.put_file(str(audio), f"{s3.bucket}/corpus/audio/{audio.name}")
        record["audio"] = f"audio/{audio.name}"
    lines = "\n".join(json.dumps(record) for record in [*records, {"id": "gone", "audio": "audio/gone.wav"}])
    filesystem.pipe_file(f"{s3.bucket}/corpus/manifest.jsonl", lines.encode())
    folders = {"mean-en": checkpoints / "mean-en", "bert-en": checkpoints / "bert-en", "whisper": asr}
    for name, folder in folders.items():
        for file in folder.iterdir():
            filesystem.put_file(str(file.resolve()), f"{s3.bucket}/models/{name}/{file.name}")
    at = f"s3://{s3.bucket}/models"
    return ["--fusion-model", f"{at}/mean-en", "--sentence-encoder", f"{at}/bert-en", "--asr-model", f"{at}/whisper"]


def test_they_run_the_job_and_read_its_record_with_no_more_than_their_role_allows(
    tmp_path: Path, s3: S3Server, models: list[str], loaded: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fails if the job cannot be submitted, its report is not found, a second night does work again or fails for having none, or
    any call it makes to S3 is one that the policies in cluster/aws refuse.
    """
    manifest, output = f"s3://{s3.bucket}/corpus/manifest.jsonl", f"s3://{s3.bucket}/emotions"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with fault_proxy(s3.endpoint) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with head(tmp_path, 2) as cluster:
            for name, value in cluster.environment.items():
                monkeypatch.setenv(name, value)
            monkeypatch.setenv("RAY_DASHBOARD", cluster.dashboard)
            tasks: list[Any] = []
            params = {"manifest": manifest, "output": output, "options": models}
            context = {"params": params, "run_id": "scheduled__2026-11-22", "ti": SimpleNamespace(try_number=1)}
            loaded(
                "airflow_dag", "airflow.sdk", Param=_anything, dag=_decorator, get_current_context=lambda: context,
                task=lambda *a, **k: _keeping(tasks, *a, **k),
            )  # fmt: skip
            run, summarise = tasks
            totals = summarise(run())
            assert (totals["rows"], totals["utterances"], totals["rejected"]) == (4, 3, 1)
            assert summarise(run()) == totals  # the same try is joined, not started again

            asset = loaded("dagster_asset", "dagster", Config=SimpleNamespace, asset=_decorator, **_DAGSTER)[
                "utterances"
            ]
            config = SimpleNamespace(dashboard=cluster.dashboard, manifest=manifest, output=output, options=models)
            log = SimpleNamespace(info=lambda _: None)
            nothing_new = asset(SimpleNamespace(run_id="1", retry_number=0, log=log), config)
            assert nothing_new["metadata"]["runs"] == []
            config.options = ["--modee", "mean"]
            with pytest.raises(RuntimeError, match="--mode"):
                asset(SimpleNamespace(run_id="1", retry_number=1, log=log), config)
        policies = [
            statement
            for name in ("reader", "writer", "output-bucket")
            for statement in iam.statements(ROOT / "cluster" / "aws" / f"{name}.json", s3.bucket)
        ]
        refused = {(r.method, r.path, r.query) for r in proxy.requests if not iam.allowed(policies, r)}
        assert not refused
        assert {iam.asked_for(r)[0] for r in proxy.requests} == {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}


def _keeping(kept: list[Any], *arguments: Any, **options: Any) -> Any:
    """Stands for Airflow's `task`: the function is kept, and calling it inside the DAG runs nothing."""
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
