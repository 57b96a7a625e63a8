"""Kills of the driver and of each role, on disk and on a real S3 server: nothing lost, nothing twice, the same rows."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tests.support.corpus import AUDIO, ONE_ACTOR, command, model_options, rejects, rows, utterances, write_manifest
from tests.support.noop_models import environment, models_of
from tests.support.processes import kill_hard, kill_role, started, wait_until
from tests.support.s3_server import S3Server
from tests.support.shared_ray import SharedRay

GIVEN, HEARD, GONE = 24, 8, 2
SHARDS = ("--shard-rows", "2")


def _records() -> list[dict[str, object]]:
    gone = [{**row, "audio": "/nowhere/at/all.wav"} for row in rows(GONE, prefix="gone")]
    return [*rows(GIVEN), *rows(HEARD, with_text=False, prefix="heard"), *gone]


@pytest.fixture(scope="module")
def options(checkpoints: Path, asr: Path, own_ray: None) -> list[str]:
    return [*model_options(checkpoints, asr), *SHARDS, *ONE_ACTOR]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, options: list[str], shared_ray: SharedRay) -> pa.Table:
    """The rows of a run nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    shared_ray(write_manifest(folder / "m.jsonl", _records()), folder / "out", *options)
    return utterances(folder / "out")


def _same(found: pa.Table, expected: pa.Table) -> None:
    """Every row once, and each as it would have been."""
    assert found["utterance_id"].to_pylist() == expected["utterance_id"].to_pylist()
    assert found.schema == expected.schema
    for name in found.schema.names:
        if pa.types.is_fixed_size_list(found.schema.field(name).type):
            values = [np.stack(table[name].to_pylist()) for table in (found, expected)]
            np.testing.assert_allclose(*values, atol=1e-5)
        elif name != "scores" and not pa.types.is_floating(found.schema.field(name).type):
            assert found[name].to_pylist() == expected[name].to_pylist(), name


def _parts(output: Path) -> int:
    return sum(1 for _ in output.glob("utterances/**/*.parquet"))


def test_an_interrupt_then_a_kill_then_a_resume(
    tmp_path: Path, options: list[str], undisturbed: pa.Table, shared_ray: SharedRay
) -> None:
    """Fails if Ctrl-C is not clean, if a killed driver loses or doubles rows, or if a reader ever sees half a file."""
    manifest, output, log = write_manifest(tmp_path / "m.jsonl", _records()), tmp_path / "out", tmp_path / "log"
    start = command(manifest, output, *options)
    with started(start, log) as process:
        wait_until(lambda: _parts(output) >= 2, process, log)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert "run the same command again" in log.read_text()
    after_interrupt = _parts(output)
    with started(start, log) as process:
        wait_until(lambda: _parts(output) >= after_interrupt + 3, process, log)
        kill_hard(process)
    after_kill = _parts(output)
    assert after_kill < (GIVEN + HEARD + GONE) // 2 + 2
    seen = utterances(output)  # a reader that globs now reads whole files, each row at most once
    assert len(set(seen["utterance_id"].to_pylist())) == seen.num_rows > 0
    shared_ray(manifest, output, *options)
    _same(utterances(output), undisturbed)
    assert rejects(output)["reason"].to_pylist() == ["NOT_FOUND"] * GONE
    assert json.loads((output / "_runs/000001/report.json").read_text())["shards_run"] <= (_parts(output) - after_kill)


def test_a_kill_of_the_driver_on_s3(
    tmp_path: Path, s3: S3Server, options: list[str], undisturbed: pa.Table, shared_ray: SharedRay
) -> None:
    """Fails if the protocol depends on something that only a disk gives, or a bucket's manifest and audio read otherwise."""
    files, home, log = s3.filesystem(), f"{s3.bucket}/{tmp_path.name}", tmp_path / "log"
    records = [{**row, "audio": f"audio/{Path(str(row['audio'])).name}"} for row in _records()]
    for name in {str(row["audio"]) for row in records} - {"audio/all.wav"}:
        files.put(str(AUDIO / Path(name).name), f"{home}/{name}")
    files.put(str(write_manifest(tmp_path / "m.jsonl", records)), f"{home}/m.jsonl")
    manifest, output = f"s3://{home}/m.jsonl", f"s3://{home}/out"
    start = command(manifest, output, *options)

    def parts() -> int:
        return len(files.glob(f"{output}/utterances/**/*.parquet"))

    with started(start, log) as process:
        wait_until(lambda: parts() >= 3, process, log)
        kill_hard(process)
    shared_ray(manifest, output, *options)
    found = (
        ds.dataset(f"{home}/out/utterances", filesystem=files, partitioning="hive").to_table().sort_by("utterance_id")
    )
    assert set(found["audio"].to_pylist()) == {f"s3://{home}/{row['audio']}" for row in records[: GIVEN + HEARD]}
    _same(found.drop_columns(["audio"]), undisturbed.drop_columns(["audio"]))
    refused = ds.dataset(f"{home}/out/rejects", filesystem=files).to_table()
    assert refused["reason"].to_pylist() == ["NOT_FOUND"] * GONE


def test_kills_of_every_role_cost_no_row(tmp_path: Path, options: list[str], undisturbed: pa.Table) -> None:
    """Fails if the death of a transcriber, a recogniser or a task worker ends the job, or changes a row."""
    manifest, log, output = write_manifest(tmp_path / "m.jsonl", _records()), tmp_path / "log", tmp_path / "out"
    killed: list[str] = []

    def try_kill(pid: int, role: str) -> Callable[[], bool]:
        def attempt() -> bool:
            name = kill_role(pid, role)
            if name:
                killed.append(name)
            return name is not None

        return attempt

    two = ("--asr-actors", "2", "--emotion-actors", "2")
    with started(command(manifest, output, *options, *two), log) as process:
        for role in ("prepare_shard", "Transcribe", "Recognise"):
            wait_until(try_kill(process.pid, role), process, log)
            time.sleep(0.5)
        assert process.wait(200) == 0, log.read_text()
    assert [any(role in name for name in killed) for role in ("prepare_shard", "Transcribe", "Recognise")] == [True] * 3
    _same(utterances(output), undisturbed)


@pytest.mark.usefixtures("own_ray")
def test_two_runs_at_once_on_one_output(tmp_path: Path) -> None:
    """Fails if two drivers that plan at the same moment give one id two owners, lose a row, or refuse each other."""
    everything, output = rows(18), tmp_path / "out"
    models, widths = models_of("mean")
    options, armed = [*models, "--language", "en", *SHARDS, *ONE_ACTOR], environment(widths)
    manifests = [
        write_manifest(tmp_path / "a.jsonl", everything[:12]),
        write_manifest(tmp_path / "b.jsonl", everything[6:]),
    ]
    logs = [tmp_path / "a.log", tmp_path / "b.log"]
    with (
        started(command(manifests[0], output, *options), logs[0], armed) as first,
        started(command(manifests[1], output, *options), logs[1], armed) as second,
    ):
        assert [first.wait(200), second.wait(200)] == [0, 0], logs[0].read_text() + logs[1].read_text()
    assert utterances(output)["recording_id"].to_pylist() == [row["id"] for row in everything]
    assert len(list(output.glob("_runs/*/_SUCCESS"))) == len(list(output.glob("_runs/*/plan.json")))
