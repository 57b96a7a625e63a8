"""Erasure from Delta, Iceberg and Lance tables, with everything that their old versions keep."""

from __future__ import annotations

import io
import json
import re
import shutil
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs import compact
from jobs import erase as command
from pipeline.analytics.erased_tables import erase_from_table, parse_table
from pipeline.analytics.publish import FORMATS
from pipeline.dataset.plan import load_plans
from pipeline.dataset.tombstones import tombstones
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from tests.analytics.test_publish import rows_in, table_of
from tests.support.erasing import MARK, WHERE, Kill, Killed, make

__all__ = ["table_of"]


def contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """Yield the bytes of every file, the rows of Parquet, and the blocks of Avro, which are compressed with deflate."""
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        yield path, content
        if path.suffix == ".parquet":
            yield path, json.dumps(pq.ParquetFile(io.BytesIO(content)).read().to_pylist(), default=str).encode()
        if path.suffix == ".avro":
            yield path, b"".join(_blocks(content))


def _blocks(content: bytes) -> Iterator[bytes]:
    sync = content[-16:]
    for piece in content.split(sync)[1:-1]:
        start = re.match(rb"(?:[\x80-\xff]*[\x00-\x7f]){2}", piece)
        assert start is not None
        yield zlib.decompress(piece[start.end() :], -15)


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_of_the_rows_is_left_in_a_table(form, tmp_path, table_of, capsys):
    """Fails if a table's data, log, manifest or older version keeps a value of an erased row, or another row changes."""
    store, table = make(str(tmp_path / "out"), tmp_path), table_of(form)
    assert compact.main([store.root, "--publish", form, "--table", table]) == 0
    before = [row for row in rows_in(form, table).to_pylist() if MARK not in json.dumps(row, default=str).encode()]
    (tmp_path / "m").mkdir()
    outside = {tmp_path / name for name in ("out", "0", "1", "m", "catalog.db")}

    def marked() -> set[str]:
        places = [path for path in tmp_path.iterdir() if path not in outside]
        return {str(path) for place in places for path, content in contents(place) if MARK in content}

    assert marked()
    assert command.main([store.root, "--where", WHERE, "--table", f"{form}:{table}", "--yes"]) == 0
    assert "5 recordings erased" in capsys.readouterr().out
    assert marked() == set()
    after = rows_in(form, table).to_pylist()
    assert sorted(after, key=str) == sorted(before, key=str) and len(after) == 6
    assert erase_from_table(f"{form}:{table}", tombstones(store, load_plans(store))) == 0
    assert compact.main([store.root, "--publish", form, "--table", table]) == 0
    assert rows_in(form, table).num_rows == 6 and marked() == set()
    assert audit(store).status == "sound"


def test_a_table_that_is_not_there_stops_the_erasure_before_it_starts(tmp_path, capsys):
    """Fails if rows are erased from the output although the table was mistyped, and then nobody knows the ids."""
    store = make(str(tmp_path / "out"), tmp_path)
    assert command.main([store.root, "--where", WHERE, "--table", f"delta:{tmp_path}/none", "--yes"]) == 2
    assert len(load_plans(store)) == 2 and "none" in capsys.readouterr().err
    for wrong in ("parquet:x", "delta:", "x"):
        with pytest.raises(ConfigError, match="delta:TABLE"):
            parse_table(wrong)


def test_a_killed_erasure_goes_on_to_its_tables(tmp_path, table_of, monkeypatch, capsys):
    """Fails if --finish forgets the tables of the command that was killed, or cannot leave out one that was dropped since."""
    store, table = make(str(tmp_path / "out"), tmp_path), table_of("delta")
    assert compact.main([store.root, "--publish", "delta", "--table", table]) == 0
    named = ["--table", f"delta:{table}", "--table", f"delta:{shutil.copytree(table, tmp_path / 'dropped')}"]
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("jobs.erase.erase_from_table", Kill(1))
        command.main([store.root, "--where", WHERE, *named, "--yes"])
    shutil.rmtree(tmp_path / "dropped")
    assert command.main([store.root, "--finish"]) == 2 and "--skip-table" in capsys.readouterr().err
    assert command.main([store.root, "--finish", "--skip-table", f"delta:{tmp_path}/dropped"]) == 0
    assert rows_in("delta", table).num_rows == 6 and audit(store, deep=True).status == "sound"
