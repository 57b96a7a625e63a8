"""Manifests as a whole: malformed lines cost nothing but themselves, content survives, memory is flat."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pipeline.errors import Reason
from pipeline.manifest.read import derived_id, read_manifest
from pipeline.manifest.source import MAX_LINE_BYTES, lines_of
from tests.hostile import make_manifests
from tests.support.cases import case
from tests.support.manifests import jsonl, put, read


@pytest.mark.parametrize("chunk_rows", [20_000, 1_000])
def test_m1_jsonl(tmp_path, chunk_rows) -> None:
    """Fails if a malformed line costs a neighbour, is not reported with its number, or is taken for a row."""
    lines = list(make_manifests.jsonl(20_000))
    bad = make_manifests.write(tmp_path / "m.jsonl", iter(lines))
    rows, rejects = read(tmp_path / "m.jsonl", chunk_rows=chunk_rows)
    assert [reject.line for reject in rejects] == bad
    assert {reject.cause.reason for reject in rejects} == {Reason.MALFORMED}
    wanted = [(n, json.loads(line)) for n, (line, is_bad) in enumerate(lines, 1) if not is_bad and line.strip()]
    assert rows["line"].to_pylist() == [number for number, _ in wanted]
    for column, name in (("recording_id", "id"), ("text", "text"), ("duration_s", "duration"), ("take", "take")):
        assert rows[column].to_pylist() == [row[name] for _, row in wanted]
    assert all(len(reject.raw) <= 2048 and reject.cause.detail and len(reject.cause.detail) < 300 for reject in rejects)


WAYS_AND_PLACES = [
    (way, place)
    for way in [*make_manifests.BAD_JSON, *make_manifests.HARMLESS_JSON]
    for place in ["first", "middle", "last"]
    if (way, place) != ("BOM mid-file", "first")  # there it is allowed
]


def test_m1_jsonl_each_way(tmp_path) -> None:
    """Fails if one way of being malformed is missed, or a damaged first line changes what the file is taken for."""
    for way, place in WAYS_AND_PLACES:
        with case(way, place):
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
    assert {reject.cause.reason for reject in rejects} == {Reason.MALFORMED, Reason.BAD_FIELD}


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
    assert [(reject.line, reject.cause.reason) for reject in rejects] == [(6, Reason.MALFORMED)]


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


MEASURE = """
import pathlib, re, sys
from pipeline.manifest.read import read_manifest
rows = sum(chunk.rows.num_rows for chunk in read_manifest(sys.argv[1], chunk_rows=5_000))
# not ru_maxrss, which begins at what the parent had when it forked
print(rows, int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]) // 1024)
"""


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_memory_is_flat(tmp_path, form) -> None:
    """Fails if reading several times the rows takes more memory, as if lines, rows or rejects were kept."""
    peaks = []
    # of Parquet a dictionary page of every column is held, full only after some 100,000 values
    for count in (150_000, 350_000) if form == "parquet" else (20_000, 120_000):
        path = tmp_path / f"{count}"
        if form == "parquet":
            numbers = pa.array(range(count)).cast(pa.string())
            pq.write_table(pa.table({"audio": numbers, "text": pc.binary_repeat(numbers, 10)}), path)
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
    code = "import sys, pipeline.manifest.read, pipeline.storage.access; sys.exit(bool({'ray', 'torch'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_long_text_lines_close_a_chunk_early(tmp_path) -> None:
    """Fails if 20,000 transcripts of 1 MB would be held at once."""
    path = jsonl(tmp_path / "m.jsonl", *({"audio": "a.wav", "text": "x" * 1_000_000} for _ in range(70)))
    assert [chunk.rows.num_rows for chunk in read_manifest(str(path))] == [34, 34, 2]
    over = jsonl(tmp_path / "n.jsonl", {"audio": "a.wav", "text": "x" * MAX_LINE_BYTES}, {"audio": "b.wav"})
    assert [reject.line for reject in read(over)[1]] == [1]


def test_csv_a_line_of_two_quotes_is_no_blank_line(tmp_path) -> None:
    """Fails if a record of one empty cell under a header of several disappears without a reject, as it did."""
    rows, rejects = read(put(tmp_path / "m.csv", 'audio,text\na.wav,x\n""\n\n  \nb.wav,y\n'))
    assert rows["line"].to_pylist() == [2, 6]
    assert [(reject.line, reject.cause.reason) for reject in rejects] == [(3, Reason.MALFORMED)]
