"""The demo's corpus and what it prints; the demo itself is run end to end by `make demo`."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from demo.run import BROKEN, HEARD, banner, command, reject_table, shell_lines, utterance_table, verdict
from demo.table import Column, bar, cells, clean, cut, render
from pipeline import MAX_SEGMENT_S, SAMPLING_RATE
from pipeline.audio.decode import decode
from pipeline.audio.segmentation import Cuts
from pipeline.audio.segmentation import cut as cut_by_voice
from pipeline.errors import RejectedRow
from pipeline.schema import EMOTIONS
from tools.demo_models import demo_corpus
from tools.demo_models.acting import VARIANTS
from tools.demo_models.grammar import split_of

CORPUS = Path(__file__).parents[1] / "demo" / "corpus"
LINES = (CORPUS / "manifest.jsonl").read_text(encoding="utf-8").splitlines()


def parsed(line: str) -> dict | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


ROWS = [row for row in map(parsed, LINES) if row is not None]
SOUND = [row for row in ROWS if not row["id"].startswith(BROKEN)]


def decoded(row: dict):
    content = (CORPUS / row["audio"]).read_bytes()
    return decode(content, offset_s=row.get("offset", 0.0), duration_s=row.get("duration"), channel=row.get("channel"))


@pytest.mark.parametrize("row", SOUND, ids=lambda row: row["id"])
def test_sound_rows_decode(row):
    """Fails when a recording of the demo would be rejected, as it would be after a change of a container check."""
    assert len(decoded(row)) > SAMPLING_RATE


def test_broken_rows_are_broken_for_different_reasons():
    """Fails when a row meant to show a reject would be annotated."""
    reasons = []
    for row in ROWS:
        if row["id"].startswith(BROKEN) and row["id"] != "broken-same-id":
            with pytest.raises((RejectedRow, FileNotFoundError)) as caught:
                decoded(row)
            reasons.append(getattr(caught.value, "reason", "NOT_FOUND"))
    assert sorted(reasons) == ["EMPTY", "NOT_AUDIO", "NOT_FOUND", "TOO_SHORT", "TRUNCATED"]
    clashing = [row for row in ROWS if row["id"] == "broken-same-id"]
    assert len(clashing) == 2
    assert clashing[0] != clashing[1]
    assert [BROKEN in line for line in LINES if parsed(line) is None] == [True]


def test_corpus_shows_what_it_should():
    """Fails when the corpus outgrows the repository, or loses a case that the demo is there to show."""
    files = [file for file in CORPUS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2_500_000
    assert {row["language"] for row in SOUND} == {"en", "es"}
    assert len({row["id"] for row in SOUND}) == len(SOUND) >= 20
    assert {Path(row["audio"]).suffix for row in SOUND} == {".wav", ".flac", ".mp3", ".opus", ".m4a"}
    assert {row.get("label") for row in SOUND} == {*EMOTIONS, None}
    assert {"text" in row for row in SOUND} == {True, False}
    assert {row.get("channel") for row in SOUND} == {None, 0, 1}
    assert {row["audio"] for row in ROWS} | {"manifest.jsonl"} == {str(file.relative_to(CORPUS)) for file in files} | {
        "audio/broken-never-recorded.wav"
    }


def test_nobody_was_trained_on_the_demo():
    """Fails when the demo shows what its models learnt by heart."""
    assert {split_of(text) for text in demo_corpus.sentences()} == {"test"}
    people = {value for value in vars(demo_corpus).values() if isinstance(value, demo_corpus.Person)}
    assert {person.speaker.voice.partition("+")[2] for person in people} <= set(VARIANTS["test"])


def test_verdict_counts_what_is_wrong():
    """Fails when the demo praises models that heard other words or emotions."""
    rows = [
        {
            "recording_id": "a",
            "start_s": 0.0,
            "text": "the key",
            "reference": "The key!",
            "emotion": "joy",
            "manifest_label": "joy",
        },
        {
            "recording_id": "b",
            "start_s": 9.0,
            "text": "is red",
            "reference": "Is it red?",
            "emotion": "joy",
            "manifest_label": None,
        },
        {
            "recording_id": "c",
            "start_s": 0.0,
            "text": "x",
            "reference": None,
            "emotion": "joy",
            "manifest_label": "fear",
        },
    ]
    assert verdict(pa.Table.from_pylist(rows)) == "1 of 2 acted emotions recognised; 20 % of 5 words transcribed wrong."


def test_meeting_is_cut_by_voice_activity():
    """Fails when the long recording no longer shows how one row becomes several utterances."""
    (row,) = [row for row in SOUND if row["id"] == "meeting"]
    waveform = decoded(row)
    assert len(waveform) > MAX_SEGMENT_S * SAMPLING_RATE
    assert len(cut_by_voice(waveform, Cuts(segmentation="auto"), has_text=False)) >= 6


def utterances() -> pa.Table:
    """Made up: a long text, a wide script, an empty text heard, a hostile one, two parts of one file."""
    scores = dict.fromkeys(EMOTIONS, 0.1) | {"joy": 0.4}
    common = {"channel": None, "start_s": 0.0, "text_source": "manifest", "emotion": "joy", "confidence": 0.4}
    rows = [
        {"audio": "/d/long.wav", "speaker": "Inés", "text": "¡Quítelo de ahí! " * 30},
        {"audio": "/d/wide.wav", "speaker": "山田太郎", "text": "電話をかけてください。" * 9},
        {"audio": "/d/empty.wav", "speaker": None, "text": "", "text_source": "asr"},
        {"audio": "/d/untold.wav", "speaker": "Ada", "text": None, "text_source": "none"},
        {"audio": "/d/hostile.wav", "speaker": "Ada", "text": "a\x1b[2J\nb\u202ec", "channel": 1},
        {"audio": "/d/call.wav", "speaker": "Ada", "text": "one", "start_s": 7.25},
        {"audio": "/d/call.wav", "speaker": "Ada", "text": "zero"},
    ]
    missing = {**scores, "surprise": None}
    return pa.Table.from_pylist(
        [{**common, **row, "scores": missing if row["speaker"] == "Inés" else scores} for row in rows]
    )


@pytest.mark.parametrize("width", [60, 80, 140])
def test_tables_keep_to_the_terminal(width):
    """Fails when a line is wider than the terminal, which then wraps it and spoils the table."""
    rejects = pa.table(
        {
            "line": [2, 1],
            "audio": [None, "/d/é" + "x" * 90 + ".wav"],
            "speaker": [None, "Inés"],
            "reason": ["MALFORMED", "UNSUPPORTED_LANGUAGE"],
            "detail": ["not JSON", "no emotion model is known for this language; " * 4],
        }
    )
    lines = [*utterance_table(utterances(), width), *reject_table(rejects, width), *banner(width)]
    assert max(map(cells, lines)) <= width
    assert all(line.isprintable() for line in lines)


def test_utterance_table_says_where_text_is_from():
    """Fails when what a recogniser wrote looks like the manifest's text, or parts of a file cannot be told apart."""
    lines = utterance_table(utterances(), 100)
    by_file = {line.split("  ")[0]: line for line in lines}
    assert f"{HEARD} (no speech)" in by_file["empty.wav"]
    assert "(no text)" in by_file["untold.wav"]
    assert HEARD not in by_file["long.wav"]
    assert "…" in by_file["long.wav"]
    assert "a [2J bc" in by_file["hostile.wav ch 1"]
    assert [file for file in by_file if file.startswith("call")] == ["call.wav 0.0s", "call.wav 7.2s"]
    assert "0.40 ██▍" in by_file["call.wav 0.0s"]


def test_long_reasons_are_wrapped_not_cut():
    """Fails when a reject's sentence is cut before it says what to do."""
    lines = render([Column("a"), Column("b", least=10, wrap=True)], [["1", "one two three four five six seven"]], 20)
    assert " ".join(" ".join(line[3:].split()) for line in lines[2:]) == "one two three four five six seven"


def test_text_measures():
    """Fails when wide, combining or control characters shift the columns."""
    assert (cells("Inés"), cells("Ine\u0301s"), cells("山田")) == (4, 4, 4)
    assert (cut("山田太郎", 5), cut("abc", 3), cut("abcd", 3), cut("abc", 0)) == ("山田…", "abc", "ab…", "")
    assert (bar(0, 4), bar(0.5, 4), bar(1, 4), bar(2, 4)) == ("    ", "██  ", "████", "████")
    assert clean("a\tb\r\n\x9b1m") == "a b   1m"


def test_printed_command_can_be_pasted():
    """Fails when the shown command is not the one that is run."""
    words = command("out dir", ["--asr-model", "x"])
    assert shell_lines(words).replace("\\\n", "").split() == [
        *words[:3], "--manifest", "demo/corpus/manifest.jsonl", "--output", "'out", "dir'", "--asr-model", "x"
    ]  # fmt: skip
