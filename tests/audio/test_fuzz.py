"""A small, fixed slice of the fuzzing that `python -m tests.long.fuzz` does at length, and proof that it would notice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import MAX_PEAK
from pipeline.audio.sandbox import Sandbox
from pipeline.errors import Reason
from pipeline.manifest import read
from tests.hostile.stub_decoder import MODULE, stub
from tests.long import fuzz


def test_damaged_audio_costs_itself(tmp_path: Path) -> None:
    """Fails if a damaged file gives anything but a waveform within its bounds or a reason, or changes the next one."""
    report = fuzz.fuzz_audio(400, 7, tmp_path / "kept")
    assert report.violations == []
    assert report.contained == []
    assert report.trials == 400
    assert {"waveform", Reason.TRUNCATED, Reason.DAMAGED, Reason.NOT_AUDIO} <= report.outcomes.keys()
    assert report.slowest_s < 20


def test_damaged_manifest_lines_cost_themselves(tmp_path: Path) -> None:
    """Fails if a line is lost, counts twice, escapes as an exception, or changes a good line beside it."""
    report = fuzz.fuzz_manifest(8_000, 7, tmp_path / "kept")
    assert report.violations == []
    assert report.trials == 8_000
    assert {"row", Reason.MALFORMED, Reason.BAD_FIELD} <= report.outcomes.keys()


def test_a_mutant_follows_from_its_seed() -> None:
    """Fails if a violation could not be seen again from its number."""
    whole = list(fuzz.audio_mutants(3, 0, 30))
    assert whole[20:] == list(fuzz.audio_mutants(3, 20, 10))
    assert len({content for _, content, _ in whole}) == 30


@pytest.mark.parametrize(("waveform", "said"), [
    (np.full(1000, np.nan, np.float32), "peak nan"), (np.full(1000, MAX_PEAK + 1, np.float32), "peak 5"),
    (np.zeros(559, np.float32), "float32 (559,)"), (np.zeros(1000), "float64 (1000,)"),
])  # fmt: skip
def test_a_wrong_waveform_is_a_violation(tmp_path, monkeypatch, waveform, said) -> None:
    """Fails if the fuzzing passes whatever comes out of the decoder."""
    good = Sandbox.decode
    monkeypatch.setattr(
        Sandbox, "decode", lambda self, content, **options: waveform if options else good(self, content)
    )
    report = fuzz.fuzz_audio(1, 1, tmp_path)
    assert len(report.violations) == 1
    assert said in report.violations[0]
    (kept,) = tmp_path.iterdir()
    assert kept.read_bytes() == next(iter(fuzz.audio_mutants(1, 0, 1)))[1]


@pytest.mark.parametrize(("act", "outcome"), [("segfault", Reason.DECODER_CRASH), ("unforeseen", Reason.INTERNAL)])
def test_a_crash_is_told_from_a_bug_of_ours(tmp_path, monkeypatch, act, outcome) -> None:
    """Fails if a crash is not listed, or an exception nobody foresaw is no violation."""
    monkeypatch.setattr(fuzz, "Sandbox", lambda: Sandbox(MODULE))
    monkeypatch.setattr(fuzz, "audio_mutants", lambda *_: [("it", stub(act), {})])
    report = fuzz.fuzz_audio(1, 1, tmp_path)
    assert report.outcomes[outcome] == 1
    assert len(report.contained) == (act == "segfault")
    assert len(report.violations) == (act == "unforeseen")


def test_a_lost_line_is_a_violation(tmp_path, monkeypatch) -> None:
    """Fails if the fuzzing does not count lines, or does not compare the good ones."""
    real = read.read_manifest

    def losing(uri, **options):
        for chunk in real(uri, **options):
            chunk.rejects.pop()
            yield read.ManifestChunk(chunk.rows.slice(1), chunk.rejects, chunk.manifest)

    monkeypatch.setattr(fuzz, "read_manifest", losing)
    assert any("is lost" in what for what in fuzz.fuzz_manifest(1000, 1, tmp_path).violations)


def test_the_command_line_writes_its_report(tmp_path, capsys) -> None:
    """Fails if figures for the documentation would have to be copied by hand."""
    arguments = ["manifest", "--count", "500", "--seed", "5", "--json", str(tmp_path / "r.json")]
    assert fuzz.main(arguments) == 0
    report = json.loads((tmp_path / "r.json").read_text())
    assert report == json.loads(capsys.readouterr().out)
    assert (report["trials"], report["seed"], report["violations"]) == (500, 5, [])
