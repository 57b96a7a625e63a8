"""The manifest columns we read: what each may hold, and what a row without one gets."""

from __future__ import annotations

import itertools
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, Reason
from tests.support.cases import case
from tests.support.manifests import jsonl, put, read

GOOD_FIELDS = [
    # column, JSON value, row column, value
    ("id", 12345678901234567890123, "recording_id", "12345678901234567890123"),
    ("offset", 0, "offset_s", 0.0),
    ("offset", 1e-7, "offset_s", 1e-7),
    ("duration", 3, "duration_s", 3.0),
    ("duration", 0, "duration_s", None),
    ("duration", 0.0, "duration_s", None),
    ("duration", 2**60, "duration_s", float(2**60)),
    ("channel", 1, "channel", 1),
    ("channel", 1.0, "channel", 1),
    ("channel", None, "channel", None),
    ("language", "es", "language", "es"),
    ("language", "es_MX", "language", "es-MX"),
    ("language", "zh-Hant-TW", "language", "zh-Hant-TW"),
    ("language", "", "language", None),
    ("language", " en ", "language", "en"),
    ("text", "", "text", ""),
    ("text", None, "text", None),
    ("Text", "upper", "text", "upper"),
    ("DURATION", 2, "duration_s", 2.0),
]
BAD_FIELDS = [
    ("id", 1.5), ("id", True), ("id", ["a"]), ("id", ""), ("id", "a\0"), ("id", "x" * 4097), ("id", "é" * 2049),
    ("offset", -1), ("offset", "1.5"), ("offset", True), ("offset", [1]), ("offset", 10**400),
    ("duration", -0.5), ("duration", "3"), ("duration", False),
    ("channel", -1), ("channel", 0.5), ("channel", "0"), ("channel", 2**31), ("channel", True),
    ("language", "es mx"), ("language", "x" * 36), ("language", 5), ("language", "español"), ("language", "-es"),
    ("text", 5), ("text", ["a"]), ("text", {"a": "b"}),
    ("audio", ""), ("audio", "  "), ("audio", "a\0.wav"), ("audio", "a\n.wav"), ("audio", 5), ("audio", None),
    ("audio", {}),
]  # fmt: skip


def test_good_fields(tmp_path) -> None:
    """Fails if a value a column may hold is rejected or changed."""
    for column, value, out, expected in GOOD_FIELDS:
        with case(column, value, out, expected):
            rows, rejects = read(jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", column: value}))
            assert (rows[out].to_pylist(), rejects) == ([expected], [])


def test_bad_fields(tmp_path) -> None:
    """Fails if a value a column cannot hold is accepted, or takes its neighbours along."""
    good = {"id": "good", "audio": "a.wav", "text": "t", "language": "es", "offset": 1, "duration": 1, "channel": 0}
    for column, value in BAD_FIELDS:
        with case(column, value):
            rows, rejects = read(
                jsonl(tmp_path / "m.jsonl", good, good | {"id": "bad", column: value}, good | {"id": "good"})
            )
            assert rows["line"].to_pylist() == [1, 3]
            assert [(r.line, r.cause.reason, r.recording_id) for r in rejects] == [
                (2, Reason.BAD_FIELD, None if column == "id" else "bad")
            ]
            assert column in rejects[0].cause.detail


CSV_NUMBERS = [
    ("1", True),
    (" 2 ", True),
    ("1.0", True),
    ("1e1", True),
    ("+3", True),
    ("", True),
    ("nan", False),
    ("inf", False),
    ("1_0", False),
    ("-1", False),
    ("1e999", False),
    ("0x10", False),
    ("١", False),
    ("1,5", False),
    ("x", False),
]


def test_csv_numbers(tmp_path) -> None:
    """Fails if Python's own idea of a number (`nan`, `1_0`, other digits) passes, alone or in a column of good ones."""
    for column, (cell, good) in itertools.product(["offset", "duration", "channel"], CSV_NUMBERS):
        with case(column, cell, good):
            rows, rejects = read(put(tmp_path / "m.csv", f'audio,{column}\na.wav,1\nb.wav,"{cell}"\nc.wav,2\n'))
            assert ([r.line for r in rejects], rows.num_rows) == (([], 3) if good else ([3], 2))


def test_bad_field_details_do_not_quote_transcripts_or_secrets(tmp_path) -> None:
    """Fails if a detail holds a transcript or the query of a pre-signed URL."""
    rows = [
        {"audio": "http://h/a\n.wav?X-Sig=CANARY"}, {"audio": "ftp://h/a.wav?X-Sig=CANARY"},
        {"audio": "x.wav", "text": ["CANARY"]},
        {"audio": "http://h/..%2f?CANARY"}, {"audio": "x.wav", "offset": "CANARY"}, {"audio": {"CANARY": 1}},
    ]  # fmt: skip
    _, rejects = read(jsonl(tmp_path / "m.jsonl", *rows))
    assert len(rejects) == len(rows)
    assert not [reject.cause.detail for reject in rejects if "CANARY" in reject.cause.detail]


def test_not_allowed_audio_is_a_reject(tmp_path) -> None:
    """Fails if what may never be opened stops the reading, or is accepted as a file name."""
    rows, rejects = read(jsonl(tmp_path / "m.jsonl", {"audio": "concat:/etc/passwd", "id": "x"}, {"audio": "a.wav"}))
    assert rows["audio"].to_pylist() == [str(tmp_path / "a.wav")]
    assert [(r.line, r.cause.reason, r.recording_id, r.audio) for r in rejects] == [
        (1, Reason.NOT_ALLOWED, "x", "concat:/etc/passwd")
    ]


def test_audio_aliases(tmp_path) -> None:
    """Fails if an alias is not read, the wrong one wins, or the unused one is lost."""
    rows, rejects = read(
        jsonl(
            tmp_path / "m.jsonl",
            {"path": "p.wav"},
            {"audio": "a.wav", "path": "p.wav", "uri": "u"},
            {"audio": None, "audio_filepath": "f.wav", "path": "p.wav"},
            {"audio": "", "uri": "u.wav"},
        )
    )
    assert not rejects
    assert [Path(audio).name for audio in rows["audio"].to_pylist()] == ["p.wav", "a.wav", "f.wav", "u.wav"]
    assert rows["path"].to_pylist() == [None, "p.wav", "p.wav", None]
    assert rows["uri"].to_pylist() == [None, "u", None, None]
    assert "audio_filepath" not in rows.column_names


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_no_audio_column(tmp_path, form) -> None:
    """Fails if a manifest whose audio column is misspelt becomes a million rejects instead of one sentence."""
    path = tmp_path / f"m.{form}"
    if form == "jsonl":
        jsonl(path, {"audoi": "a.wav", "text": "t"})
    elif form == "csv":
        put(path, "audoi,text\na.wav,t\n")
    else:
        pq.write_table(pa.table({"audoi": ["a.wav"], "text": ["t"]}), path)
    with pytest.raises(ConfigError, match="'audoi', 'text'; did you mean 'audio'"):
        read(path)
    rows, rejects = read(path, audio_optional=True)
    assert (rows["audio"].to_pylist(), rows["text"].to_pylist(), rejects) == ([None], ["t"], [])


def test_audio_optional_needs_text(tmp_path) -> None:
    """Fails if a row with neither audio nor text is planned, or without the option one without audio."""
    path = jsonl(tmp_path / "m.jsonl", {"audio": "a.wav"}, {"text": "t"}, {"text": ""}, {"x": 1}, {"audio": None})
    assert [r.line for r in read(path)[1]] == [2, 3, 4, 5]
    rows, rejects = read(path, audio_optional=True)
    assert ([r.line for r in rejects], rows["line"].to_pylist()) == ([3, 4, 5], [1, 2])


@pytest.mark.parametrize("separator", ["\x1c", "\x1d", "\x1e", "\x1f", "\x0b", "\x85", "\u00a0", "\u2003"])
def test_odd_spaces_around_a_number_cost_no_more_than_their_row(tmp_path, separator) -> None:
    """Fails if what `strip` takes for a space and `float` does not ends the job with a ValueError, as it did."""
    lines = ["audio,duration", f"a.wav,{separator}1.5", f"b.wav,1.5{separator}", "c.wav,2", f"d.wav,1{separator}5"]
    (tmp_path / "m.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows, rejects = read(tmp_path / "m.csv")
    assert rows["duration_s"].to_pylist() == [1.5, 1.5, 2.0]
    assert [(reject.line, reject.cause.reason) for reject in rejects] == [(5, Reason.BAD_FIELD)]
