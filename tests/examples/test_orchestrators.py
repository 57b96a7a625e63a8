"""The Airflow DAG and the Dagster asset, run against a real Ray cluster and a real S3 server.

Airflow and Dagster are not installed: stand-ins for their decorators return the function. `make test-orchestrators` runs both
files with the real ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import iam
from tests.support.corpus import AUDIO, ONE_ACTOR, ROOT
from tests.support.fault_proxy import fault_proxy
from tests.support.ray_head import head
from tests.support.s3_server import S3Server


@pytest.fixture
def models(s3: S3Server, checkpoints: Path, asr: Path) -> list[str]:
    """Store audio and models below the prefixes of cluster/aws. Returns: the options for the models."""
    filesystem = s3.filesystem()
    for name in ("en_16k_short.wav", "en_22k05.mp3", "en_16k_pcm16.wav"):
        filesystem.put_file(str(AUDIO / name), f"{s3.bucket}/corpus/audio/{name}")
    filesystem.pipe_file(f"{s3.bucket}/corpus/audio/broken.wav", b"no audio at all, whatever the name says")
    folders = {"mean-en": checkpoints / "mean-en", "bert-en": checkpoints / "bert-en", "whisper": asr}
    for name, folder in folders.items():
        for file in folder.iterdir():
            filesystem.put_file(str(file.resolve()), f"{s3.bucket}/models/{name}/{file.name}")
    at = f"s3://{s3.bucket}/models"
    return [
        "--emotion-model",
        f"{at}/mean-en",
        "--sentence-encoder",
        f"{at}/bert-en",
        "--asr-model",
        f"{at}/whisper",
        *ONE_ACTOR,
    ]


def test_they_run_the_job_and_read_its_record_with_no_more_than_their_role_allows(
    tmp_path: Path, s3: S3Server, models: list[str]
) -> None:
    """Fails if the job cannot be submitted, writes no summary or has no report; if a second night repeats work or fails
    because nothing is new; or if the policies in cluster/aws refuse any of its calls to S3."""
    asked = {
        "corpus": f"s3://{s3.bucket}/corpus",
        "output": f"s3://{s3.bucket}/emotions",
        "models": models,
    }
    with fault_proxy(s3.endpoint) as proxy:
        roles = {**s3.environment, "AWS_ENDPOINT_URL": proxy.endpoint, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        with head(tmp_path, 2, environment=roles) as cluster:
            known = {**os.environ, **roles, **cluster.environment, "RAY_DASHBOARD": cluster.dashboard}
            del known["RAY_ADDRESS"]  # Ray would take it for the dashboard's
            done = subprocess.run(
                [sys.executable, "-m", "tests.support.orchestrating", json.dumps(asked)],
                cwd=ROOT, env=known, capture_output=True, text=True, timeout=280, check=False,
            )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        found = json.loads(done.stdout.splitlines()[-1])
        (totals, again), failure = found["nights"], found["failure"]
        assert (totals["rows"], totals["utterances"], totals["rejected"]) == (4, 3, 1) and again == totals
        assert found["new_runs"] == [] and "--mode" in failure["message"] and not failure["retry"]
        assert s3.filesystem().exists(f"{s3.bucket}/emotions/summaries/language/000001.parquet")
        policies = [
            statement
            for name in ("reader", "writer", "output-bucket")
            for statement in iam.statements(ROOT / "cluster" / "aws" / f"{name}.json", s3.bucket)
        ]
        refused = {(r.method, r.path, r.query) for r in proxy.requests if not iam.allowed(policies, r)}
        assert not refused
        assert {iam.asked_for(r)[0] for r in proxy.requests} == {"s3:GetObject", "s3:PutObject", "s3:ListBucket"}
