"""Manifests read by tasks of a cluster: the plan is the one of a single reader."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from pipeline.engine import reading
from pipeline.engine.reading import Reading, _tasks_start
from pipeline.errors import ConfigError
from pipeline.manifest.staging import Staging
from tests.manifest.test_spans import accept, plan_of
from tests.support.manifests import jsonl, put

ROWS = 65_000
"""Four chunks of the usual size."""


def _lines(folder: Path) -> Path:
    """Write rows of which some are bad, some ids come twice, and a column changes its type in the third chunk."""
    rows = []
    for number in range(ROWS):
        row = {
            "id": f"r{number % (ROWS - 50):06}",
            "audio": f"/a/{number % (ROWS - 25)}.wav",
            "text": f"word {number % 7}",
        }
        row["take"] = number if number < 45_000 else f"t{number}"
        rows.append("{" if number % 9_000 == 8_999 else json.dumps(row))
        if number % 7_000 == 0:
            rows.append("")
    return put(folder / "large.jsonl", "\n".join(rows))


@pytest.mark.usefixtures("shared_ray")
def test_tasks_read_what_one_process_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a plan from tasks differs from the sequential one by a byte, or an irregular file, CSV or a small file is lost."""
    monkeypatch.setattr(reading, "RANGE_BYTES", 700_000)
    monkeypatch.setattr(reading, "LARGE_BYTES", 1)
    spelled = [
        {"id": f"s{number}", "audio": "a.wav", "Kind" if number < 20_000 else "kind": 1} for number in range(20_200)
    ]
    manifests = [
        str(path)
        for path in (
            jsonl(tmp_path / "small.jsonl", {"id": "x", "audio": "/a/x.wav", "take": 1.5}),
            _lines(tmp_path),
            put(tmp_path / "m.csv", 'id,audio,note\nc1,/a/c.wav,"two\nlines"\nc2,,\n'),
            jsonl(tmp_path / "spelled.jsonl", *spelled),
        )
    ]
    one = Staging(tmp_path / "one")
    one.read(manifests, accept)
    read = Reading.of(manifests)
    assert read.is_large and _tasks_start()
    read.by_tasks = True
    other = read.stage(partial(Staging, tmp_path / "other"), accept, audio_optional=False)
    assert read.whole == {manifests[3]} and len(other.chunks) == len(one.chunks) > 6
    plans = [plan_of(staging, monkeypatch) for staging in (one, other)]
    assert plans[0] == plans[1] and len(plans[0]) > 2


@pytest.mark.usefixtures("shared_ray")
def test_the_error_of_a_task_is_the_readers(tmp_path: Path) -> None:
    """Fails if a manifest that tasks cannot read ends the job with Ray's error instead of the reader's own sentence."""
    read = Reading([str(tmp_path / "absent.jsonl")], [1], by_tasks=True)
    with pytest.raises(ConfigError, match=r"absent\.jsonl does not exist"):
        read.stage(partial(Staging, tmp_path / "s"), accept, audio_optional=False)


def test_small_manifests_are_read_by_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if Ray is started for a small manifest, or a cluster's nodes are asked for a file of the driver's disk."""
    manifest = str(jsonl(tmp_path / "m.jsonl", {"id": "x", "audio": "/a/x.wav"}))
    assert not Reading.of([manifest]).is_large
    large = Reading([manifest], [reading.LARGE_BYTES])
    assert large.is_large
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert not large.is_large
    assert Reading(["memory://m.jsonl"], [reading.LARGE_BYTES]).is_large
    assert Reading.of([str(tmp_path / "absent")]).sizes == [0]
