"""Manifests: every form, every column, and malformed lines that cost nothing but themselves."""

from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import subprocess
import sys
import time
from decimal import Decimal
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import ConfigError, JobError, Reason
from pipeline.manifest import ManifestChunk, ManifestReject, conform, derived_id, expand, read_manifest, unify
from pipeline.manifest_source import MAX_LINE_BYTES, lines_of
from pipeline.schema import ROW_SCHEMA
from tests.hostile import make_manifests


def read(path: Path | str, **options: object) -> tuple[pa.Table, list[ManifestReject]]:
    """The whole manifest as one table."""
    chunks: list[ManifestChunk] = list(read_manifest(str(path), **options))
    schema = unify(chunk.rows.schema for chunk in chunks)
    tables = [conform(chunk.rows, schema) for chunk in chunks]
    return pa.concat_tables(tables) if tables else ROW_SCHEMA.empty_table(), [r for c in chunks for r in c.rejects]


def put(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def jsonl(path: Path, *rows: object) -> Path:
    return put(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# ------------------------------------------------------------------------------------------- M1: malformed lines


@pytest.mark.parametrize("chunk_rows", [20_000, 1_000])
def test_m1_jsonl(tmp_path, chunk_rows) -> None:
    """Fails if a malformed line costs a neighbour, is not reported with its number, or is taken for a row."""
    lines = list(make_manifests.jsonl(20_000))
    bad = make_manifests.write(tmp_path / "m.jsonl", iter(lines))
    rows, rejects = read(tmp_path / "m.jsonl", chunk_rows=chunk_rows)
    assert [reject.line for reject in rejects] == bad
    assert {reject.reason for reject in rejects} == {Reason.MALFORMED}
    wanted = [(n, json.loads(line)) for n, (line, is_bad) in enumerate(lines, 1) if not is_bad and line.strip()]
    assert rows["line"].to_pylist() == [number for number, _ in wanted]
    for column, name in (("recording_id", "id"), ("text", "text"), ("duration_s", "duration"), ("take", "take")):
        assert rows[column].to_pylist() == [row[name] for _, row in wanted]
    assert all(len(reject.raw) <= 2048 and reject.detail and len(reject.detail) < 300 for reject in rejects)


@pytest.mark.parametrize("way", [*make_manifests.BAD_JSON, *make_manifests.HARMLESS_JSON])
@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_m1_jsonl_each_way(tmp_path, way, place) -> None:
    """Fails if one way of being malformed is missed, or a damaged first line changes what the file is taken for."""
    if (way, place) == ("BOM mid-file", "first"):
        pytest.skip("there it is allowed")
    lines = [json.dumps(make_manifests.good(i)).encode() for i in range(4)]
    number = {"first": 1, "middle": 3, "last": 5}[place]
    make = (make_manifests.BAD_JSON | make_manifests.HARMLESS_JSON)[way]
    lines.insert(number - 1, make(9))
    rows, rejects = read(put(tmp_path / "m.jsonl", b"\n".join(lines)))  # the last line has no newline
    assert [reject.line for reject in rejects] == ([number] if way in make_manifests.BAD_JSON else [])
    assert {f"utt-{i:06d}" for i in range(4)} <= set(rows["recording_id"].to_pylist())


def test_m1_csv(tmp_path) -> None:
    """Fails if an open quote, bad bytes or a wrong number of cells costs more than its own line."""
    bad = make_manifests.write(tmp_path / "m.csv", make_manifests.csv_lines(20_000))
    rows, rejects = read(tmp_path / "m.csv")
    assert [reject.line for reject in rejects] == bad
    assert rows.num_rows == 20_000 - len(bad)
    assert {reject.reason for reject in rejects} == {Reason.MALFORMED, Reason.BAD_FIELD}


def test_csv_open_quote_swallows_nothing(tmp_path) -> None:
    """Fails if a quote left open takes the rest of the file, in silence or not, or reading on is quadratic."""
    lines = ["audio,text", 'bad.wav,"open', *(f"{i}.wav,text {i}" for i in range(100_000))]
    for at in range(1000, 90_000, 1000):
        lines[at] = f'{at}.wav,"open'
    began = time.perf_counter()
    rows, rejects = read(put(tmp_path / "m.csv", "\n".join(lines)))
    assert time.perf_counter() - began < 15
    assert [reject.line for reject in rejects] == [2, *range(1001, 90_001, 1000)]
    assert rows.num_rows == len(lines) - 1 - len(rejects)


def test_csv_multi_line_records(tmp_path) -> None:
    """Fails if line numbers count records instead of lines, or a rejected record leaves rows behind."""
    content = 'audio,text,x\r\na.wav,"one\r\ntwo, ""so""\r\n\r\nfour",1\r\nb.wav,"p\nq",1,2\n\nc.wav,"",\n'
    rows, rejects = read(put(tmp_path / "m.csv", content))
    assert rows["line"].to_pylist() == [2, 9]
    assert rows["text"].to_pylist() == ['one\r\ntwo, "so"\r\n\r\nfour', None]
    assert rows["x"].to_pylist() == ["1", ""]
    assert [(reject.line, reject.reason) for reject in rejects] == [(6, Reason.MALFORMED)]


def test_csv_too_many_cells_hid_a_row(tmp_path) -> None:
    """Fails if a stray quote that closes on a later line takes that line's row with it."""
    rows, rejects = read(put(tmp_path / "m.csv", 'audio,text\na.wav,"x\nb.wav,fine\nc.wav,",y,z\nd.wav,fine\n'))
    assert rows["audio"].to_pylist() == [str(tmp_path / name) for name in ("b.wav", "d.wav")]
    assert [reject.line for reject in rejects] == [2, 4]


def test_over_long_line_is_not_buffered() -> None:
    """Fails if a line without end is collected in memory before it is refused."""
    blocks = (b"x" * (1 << 20) for _ in range(200))
    held = [len(line) for _, lines in lines_of(blocks) for line in lines]
    assert held == [64 << 10]


# ----------------------------------------------------------------------------------------------- M3, M9: content

NASTY_IDS = [
    "007", "1e3", "NaN", "null", "None", "true", "-0", "a/b", "x=y", "%2F", "../x", "é", "e\u0301", "שלום", "\u202eabc",
    "👩‍👩‍👧", " padded ", " ", "new\nline", "cr\rlf\r\n", "tab\t", '"quoted"', "'", ",", ";", "=cmd()", "\ufeff",
    "x" * 1024, "é" * 512, "\u2028",
    "\x85", "\x0b\x0c\x1c", "#0001",
]  # fmt: skip
ids = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(st.lists(ids, min_size=1, max_size=8))
@example(NASTY_IDS)
def test_m3_ids_survive(tmp_path_factory, names) -> None:
    """Fails if an id changes on its way through a form: types guessed, Unicode normalised, lines split at U+2028."""
    folder = tmp_path_factory.mktemp("ids")
    jsonl(folder / "a.jsonl", *({"audio": "a.wav", "id": name} for name in names))
    put(folder / "b.jsonl", "\n".join(json.dumps({"audio": "a.wav", "id": name}) for name in names))
    with (folder / "c.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["audio", "id", "same"], *(["a.wav", name, name] for name in names)])
    pq.write_table(pa.table({"audio": ["a.wav"] * len(names), "id": names}), folder / "d.parquet")
    for path in sorted(folder.iterdir()):
        rows, rejects = read(path)
        assert (rows["recording_id"].to_pylist(), rejects) == (names, []), path.name
        if path.suffix == ".csv":
            assert rows["same"].to_pylist() == names


def test_m9_text_is_kept(tmp_path) -> None:
    """Fails if a transcript is cut at NUL, refused at 1 MB, stripped or unescaped."""
    texts = [
        "a\0b",
        "x" * 1_000_000,
        "</script>",
        "\x01\x1b[0m",
        " padded ",
        "=cmd|' /C calc'!A0",
        "línea\n2",
        "\ufffd",
    ]
    jsonl(tmp_path / "m.jsonl", *({"audio": "a.wav", "text": text} for text in [*texts, ""]))
    assert read(tmp_path / "m.jsonl")[0]["text"].to_pylist() == [*texts, ""]
    with (tmp_path / "m.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["audio", "text"], *(["a.wav", text] for text in [*texts, ""])])
    assert read(tmp_path / "m.csv")[0]["text"].to_pylist() == [*texts, None]
    pq.write_table(pa.table({"audio": ["a.wav"] * len(texts), "text": texts}), tmp_path / "m.parquet")
    assert read(tmp_path / "m.parquet")[0]["text"].to_pylist() == texts


def test_derived_ids() -> None:
    """Fails if the recipe changes: resumed runs would take every row of an older plan for a new one."""
    assert derived_id("s3://b/a.wav", None, None, None) == "rec-b6107465595308eff1ca"
    assert derived_id("s3://b/a.wav", 1, 2.5, 0) == derived_id("s3://b/a.wav", 1.0, 2.5, 0)
    others = [(None, None, None), (0, None, None), (None, 1, None), (1, None, None), (None, None, 0), (None, None, 1)]
    assert len({derived_id("s3://b/a.wav", *parts) for parts in others}) == len(others)
    assert derived_id(None, None, None, None, "one") != derived_id(None, None, None, None, "two")


def test_missing_ids_are_derived(tmp_path) -> None:
    """Fails if an absent, null or empty id is rejected, or a given one replaced."""
    audio = str(tmp_path / "a.wav")
    jsonl(tmp_path / "m.jsonl", {"audio": "a.wav"}, {"audio": "./a.wav", "id": None}, {"audio": "a.wav", "id": 7})
    wanted = derived_id(audio, None, None, None)
    assert read(tmp_path / "m.jsonl")[0]["recording_id"].to_pylist() == [wanted, wanted, "7"]
    put(tmp_path / "m.csv", "id,audio,offset\n,a.wav,1\n7,a.wav,\n")
    assert read(tmp_path / "m.csv")[0]["recording_id"].to_pylist() == [derived_id(audio, 1.0, None, None), "7"]


# ------------------------------------------------------------------------------------------- the columns we read

GOOD_FIELDS = [
    # column, JSON value, row column, value
    ("id", 12345678901234567890123, "recording_id", "12345678901234567890123"),
    ("offset", 0, "offset_s", 0.0),
    ("offset", 1e-7, "offset_s", 1e-7),
    ("duration", 3, "duration_s", 3.0),
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
    ("duration", 0), ("duration", -0.5), ("duration", "3"), ("duration", False),
    ("channel", -1), ("channel", 0.5), ("channel", "0"), ("channel", 2**31), ("channel", True),
    ("language", "es mx"), ("language", "x" * 36), ("language", 5), ("language", "español"), ("language", "-es"),
    ("text", 5), ("text", ["a"]), ("text", {"a": "b"}),
    ("audio", ""), ("audio", "  "), ("audio", "a\0.wav"), ("audio", "a\n.wav"), ("audio", 5), ("audio", None),
    ("audio", {}),
]  # fmt: skip


@pytest.mark.parametrize(("column", "value", "out", "expected"), GOOD_FIELDS)
def test_good_fields(tmp_path, column, value, out, expected) -> None:
    """Fails if a value a column may hold is rejected or changed."""
    rows, rejects = read(jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", column: value}))
    assert (rows[out].to_pylist(), rejects) == ([expected], [])


@pytest.mark.parametrize(("column", "value"), BAD_FIELDS)
def test_bad_fields(tmp_path, column, value) -> None:
    """Fails if a value a column cannot hold is accepted, or takes its neighbours along."""
    good = {"id": "good", "audio": "a.wav", "text": "t", "language": "es", "offset": 1, "duration": 1, "channel": 0}
    rows, rejects = read(jsonl(tmp_path / "m.jsonl", good, good | {"id": "bad", column: value}, good | {"id": "good"}))
    assert rows["line"].to_pylist() == [1, 3]
    assert [(r.line, r.reason, r.recording_id) for r in rejects] == [
        (2, Reason.BAD_FIELD, None if column == "id" else "bad")
    ]
    assert column in rejects[0].detail


@pytest.mark.parametrize("column", ["offset", "duration", "channel"])
@pytest.mark.parametrize(
    ("cell", "good"),
    [("1", True), (" 2 ", True), ("1.0", True), ("1e1", True), ("+3", True), ("", True), ("nan", False), ("inf", False),
     ("1_0", False), ("-1", False), ("1e999", False), ("0x10", False), ("١", False), ("1,5", False), ("x", False)],
)  # fmt: skip
def test_csv_numbers(tmp_path, column, cell, good) -> None:
    """Fails if Python's own idea of a number (`nan`, `1_0`, other digits) passes, alone or in a column of good ones."""
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
    assert not [reject.detail for reject in rejects if "CANARY" in reject.detail]


def test_not_allowed_audio_is_a_reject(tmp_path) -> None:
    """Fails if what may never be opened stops the reading, or is accepted as a file name."""
    rows, rejects = read(jsonl(tmp_path / "m.jsonl", {"audio": "concat:/etc/passwd", "id": "x"}, {"audio": "a.wav"}))
    assert rows["audio"].to_pylist() == [str(tmp_path / "a.wav")]
    assert [(r.line, r.reason, r.recording_id, r.audio) for r in rejects] == [
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


# ------------------------------------------------------------------------------------------------ what a file is


def test_form_by_content(tmp_path) -> None:
    """Fails if the name decides: a CSV called .jsonl, JSON Lines called .csv, Parquet called .txt, gzip without .gz."""
    line = b'{"audio": "a.wav", "id": "1"}\n'
    table = io.BytesIO()
    pq.write_table(pa.table({"audio": ["a.wav"], "id": ["1"]}), table)
    zstd = zstandard.compress
    for name, content in {
        "a.csv": line,
        "b.jsonl": b"audio,id\na.wav,1\n",
        "c.txt": table.getvalue(),
        "d.jsonl": gzip.compress(line),
        "e.jsonl": zstd(line),
        "f.jsonl": b"\xef\xbb\xbf" + line,
        "g.csv": b"\xef\xbb\xbfid\taudio\r\n1\ta.wav\r\n",
        "h.csv": b"id;audio\n1;a.wav\n",
        "i.csv": gzip.compress(b'"id" , "audio"\n"1","a.wav"\n'.replace(b" , ", b",")),
        "j.jsonl": b"\n\n \r\n" + line,
        "k.jsonl.gz": gzip.compress(line[:9]) + gzip.compress(line[9:]) + b"\0" * 512,
        "l.jsonl.zst": zstd(line[:9]) + zstd(line[9:]),
        "m.csv": b"audio , id\na.wav,1\n",
        "n.csv": b'audio,"id"\n"a.wav",1',
        "PARENT.csv": b"PARENT,audio,id\nx,a.wav,1",
    }.items():
        rows, rejects = read(put(tmp_path / name, content))
        assert (rows["recording_id"].to_pylist(), rows["audio"].to_pylist()) == (["1"], [f"{tmp_path}/a.wav"]), name
        assert not rejects


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", gzip.compress(b""), b"audio,id\n", b"audio"])
def test_empty(tmp_path, content) -> None:
    """Fails if an empty manifest is an error or has a row."""
    rows, rejects = read(put(tmp_path / "m", content))
    assert (rows.num_rows, rejects) == (0, [])


JUNK = [
    (b'[\n {"audio": "a.wav"},\n {"audio": "b.wav"}\n]', "JSON array"),
    (b'[{"audio": "a.wav"}]', "JSON array"),
    (b'{\n  "audio": "a.wav"\n}\n', "several lines"),
    (b"<!DOCTYPE html><html>", "HTML"),
    (b"text,audoi\n", "did you mean 'audio'"),
    (b"\xff\xfe" + '{"audio": "a.wav"}'.encode("utf-16-le"), "UTF-8"),
    ('{"audio": "a.wav"}'.encode("utf-16-le"), "UTF-8"),
    ("audio,text\na.wav,x".encode("utf-16-le"), "binary"),
    (b"PK\x03\x04\x14\0\x06\0", "XLSX"),
    (b"RIFF\x24\0\0\0WAVEfmt ", "WAV"),
    (b"ARROW1\0\0", "Arrow"),
    (b"BZh91AY&SY\x9a", "bzip2"),
    (b"\x80\x04\x95\x0b\0", "binary"),
    ("audio,niño\n".encode("latin-1"), "binary or not UTF-8"),
    (gzip.compress(gzip.compress(b"{}")), "compressed twice"),
    (gzip.compress(b"PAR1\0\0"), "Parquet"),
    (b"audio,audio\na,b\n", "'audio' and 'audio'"),
    (b"audio,x,X\na,b,c\n", "'x' and 'X'"),
    (b"audio,manifest_label,label\na,b,c\n", "one column"),
    (b",audio\n0,a.wav\n", "index=False"),
    (b"audio,text\ra.wav,x\rb.wav,y\r", "header"),
    (b'audio,"text\na.wav,x\n', "header"),
    (b"PAR1 no it is not", "Parquet"),
    (b"PAR1\0\0\0\0PAR1", "Parquet"),
]


@pytest.mark.parametrize(("content", "word"), JUNK)
def test_junk_is_named(tmp_path, content, word) -> None:
    """Fails if a file that is no manifest is read as rows, or refused without saying what it looks like."""
    with pytest.raises(ConfigError, match=word):
        read(put(tmp_path / "m", content))


@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor(write_checksum=True).compress])
@pytest.mark.parametrize("damage", ["cut", "flipped", "junk"])
def test_broken_compression(tmp_path, compress, damage) -> None:
    """Fails if half a manifest passes for a whole one: zstandard's own stream reader ends without a word."""
    whole = bytearray(compress(b"".join(b'{"audio": "%d.wav"}\n' % (i * i) for i in range(20_000))))
    if damage == "cut":
        del whole[-20:]
    elif damage == "flipped":
        whole[len(whole) // 2 : len(whole) // 2 + 8] = b"\xff" * 8
    else:
        whole += b"junk"
    with pytest.raises(ConfigError, match="not whole|malformed" if damage == "flipped" else "not whole"):
        read(put(tmp_path / "m.jsonl.gz", bytes(whole)))


def test_corrupt_parquet(tmp_path) -> None:
    """Fails if damaged pages crash the reader or give rows in silence."""
    pq.write_table(pa.table({"audio": [f"{i}.wav" for i in range(5000)]}), tmp_path / "m", use_dictionary=False)
    content = bytearray((tmp_path / "m").read_bytes())
    content[200:400] = b"\xff" * 200
    with pytest.raises(ConfigError, match="does not decode"):
        read(put(tmp_path / "m", bytes(content)))


# ------------------------------------------------------------------------------------------------ names to files


def test_expand(tmp_path, monkeypatch) -> None:
    """Fails if a folder or glob misses a manifest, takes another file, repeats one or comes in chance order."""
    for name in ("b.jsonl", "a.csv.gz", "deep/er/c.PARQUET", "deep/d.tsv.zst", "e.wav", "_runs/f.jsonl", ".g.jsonl",
                 "h.parquet.gz", "deep/_i/j.csv", "odd[1].jsonl", "no-ending"):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    here = str(tmp_path)
    below = [f"{here}/{n}" for n in ("a.csv.gz", "b.jsonl", "deep/d.tsv.zst", "deep/er/c.PARQUET", "odd[1].jsonl")]
    assert expand([here]) == expand([here + "/"]) == expand([f"file://{here}"]) == below
    assert expand([f"{here}/*.jsonl"]) == [f"{here}/b.jsonl", f"{here}/odd[1].jsonl"]
    assert expand([f"{here}/odd[1].jsonl", f"{here}/no-ending"]) == [f"{here}/odd[1].jsonl", f"{here}/no-ending"]
    assert expand([f"{here}/b.jsonl", here]) == [below[1], below[0], *below[2:]]
    assert expand([f"{here}/d*"]) == below[2:4]
    assert expand([f"{here}/**/*.tsv.zst"]) == [below[2]]
    assert expand(["https://h/m.jsonl?X-Sig=1"]) == ["https://h/m.jsonl?X-Sig=1"]
    monkeypatch.chdir(tmp_path)
    assert expand(["b.jsonl", "./b.jsonl"]) == [f"{here}/b.jsonl"]


def test_expand_in_a_store() -> None:
    """Fails if object names come back without their scheme, or a store's folder is not seen."""
    memory = fsspec.filesystem("memory")
    for name in ("b.jsonl", "deep/a.jsonl", "deep/x.wav"):
        memory.pipe_file(f"/expand-test/{name}", b'{"audio": "x.wav"}\n')
    found = ["memory://expand-test/b.jsonl", "memory://expand-test/deep/a.jsonl"]
    assert expand(["memory://expand-test"]) == expand(["memory://expand-test/*"]) == found
    rows, _ = read(found[1])
    assert rows["audio"].to_pylist() == ["memory://expand-test/deep/x.wav"]
    assert rows["manifest"].to_pylist() == [found[1]]


@pytest.mark.parametrize(
    ("name", "words"),
    [("manfest.jsonl", "did you mean 'manifest.jsonl'"), ("none/m.jsonl", "nor does its folder"), ("*.csv", "does not"),
     ("empty", "no file named like a manifest"), ("simplecache::s3://b/m.jsonl", "chained"), ("warp://b/m", "warp")],
)  # fmt: skip
def test_expand_to_nothing(tmp_path, monkeypatch, name, words) -> None:
    """Fails if a name that leads to nothing is an empty run instead of an error that helps."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "manifest.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        expand([name])
    with pytest.raises(ConfigError, match="no manifest"):
        expand([])


def test_missing_and_unreachable_keep_secrets(tmp_path) -> None:
    """Fails if an error quotes the query of a pre-signed URL."""
    with pytest.raises(ConfigError, match="does not exist"):
        read(tmp_path / "none.jsonl")
    with pytest.raises((ConfigError, JobError), match="cannot be reached") as caught:
        read("http://127.0.0.1:9/m.jsonl?X-Sig=CANARY")
    assert "CANARY" not in str(caught.value)
    assert caught.value.__suppress_context__


# -------------------------------------------------------------------------------------------------- pass-through


def test_label_and_taken_names(tmp_path) -> None:
    """Fails if a manifest's own label, or a column named like one of ours, is dropped or overwrites ours."""
    path = jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", "label": "joy", "manifest": "x", "Emotion": 1, "other": None})
    rows, _ = read(path)
    extra = [name for name in rows.column_names if name not in ROW_SCHEMA.names]
    assert extra == ["manifest_label", "manifest_manifest", "manifest_Emotion", "other"]
    assert rows["manifest"].to_pylist() == [str(path)]
    assert rows.schema.field("other").type == pa.null()


COLUMNS = [
    # values over two chunks, type, values out
    ([[1, None], [2]], pa.int64(), [1, None, 2]),
    ([[1], [0.5]], pa.float64(), [1.0, 0.5]),
    ([[1, 0.5], [2]], pa.float64(), [1.0, 0.5, 2.0]),
    ([[2**53 + 1], [0.5]], pa.string(), ["9007199254740993", "0.5"]),
    ([[2**53 + 1, 0.5], [1]], pa.string(), ["9007199254740993", "0.5", "1"]),
    ([[2**70], [1]], pa.string(), [str(2**70), "1"]),
    ([[None], ["x"]], pa.string(), [None, "x"]),
    ([[True], [None]], pa.bool_(), [True, None]),
    ([[True], [1]], pa.string(), ["true", "1"]),
    ([[1, "x", ["é"]], [{"a": None}]], pa.string(), ["1", "x", '["é"]', '{"a":null}']),
    ([["007"], [7]], pa.string(), ["007", "7"]),
    ([[[1, 2]], [[0.5]]], pa.list_(pa.float64()), [[1.0, 2.0], [0.5]]),
    ([[[2**53 + 1]], [[0.5]]], pa.string(), ["[9007199254740993]", "[0.5]"]),
    ([[[]], [["x"]]], pa.list_(pa.string()), [[], ["x"]]),
    ([[{"a": 1}], [{"b": ["x"]}]], pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
     [{"a": 1, "b": None}, {"a": None, "b": ["x"]}]),
    ([[{"a": {"b": 1}}], [{"a": {"b": 0.5}}]], pa.struct([("a", pa.struct([("b", pa.float64())]))]),
     [{"a": {"b": 1.0}}, {"a": {"b": 0.5}}]),
    ([[{"a": 1}], [{"a": "x"}]], pa.string(), ['{"a":1}', '{"a":"x"}']),
    ([[{"a": 1}], [{"A": 1}]], pa.string(), ['{"a":1}', '{"A":1}']),
    ([[{}], [{"a": 1}]], pa.string(), ["{}", '{"a":1}']),
    ([[{"a": {}}], []], pa.string(), ['{"a":{}}']),
    ([[{str(i): i} for i in range(300)], []], pa.string(), [f'{{"{i}":{i}}}' for i in range(300)]),
]  # fmt: skip


@pytest.mark.parametrize(("chunks", "kind", "expected"), COLUMNS)
def test_types_over_chunks(tmp_path, chunks, kind, expected) -> None:
    """Fails if a column whose values differ in type is lost, rounded, or typed by its first chunk."""
    tables = []
    for number, values in enumerate(chunks):
        path = jsonl(tmp_path / f"{number}.jsonl", *({"audio": "a.wav", "x": value} for value in values))
        tables += [chunk.rows for chunk in read_manifest(str(path))]
    schema = unify(table.schema for table in tables)
    assert unify([schema, schema]).equals(schema, check_metadata=True)
    stepwise = tables[0].schema
    for table in tables[1:]:
        stepwise = unify([stepwise, table.schema])
    assert stepwise.equals(schema, check_metadata=True)
    whole = pa.concat_tables([conform(table, schema) for table in tables])
    assert (whole.schema.field("x").type, whole["x"].to_pylist()) == (kind, expected)
    pq.write_table(whole, tmp_path / "out.parquet")
    assert pq.read_table(tmp_path / "out.parquet")["x"].to_pylist() == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**66), 2**66) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abAB", max_size=2), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(json_values, min_size=1, max_size=4), min_size=1, max_size=3))
def test_no_value_is_lost(tmp_path_factory, chunks) -> None:
    """Fails if some mixture of JSON values makes the reader, `unify` or Parquet fail, or changes a value."""
    folder = tmp_path_factory.mktemp("values")
    tables = []
    for number, values in enumerate(chunks):
        path = jsonl(folder / f"{number}.jsonl", *({"audio": "a.wav", "x": value} for value in values))
        tables += [chunk.rows for chunk in read_manifest(str(path))]
    schema = unify(table.schema for table in tables)
    whole = pa.concat_tables([conform(table, schema) for table in tables])
    pq.write_table(whole, folder / "out.parquet")
    for given_value, kept in zip([v for vs in chunks for v in vs], whole["x"].to_pylist(), strict=True):
        if isinstance(kept, str) and not isinstance(given_value, str):
            assert json.loads(kept) == given_value
        else:
            assert _bare(kept) == _bare(given_value)


def _bare(value: object) -> object:
    """Without the nulls a struct has for the keys of its neighbours."""
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if item is not None}
    return [_bare(item) for item in value] if isinstance(value, list) else value


def test_conform_refuses_what_it_would_lose(tmp_path) -> None:
    """Fails if a column the schema lacks, or a value its type cannot hold, disappears in silence."""
    chunk = next(read_manifest(str(jsonl(tmp_path / "m.jsonl", {"audio": "a.wav", "x": 2**53 + 1}))))
    with pytest.raises(ConfigError, match="'x'"):
        conform(chunk.rows, ROW_SCHEMA)
    with pytest.raises(ConfigError, match="'x'"):
        conform(chunk.rows, pa.schema([*ROW_SCHEMA, pa.field("x", pa.float64())]))
    assert conform(
        chunk.rows.select(["audio"]), pa.schema([pa.field("y", pa.int8()), ROW_SCHEMA.field("audio")])
    ).equals(pa.table({"y": pa.nulls(1, pa.int8()), "audio": chunk.rows["audio"]}))


def test_columns_that_differ_in_case(tmp_path) -> None:
    """Fails if two columns come out that DuckDB and Spark cannot tell apart; a JSON row that adds one is rejected."""
    path = jsonl(tmp_path / "a.jsonl", {"audio": "a.wav", "Take": 1}, {"audio": "a.wav", "take": 2}, {"AUDIO": "a.wav"},
                 {"audio": "a.wav", "": 1}, {"audio": "a.wav", "x\n": 1}, {"audio": "a.wav", "n" * 300: 1})  # fmt: skip
    rows, rejects = read(path)
    assert rows["Take"].to_pylist() == [1]
    assert [(reject.line, reject.reason) for reject in rejects] == [(n, Reason.BAD_FIELD) for n in range(2, 7)]
    with pytest.raises(ConfigError, match="differ only in case"):
        unify([rows.schema, pa.schema([pa.field("TAKE", pa.int64())])])


def test_too_many_columns(tmp_path) -> None:
    """Fails if rows that each name a column of their own make a table as wide as the manifest is long."""
    path = jsonl(tmp_path / "m.jsonl", *({"audio": "a.wav", f"k{i}": i} for i in range(3000)), {"audio": "b.wav"})
    rows, rejects = read(path)
    assert (rows.num_columns, len(rejects)) == (len(ROW_SCHEMA) + 1023, 3000 - 1023)
    assert rows["audio"][-1].as_py() == str(tmp_path / "b.wav")


# ------------------------------------------------------------------------------------------------------- Parquet


def test_parquet_types_pass_through(tmp_path) -> None:
    """Fails if a Parquet column's type changes on the way, or a dictionary stays encoded."""
    when = datetime.datetime(2024, 1, 2, 3, 4, 5, 678901, tzinfo=datetime.UTC)
    columns = {
        "day": pa.array([when.date()], pa.date32()),
        "ns": pa.array([1_700_000_000_000_000_001], pa.timestamp("ns")),
        "utc": pa.array([when], pa.timestamp("us", tz="UTC")),
        "price": pa.array([Decimal("1.50")], pa.decimal128(10, 2)),
        "tags": pa.array([["a", None]], pa.list_(pa.string())),
        "box": pa.array([{"x": 1, "y": [1.5]}], pa.struct([("x", pa.int16()), ("y", pa.list_(pa.float32()))])),
        "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int32())),
        "raw": pa.array([b"\xff\0"], pa.binary()),
        "small": pa.array([7], pa.uint8()),
        "kind": pa.array(["x"]).dictionary_encode(),
        "vector": pa.array([[1.0, 2.0]], pa.list_(pa.float32(), 2)),
        "void": pa.nulls(1),
    }
    pq.write_table(pa.table({"audio": pa.array(["a.wav"], pa.large_string()), **columns}), tmp_path / "m.parquet")
    rows, rejects = read(tmp_path / "m.parquet")
    assert not rejects
    for name, column in columns.items():
        wanted = column.dictionary_decode() if name == "kind" else column
        assert rows[name].combine_chunks().equals(wanted), name


def test_parquet_known_columns(tmp_path) -> None:
    """Fails if integer ids change, pandas' NaN is taken for a number, or chunk borders lose the row number."""
    table = pa.table(
        {
            "audio": pa.array(["a.wav", None, "c.wav", "d.wav", "e.wav"]).dictionary_encode(),
            "id": pa.array([1, 2, 3, None, 2**63 - 1]),
            "offset": pa.array([0.5, 1.0, float("nan"), None, 2.0], pa.float32()),
            "channel": pa.array([0.0, 1.0, float("nan"), 1.0, 0.5]),
            "duration": pa.array([Decimal("1.5")] * 5),
        }
    )
    pq.write_table(table, tmp_path / "m", row_group_size=2)
    rows, rejects = read(tmp_path / "m", chunk_rows=2)
    assert rows["recording_id"].to_pylist()[:2] == ["1", "3"]
    assert rows["recording_id"][2].as_py() == derived_id(f"{tmp_path}/d.wav", None, 1.5, 1)
    assert rows["offset_s"].to_pylist() == [0.5, None, None]
    assert rows["channel"].to_pylist() == [0, None, 1]
    assert rows["line"].to_pylist() == [1, 3, 4]
    assert [(r.line, r.reason, r.recording_id) for r in rejects] == [
        (2, Reason.BAD_FIELD, "2"), (5, Reason.BAD_FIELD, str(2**63 - 1)),
    ]  # fmt: skip
    assert json.loads(rejects[0].raw)["id"] == 2


@pytest.mark.parametrize(
    ("column", "array"),
    [
        ("id", pa.array([1.5])),
        ("audio", pa.array([{"path": "x"}])),
        ("text", pa.array([1])),
        ("duration", pa.array(["1"])),
    ],
)
def test_parquet_wrong_type(tmp_path, column, array) -> None:
    """Fails if a column whose type is wrong becomes one reject per row instead of one error (M7)."""
    pq.write_table(pa.table({"audio": ["a.wav"]} | {column: array}), tmp_path / "m")
    with pytest.raises(ConfigError, match=f"column '{column}' is .* is expected"):
        read(tmp_path / "m")


def test_parquet_bad_utf8(tmp_path) -> None:
    """Fails if a string that is not UTF-8, which Parquet readers let pass, stops the file or gets through."""
    binary = pa.array([b"good", b"caf\xe9", b"fine"])
    text = pa.Array.from_buffers(pa.string(), 3, binary.buffers())
    nested = pa.StructArray.from_arrays([text], ["t"])
    pq.write_table(pa.table({"audio": ["a.wav", "b.wav", "c.wav"], "note": text, "n": nested}), tmp_path / "m")
    rows, rejects = read(tmp_path / "m")
    assert rows["note"].to_pylist() == ["good", "fine"]
    assert [(reject.line, reject.reason) for reject in rejects] == [(2, Reason.MALFORMED)]


# -------------------------------------------------------------------------------------------------------- memory

MEASURE = """
import pathlib, re, sys
from pipeline.manifest import read_manifest
rows = sum(chunk.rows.num_rows for chunk in read_manifest(sys.argv[1], chunk_rows=5_000))
# not ru_maxrss, which begins at what the parent had when it forked
print(rows, int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_memory_is_flat(tmp_path, form) -> None:
    """Fails if reading several times the rows takes more memory, as if lines, rows or rejects were kept."""
    peaks = []
    # of Parquet a dictionary page of every column is held, full only after some 100,000 values
    for count in (200_000, 600_000) if form == "parquet" else (20_000, 120_000):
        path = tmp_path / f"{count}"
        if form == "parquet":
            audio = [f"clips/{i}.wav" for i in range(count)]
            pq.write_table(pa.table({"audio": audio, "text": [f"some text {i}" * 5 for i in range(count)]}), path)
        elif form == "csv":
            put(path, "audio,text\n" + "".join(f"clips/{i}.wav,{f'some text {i}' * 5}\n" for i in range(count)))
        else:
            lines = (f'{{"audio": "clips/{i}.wav", "text": "{f"some text {i}" * 5}"}}\n' for i in range(count))
            put(path, "".join(lines))
        done = subprocess.run([sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True)
        rows, peak_mib = map(int, done.stdout.split())
        assert rows == count
        peaks.append(peak_mib)
    assert peaks[1] - peaks[0] < 30, peaks


def test_no_ray_no_torch() -> None:
    """Fails if reading a manifest drags in Ray or PyTorch."""
    code = "import sys, pipeline.manifest, pipeline.roots; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_long_text_lines_close_a_chunk_early(tmp_path) -> None:
    """Fails if 20,000 transcripts of 1 MB would be held at once."""
    path = jsonl(tmp_path / "m.jsonl", *({"audio": "a.wav", "text": "x" * 1_000_000} for _ in range(70)))
    assert [chunk.rows.num_rows for chunk in read_manifest(str(path))] == [34, 34, 2]
    over = jsonl(tmp_path / "n.jsonl", {"audio": "a.wav", "text": "x" * MAX_LINE_BYTES}, {"audio": "b.wav"})
    assert [reject.line for reject in read(over)[1]] == [1]
