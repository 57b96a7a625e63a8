"""An utterance that kills its process costs itself, after a stated number of attempts, and nobody else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo.models import options
from pipeline.annotate import prepare, recognise
from pipeline.attempts import MOST_DEATHS, Ledger, LedgerWatch
from tests.corpus import ROOT, annotate, command, rejects, rows, utterances, write_manifest
from tests.lethal_job import LETHAL
from tests.shards import models_of, real_recogniser, work_of
from tests.shards import row as shard_row


def test_the_ledger_remembers_who_was_inside():
    """Fails if a death is charged to another line or step, or an end does not close the account."""
    ledger = Ledger()
    assert ledger.begin("a") is None
    assert ledger.begin("b") is None
    assert ledger.begin("a") == {}
    ledger.enter("a", 3)
    ledger.enter("a", 4)
    assert ledger.begin("a") == {4: 1}
    ledger.enter("a", 4)
    assert ledger.begin("a") == {4: 2}
    ledger.enter("a", 5)
    ledger.end("a")
    assert ledger.begin("a") is None
    assert ledger.begin("b") == {}


class Death(BaseException):
    """Stands for SIGKILL: no guard catches it."""


class Deadly:
    """A recogniser that takes its process along when it meets one text."""

    def __init__(self, real, text: str) -> None:
        self.real, self.text, self.deaths = real, text, 0

    def recognise(self, waveforms, texts):
        if self.text in texts:
            self.deaths += 1
            raise Death
        return self.real.recognise(waveforms, texts)


def test_a_lethal_line_is_found_and_its_neighbours_are_done(tmp_path, checkpoints):
    """Fails if the suspect is somebody else, is tried for ever, or the neighbours' results are not what they would be."""
    records = [shard_row(n, text=LETHAL if n == 2 else f"Words {n}.") for n in range(5)]
    work = work_of(tmp_path, records, models_of(checkpoints, "mean", ["en"]))
    (shard,) = work.plan.shards()
    prepared = prepare(work, shard)
    real = real_recogniser(checkpoints)
    expected = recognise(work, shard, prepared, lambda _: real)
    deadly, watch = Deadly(real, LETHAL), LedgerWatch(Ledger(), "recognise x")
    found = None
    for _ in range(10):
        try:
            found = recognise(work, shard, prepared, lambda _: deadly, watch)
            break
        except Death:
            continue
    assert found is not None
    assert deadly.deaths == MOST_DEATHS + 1
    assert found["reason"].to_pylist() == [None, None, "INTERNAL", None, None]
    assert "died 3 times" in found["detail"][2].as_py()
    assert found["label"].to_pylist()[3:] == expected["label"].to_pylist()[3:]
    for column in ("confidence", "margin"):
        assert found[column].to_pylist()[0] == pytest.approx(expected[column].to_pylist()[0], abs=1e-5)


def test_a_job_outlives_an_utterance_that_kills_its_actor(tmp_path: Path) -> None:
    """Fails if an actor that dies of a row every time takes the shard or the job with it, or the row is not said."""
    records = rows(6)
    records[3]["text"] = LETHAL
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    words = command(manifest, tmp_path / "out", *options(), "--shard-rows", "3", "--emotion-actors", "1")
    words[words.index("jobs.annotate")] = "tests.lethal_job"
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (reject,) = rejects(tmp_path / "out").to_pylist()
    assert (reject["recording_id"], reject["reason"], reject["stage"]) == (records[3]["id"], "INTERNAL", "recognise")
    assert "died 3 times" in reject["detail"]
    annotate(
        write_manifest(tmp_path / "n.jsonl", [r for r in records if r["text"] != LETHAL]), tmp_path / "o2", *options()
    )
    found, expected = utterances(tmp_path / "out"), utterances(tmp_path / "o2")
    assert found["utterance_id"].to_pylist() == expected["utterance_id"].to_pylist()
    assert found["label"].to_pylist() == expected["label"].to_pylist()
    assert found["confidence"].to_pylist() == pytest.approx(expected["confidence"].to_pylist(), abs=1e-5)
