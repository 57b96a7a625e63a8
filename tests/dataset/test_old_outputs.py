"""Outputs written by commit 7d25560 can still be verified, read, resumed and extended."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
import s3fs

from demo.models import options
from pipeline.dataset.plan import load_plans
from pipeline.storage.store import open_store
from tests.support.corpus import ONE_ACTOR, ROOT
from tests.support.s3_server import S3Server
from tests.support.shared_ray import SharedRay

OLD = Path(__file__).parents[1] / "fixtures" / "output_7d25560"
BUCKET = "recordings"
FLAGS = {"labelled": ["--partition-by", "speaker"], "auto": ["--language", "auto"]}
UNFINISHED = ("_runs/000002/_SUCCESS", "_runs/000002/report.json", "rejects/000002.parquet")
"""What a run killed after some of its commits has not written."""


@dataclass(frozen=True)
class Old:
    """One of the stored outputs, copied to an S3 server."""

    kind: str
    files: s3fs.S3FileSystem
    run_job: SharedRay

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/{self.kind}"

    def jobs(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", f"jobs.{name}", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=250, check=False)

    def annotate(self, manifest: str) -> subprocess.CompletedProcess[str]:
        flags = ["--shard-rows", "3", *options(), *FLAGS[self.kind], "--embeddings", "audio", *ONE_ACTOR]
        return self.run_job(f"s3://{BUCKET}/{self.kind}-{manifest}.jsonl", self.uri, *flags)

    def stored(self) -> set[str]:
        return {name.removeprefix(f"{BUCKET}/{self.kind}/") for name in self.files.find(f"{BUCKET}/{self.kind}")}

    def rows(self) -> pa.Table:
        parts = [name for name in self.files.find(f"{BUCKET}/{self.kind}/utterances") if name.endswith(".parquet")]
        return ds.dataset(parts, filesystem=self.files).to_table().sort_by("utterance_id")


@pytest.fixture(scope="module", params=sorted(FLAGS))
def old(request: pytest.FixtureRequest, s3: S3Server, shared_ray: SharedRay) -> Old:
    files = s3.filesystem()
    if not files.exists(BUCKET):
        files.mkdir(BUCKET)
    for night in ("first", "second"):
        manifest = OLD / f"{request.param}-{night}.jsonl"
        files.put_file(str(manifest), f"{BUCKET}/{manifest.name}")
        for line in manifest.read_text(encoding="utf-8").splitlines():
            if (clip := ROOT / "demo/heldout" / _audio(line)).is_file():
                files.put_file(str(clip), f"{BUCKET}/audio/{clip.name}")
    for path in (OLD / request.param).rglob("*"):
        if path.is_file():
            files.put_file(str(path), f"{BUCKET}/{path.relative_to(OLD)}")
    return Old(request.param, files, shared_ray)


def _audio(line: str) -> str:
    try:
        return str(json.loads(line)["audio"])
    except ValueError:
        return "not a line of JSON"


def test_plans_of_an_old_output_read_back_to_the_same_bytes(old: Old) -> None:
    """Fails if a field that a plan has gained since is written, hashed or required where the plan does not have it."""
    plans = [plan for plan in load_plans(open_store(old.uri)) if plan.plan <= "000002"]  # another test adds a night
    assert len(plans) == 2
    for plan in plans:
        stored = json.loads((OLD / old.kind / "_runs" / plan.plan / "plan.json").read_text(encoding="utf-8"))
        assert json.loads(json.dumps(plan.document())) == stored
        receipts = {p.name for p in (OLD / old.kind).rglob(f"{plan.plan}-*.parquet")}
        assert len(receipts) == plan.num_shards
        assert replace(plan).config_hash == plan.config_hash


def test_an_old_output_is_sound_and_gains_no_column(old: Old) -> None:
    """Fails if the audit demands of an old output what only new ones have."""
    audit = old.jobs("verify", old.uri, "--deep")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_an_old_output_resumes_and_grows(old: Old) -> None:
    """Fails if a new version refuses an old output's settings, changes its columns or its values, or repeats its rows."""
    before = old.rows()
    parts = sorted(
        key for key in old.stored() if key.startswith("utterances/") and "/000002-" in f"/{key.rpartition('/')[2]}"
    )
    removed = [*UNFINISHED, *parts[:2]]
    for key in removed:
        old.files.rm_file(f"{BUCKET}/{old.kind}/{key}")
    lines = (OLD / f"{old.kind}-first.jsonl").read_text(encoding="utf-8").splitlines()[:2]
    third = [json.dumps({**json.loads(line), "id": f"third-{n}"}) for n, line in enumerate(lines)]
    old.files.pipe(f"{BUCKET}/{old.kind}-third.jsonl", "\n".join(third).encode())

    old.annotate("third")
    assert set(removed) <= old.stored()
    audit = old.jobs("verify", old.uri, "--deep")
    assert audit.returncode == 0, audit.stdout + audit.stderr

    after = old.rows()
    assert after.schema.equals(before.schema)
    again = after.filter(pc.is_in(after["utterance_id"], before["utterance_id"]))
    assert after.num_rows == before.num_rows + 2 and again.num_rows == before.num_rows
    exact = [
        name
        for name in before.schema.names
        if name not in ("run_id", "audio_embedding") and not _is_float(before, name)
    ]
    assert again.select(exact).equals(before.select(exact))
    for name in ("confidence", "margin"):
        np.testing.assert_allclose(again[name].to_numpy(), before[name].to_numpy(), atol=1e-5)
    assert "Nothing new" in old.annotate("second").stdout


def _is_float(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return pa.types.is_floating(kind) or (pa.types.is_struct(kind) and name == "scores")
