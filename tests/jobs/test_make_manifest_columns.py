"""`jobs.make_manifest --pattern` and `--join`: columns from paths and from a table."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import make_manifest
from pipeline.errors import ConfigError
from pipeline.manifest.sources.columns import compile_pattern

FILES = ["day=2026-01-01/ann/a.wav", "day=2026-01-01/bob/b.wav", "day=2026-01-02/ann/c d.wav"]


def made(folder: Path, *options: str, expect: int = 0) -> list[dict[str, object]]:
    for name in FILES:
        (folder / "calls" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "calls" / name).write_bytes(b"")
    output = folder / "m.jsonl"
    try:
        status = make_manifest.main([str(folder / "calls"), "--output", str(output), "--overwrite", *options])
    except SystemExit as refused:
        status = int(str(refused.code))
    assert status == expect
    return [json.loads(line) for line in output.read_text().splitlines()] if not expect else []


def test_columns_come_from_paths(tmp_path: Path) -> None:
    """Fails if a path's parts land in wrong columns, or change the id by which a row is known."""
    plain = made(tmp_path)
    rows = made(tmp_path, "--pattern", "day={day}/{speaker}/{name}.wav")
    assert [(r["day"], r["speaker"], r["name"]) for r in rows] == [
        ("2026-01-01", "ann", "a"),
        ("2026-01-01", "bob", "b"),
        ("2026-01-02", "ann", "c d"),
    ]
    assert [r["id"] for r in rows] == [r["id"] for r in plain]


@pytest.mark.parametrize(
    ("pattern", "path", "columns"),
    [
        ("{speaker}/*.wav", "x/y/ann/1.wav", {"speaker": "ann"}),
        ("{speaker}/*.wav", "ann/1.mp3", None),
        ("{speaker}_{take}.wav", "ann_b_2.wav", {"speaker": "ann_b", "take": "2"}),
        ("{kind}.wav", "a/.wav", None),
        ("a.{kind}", "axwav", None),
        ("call (1)/{name}.wav", "call (1)/ü+$.wav", {"name": "ü+$"}),
        ("day={day}/*", "holiday=1/x.wav", None),
    ],
)
def test_a_pattern_matches_whole_parts_of_a_path(pattern: str, path: str, columns: dict[str, str] | None) -> None:
    """Fails if a pattern's punctuation is an expression, a column reaches across a slash, or half a folder name matches."""
    match = compile_pattern(pattern).search(path)
    assert (match.groupdict() if match else None) == columns


@pytest.mark.parametrize("pattern", ["*.wav", "{id}/*", "{a}/{a}.wav", "{}/x", "{no-name}.wav", "{Audio}.wav", ""])
def test_a_pattern_that_cannot_name_columns_is_refused(pattern: str) -> None:
    """Fails if a pattern replaces what identifies a row, or adds nothing."""
    with pytest.raises(ConfigError, match="--pattern"):
        compile_pattern(pattern)


def test_other_paths_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if files whose names do not match disappear without a count, or if a pattern that matches none makes a manifest."""
    assert len(made(tmp_path, "--pattern", "bob/{name}.wav")) == 1
    assert "left out: 2, a path that does not match --pattern" in capsys.readouterr().out
    made(tmp_path, "--pattern", "{name}.flac", expect=2)
    assert "none of 3 paths" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_adds_columns(tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a joined value changes on the way, or a row without a line in the table is lost."""
    table = [{"speaker": "ann", "team": "007", "nps": 3}, {"speaker": "eve", "team": "1", "nps": 4}]
    file = tmp_path / f"t.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), file)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(line) + "\n" for line in table))
    else:
        mark = "," if kind == "csv" else "\t"
        file.write_text(
            "\n".join(mark.join(map(str, line)) for line in [table[0], *(t.values() for t in table)]) + "\n"
        )
    rows = made(tmp_path, "--pattern", "{speaker}/*.wav", "--join", str(file), "--on", "speaker")
    nps = "3" if kind in ("csv", "tsv") else 3
    assert [(r["speaker"], r.get("team"), r.get("nps")) for r in rows] == [
        ("ann", "007", nps),
        ("bob", None, None),
        ("ann", "007", nps),
    ]
    assert "without a line in the table of --join: 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("lines", "on", "message"),
    [
        (["speaker,team", "ann,1", "ann,2"], "speaker", "two lines have speaker = 'ann'"),
        (["person,team", "ann,1"], "speaker", "no column speaker"),
        (["speaker,audio", "ann,1"], "speaker", "already have a column audio"),
        (["speaker,Speaker", "ann,1"], "speaker", "would be the same column"),
        (["speaker,team", "ann,1"], "speeker", "did you mean 'speaker'"),
        (["speaker,team", "ann,1,2,3"], "speaker", "line 2"),
    ],
)
def test_a_table_that_decides_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], on: str, message: str
) -> None:
    """Fails if one of two values is chosen, a column is overwritten, or a mistyped column joins nothing without a word."""
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    made(tmp_path, "--pattern", "{speaker}/*.wav", "--join", str(tmp_path / "t.csv"), "--on", on, expect=2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--join", "t.csv"], ["--on", "speaker"], ["--layout", "ravdess", "--pattern", "{a}"]]
)
def test_options_that_do_not_belong_together_are_refused(tmp_path: Path, options: list[str]) -> None:
    """Fails if half a join is ignored, or a corpus's own columns are replaced."""
    made(tmp_path, *options, expect=2)
