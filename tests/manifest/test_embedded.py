"""Parquet files that hold audio as manifests: what is recognised, what a row is, and what is read."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError, Reason, RejectedRow
from pipeline.manifest.embedded import addressed_batches, audio_column
from pipeline.storage import slices
from pipeline.storage.fetch import fetch
from pipeline.storage.items import item_of
from pipeline.storage.on_disk import fetched_to_disk
from pipeline.storage.windows import WindowFile
from tests.support.cases import case
from tests.support.containers import hub_parquet
from tests.support.manifests import read

CONTENTS = [os.urandom(2000 + n) for n in range(8)]
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = json.dumps({"info": {"features": {"b": {"_type": "Audio"}, "t": {"_type": "Value"}}}})


@pytest.fixture(autouse=True)
def no_slices():
    slices._slices.clear()


def refusal(uri: str, **options) -> RejectedRow:
    with pytest.raises(RejectedRow) as caught:
        fetch(uri, **{"max_bytes": 10**6, **options})
    return caught.value


@pytest.mark.parametrize("binary", [False, True])
def test_rows_name_their_audio_and_keep_their_columns(tmp_path, binary):
    """Fails if a row of a file with audio gets another row's audio, or a column is lost, or bytes get into the plan."""
    path, texts = tmp_path / "train-0.parquet", [f"t{n}" for n in range(8)]
    hub_parquet(path, CONTENTS, binary=binary, text=pa.array(texts), speaker=pa.array(range(8)), id=pa.array(texts))
    rows, rejects = read(path)
    assert not rejects and rows["speaker"].to_pylist() == list(range(8)) and rows["text"].to_pylist() == texts
    places = [item_of(uri) for uri in rows["audio"].to_pylist()]
    assert [(place.row_group, place.row) for place in places] == [divmod(n, 3) for n in range(8)]
    assert [fetch(uri, max_bytes=10**6) for uri in rows["audio"].to_pylist()] == CONTENTS
    with fetched_to_disk(rows["audio"][5].as_py(), max_bytes=10**6) as file:
        assert file.read() == CONTENTS[5]
    assert rows.nbytes < 5000
    assert refusal(rows["audio"][5].as_py(), max_bytes=2004).reason is Reason.TOO_LARGE
    assert read(path)[0].equals(rows) and len({r.as_py() for r in rows["recording_id"]}) == 8


def test_which_column_holds_the_audio():
    """Fails if a manifest of references counts as one of audio, or the audio of a hub's data set is not found."""
    binary, text = pa.binary(), pa.string()
    for fields, expected in [
        ({"audio": STRUCT, "path": text}, "audio"), ({"audio": text, "b": STRUCT}, None), ({"Audio": binary}, "Audio"),
        ({"path": text, "audio": pa.large_binary()}, "audio"), ({"speech": STRUCT, "text": text}, "speech"),
        ({"a": STRUCT, "b": STRUCT}, None), ({"sha256": binary, "text": text}, None), ({"a": binary, "b": binary}, None),
        ({"uri": pa.struct([("bytes", text)])}, None), ({"image": pa.struct([("bytes", binary)])}, None),
    ]:  # fmt: skip
        with case(fields):
            assert audio_column(pa.schema(list(fields.items()))) == expected
    stated = pa.schema([("a", STRUCT), ("b", STRUCT)], metadata={"huggingface": FEATURES})
    assert audio_column(stated) == "b"
    assert audio_column(stated.with_metadata({"huggingface": "[1"})) is None


@pytest.mark.parametrize(
    "kind", [pa.large_binary(), pa.binary_view(), pa.binary(4), pa.dictionary(pa.int32(), pa.binary())]
)
def test_every_binary_type_holds_audio(tmp_path, kind):
    """Fails if a file is refused because its writer chose another binary type of Arrow, or its audio is another's."""
    values = [b"ab%02d" % n for n in range(4)]
    for name, column in {
        "plain": pa.array(values, pa.binary()).cast(kind),
        "struct": pa.StructArray.from_arrays(
            [pa.array(values, pa.binary()).cast(kind), pa.nulls(4, pa.string())], ["bytes", "path"]
        ),
    }.items():
        with case(name):
            pq.write_table(pa.table({"audio": column}), tmp_path / f"{name}.parquet")
            rows, rejects = read(tmp_path / f"{name}.parquet")
            assert not rejects and [fetch(uri, max_bytes=9) for uri in rows["audio"].to_pylist()] == values


def test_rows_without_bytes(tmp_path):
    """Fails if a row group of references to files is read as audio, or a row without either stops its neighbours."""
    path = tmp_path / "a.parquet"
    hub_parquet(path, [None, None, None, CONTENTS[0], None, CONTENTS[1]])
    rows, _ = read(path)
    uris = rows["audio"].to_pylist()
    assert uris[:3] == [str(tmp_path / f"{n}.wav") for n in range(3)]
    assert (fetch(uris[3], max_bytes=9999), fetch(uris[5], max_bytes=9999)) == (CONTENTS[0], CONTENTS[1])
    assert refusal(uris[4]).reason is Reason.NOT_FOUND and "its bytes are null" in refusal(uris[4]).detail
    hub_parquet(path, [None, CONTENTS[0]], row_group_rows=1, binary=True)
    rows, rejects = read(path)
    assert rows.num_rows == 1 and rejects[0].cause.reason is Reason.BAD_FIELD and rejects[0].line == 1


def test_a_row_group_is_decoded_once(tmp_path, monkeypatch):
    """Fails if each row decodes its row group again, or a row group that is larger than a slice loses rows."""
    path, decoded, real = tmp_path / "a.parquet", [], slices._rows
    hub_parquet(path, CONTENTS, row_group_rows=8)
    uris = read(path)[0]["audio"].to_pylist()
    monkeypatch.setattr(slices, "_rows", lambda *given: decoded.append(1) or real(*given))
    assert [fetch(uri, max_bytes=9999) for uri in uris] == CONTENTS and len(decoded) == 1
    for name, size in {"_SLICE_BYTES": 5000, "_ROWS_BEFORE": 1, "_MEMORY_BYTES": 1000}.items():
        monkeypatch.setattr(slices, name, size)
    slices._slices.clear()
    assert [fetch(uri, max_bytes=9999) for uri in uris] == CONTENTS and 2 < len(decoded) < 6
    assert [fetch(uri, max_bytes=9999) for uri in reversed(uris)] == CONTENTS[::-1]


def test_a_file_that_was_replaced_gives_no_other_audio(tmp_path):
    """Fails if an address of before returns a row of another file, or a file that is gone or damaged raises."""
    path = tmp_path / "a.parquet"
    content = hub_parquet(path, CONTENTS, n=pa.array(range(8)))
    uris = read(path)[0]["audio"].to_pylist()
    hub_parquet(path, CONTENTS[4:] + CONTENTS[:2])
    assert {refusal(uri).reason for uri in uris} == {Reason.CHANGED}
    slices._slices.clear()
    path.write_bytes(content.replace(CONTENTS[4][:64], bytes(64)).replace(CONTENTS[0], CONTENTS[0][:-9] + b"\xff" * 9))
    assert [fetch(uri, max_bytes=9999) for uri in uris[5:]] == CONTENTS[5:]
    at = content.index(CONTENTS[3]) - 40
    path.write_bytes(content[:at] + b"\xff" * 60 + content[at + 60 :])
    slices._slices.clear()
    outcomes = []
    for uri in uris:
        try:
            outcomes.append(fetch(uri, max_bytes=9999))
        except RejectedRow as error:
            outcomes.append(error.reason)
    assert outcomes[:3] == CONTENTS[:3] and outcomes[6:] == CONTENTS[6:] and Reason.DAMAGED in outcomes[3:6]
    path.unlink()
    slices._slices.clear()
    assert refusal(uris[0]).reason is Reason.NOT_FOUND


def test_audio_is_not_read_while_planning():
    """Fails if planning reads the audio of a Parquet file, or rows become batches as small as row groups."""
    content, read_bytes = hub_parquet(None, [os.urandom(200_000)] * 40, n=pa.array(range(40))), []

    def read_range(start: int, end: int) -> bytes:
        read_bytes.append(end - start)
        return content[start:end]

    file = WindowFile(read_range, len(content), 4096)
    (batch,) = addressed_batches(file, "audio", container="/a.parquet", chunk_rows=1000)
    assert batch.num_rows == 40 and sum(read_bytes) < 0.05 * len(content)


def test_files_of_a_store(s3, tmp_path):
    """Fails if rows of a Parquet file in an object store have no audio, or that of another row."""
    uri = f"s3://{s3.bucket}/embedded/train-00000-of-00001.parquet"
    s3.filesystem().pipe_file(
        uri, hub_parquet(None, CONTENTS, context=pa.array([{"bytes": b"1", "path": None}] * 8, STRUCT))
    )
    rows, rejects = read(uri)
    assert not rejects and [fetch(audio, max_bytes=9999) for audio in rows["audio"].to_pylist()] == CONTENTS
    assert fetch(rows["context"][7].as_py(), max_bytes=10) == b"1"
    with pytest.raises(ConfigError, match="not read over http"):
        from tests.support.http_host import http_host, reply

        with http_host(lambda asked: reply(asked, hub_parquet(None, CONTENTS))) as address:
            read(f"{address}/a.parquet")


def test_a_dictionary_page_is_no_bomb(tmp_path, monkeypatch):
    """Fails if a small file whose rows repeat one large value is decoded into memory at once."""
    path = tmp_path / "a.parquet"
    table = pa.table({"audio": pa.array([bytes(100_000)] * 500, pa.binary())})
    pq.write_table(table, path, compression="zstd", dictionary_pagesize_limit=1 << 20)
    assert path.stat().st_size < 10_000
    monkeypatch.setattr(slices, "_SLICE_BYTES", 1_000_000)
    largest, real = [], slices._keep
    monkeypatch.setattr(slices, "_keep", lambda made, *given: real(made, *given) or largest.append(made.size))
    before = pa.total_allocated_bytes()
    uris = read(path)[0]["audio"].to_pylist()
    assert fetch(uris[3], max_bytes=10**6) == fetch(uris[499], max_bytes=10**6) == bytes(100_000)
    assert max(largest) < 4_000_000 and pa.total_allocated_bytes() - before < 10_000_000


def test_column_without_others(tmp_path):
    """Fails if a file whose only column is audio has no rows."""
    buffer = io.BytesIO()
    pq.write_table(pa.table({"audio": pa.array(CONTENTS[:3], pa.binary())}), buffer)
    Path(tmp_path / "a.parquet").write_bytes(buffer.getvalue())
    rows, _ = read(tmp_path / "a.parquet")
    assert [fetch(uri, max_bytes=9999) for uri in rows["audio"].to_pylist()] == CONTENTS[:3]
