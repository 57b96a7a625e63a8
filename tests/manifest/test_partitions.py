"""Columns that stand in the names of a manifest's folders, as Hive, Spark and pandas write them."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError, Reason
from pipeline.manifest.read import expand
from tests.support.manifests import jsonl, put, read

NULL = "__HIVE_DEFAULT_PARTITION__"


def in_folders(top: Path, folders: str, name: str) -> Path:
    path = top / folders / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


@pytest.mark.parametrize("form", ["parquet", "jsonl", "csv", "tsv"])
def test_columns_of_hive_folders_are_text_columns(tmp_path, form):
    """Fails if `language=es/speaker=007` is dropped, so that Spanish is read as English, or 007 becomes 7."""
    for language in ("es", "en"):
        path = in_folders(tmp_path / "hive", f"language={language}/speaker=007/channel=1", f"part-0.{form}")
        if form == "parquet":
            pq.write_table(pa.table({"id": [language], "audio": ["/a.wav"]}), path)
        elif form == "jsonl":
            jsonl(path, {"id": language, "audio": "/a.wav"})
        else:
            tab = "\t" if form == "tsv" else ","
            put(path, f"id{tab}audio\n{language}{tab}/a.wav\n")
    put(tmp_path / "hive/_SUCCESS", "")
    found = expand([str(tmp_path / "hive")])
    assert found == expand([f"{tmp_path}/hive/*/*/*/*.{form}"]) and len(found) == 2
    for path, language in zip(found, ("en", "es"), strict=True):
        rows, rejects = read(path)
        assert not rejects and rows["language"].to_pylist() == rows["recording_id"].to_pylist() == [language]
        assert rows["channel"].to_pylist() == [1]
        assert (rows["speaker"].type, rows["speaker"].to_pylist()) == (pa.string(), ["007"])


def test_values_come_back_as_pyarrow_wrote_them(tmp_path):
    """Fails if a partition's value is read otherwise than a writer meant it: percent-encoded, empty of value, with `=` in it."""
    chance = random.Random(4)
    alphabet = "ab7é/=% :?#'\"\\+&."
    values = ["007", "a/b", "x=y", "50%", "é ñ", "1e3", "true", None] + [
        "v" + "".join(chance.choices(alphabet, k=6)) for _ in range(20)
    ]
    table = pa.table({"audio": [f"/{i}.wav" for i in range(len(values))], "shelf": values})
    ds.write_dataset(table, tmp_path, format="parquet", partitioning=["shelf"], partitioning_flavor="hive")
    found = {}
    for path in expand([str(tmp_path)]):
        rows, rejects = read(path)
        assert not rejects
        found |= dict(zip(rows["audio"].to_pylist(), rows["shelf"].to_pylist(), strict=True))
    assert found == {f"/{i}.wav": value for i, value in enumerate(values)}


def test_a_column_in_file_and_folder_must_agree(tmp_path):
    """Fails if a row whose own language contradicts its folder is annotated by either, or one that agrees is rejected."""
    path = jsonl(
        in_folders(tmp_path, "Language=es/take=7", "m.jsonl"),
        {"id": "same", "audio": "/a.wav", "language": "es", "take": 7},
        {"id": "silent", "audio": "/b.wav", "language": None},
        {"id": "other", "audio": "/c.wav", "language": "en", "take": 7},
        {"id": "text", "audio": "/d.wav", "take": "07"},
    )
    rows, rejects = read(path)
    assert rows["recording_id"].to_pylist() == ["same", "silent"] and rows["language"].to_pylist() == ["es", "es"]
    assert [str(take) for take in rows["take"].to_pylist()] == ["7", "7"]
    assert [(r.recording_id, r.cause.reason) for r in rejects] == [
        ("other", Reason.BAD_FIELD),
        ("text", Reason.BAD_FIELD),
    ]
    assert "'language' is 'en' in the file" in rejects[0].cause.detail and "'es'" in rejects[0].cause.detail
    for name, column, bad in (("k.parquet", pa.array([7, 8]), 1), ("d.parquet", pa.array(["7", None]), 0)):
        pq.write_table(pa.table({"audio": ["/a.wav", "/b.wav"], "take": column}), in_folders(tmp_path, "take=7", name))
        rows, rejects = read(tmp_path / "take=7" / name)
        assert len(rejects) == bad and set(map(str, rows["take"].to_pylist())) == {"7"}


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        ("a=1/a=2", "two values of 'a'"),
        ("a%0Ab=1", "control character"),
        ("%20=1", "no name"),
    ],
)
def test_folders_that_cannot_be_columns_are_refused(tmp_path, folders, words):
    """Fails if a folder's column is dropped in silence because its name or value cannot be one."""
    path = jsonl(in_folders(tmp_path, folders, "m.jsonl"), {"audio": "/a.wav"})
    with pytest.raises(ConfigError, match=words):
        read(path)


def test_null_partitions_and_plain_folders(tmp_path):
    """Fails if Hive's word for null becomes a value, or a folder without `=` a column."""
    path = jsonl(
        in_folders(tmp_path, f"language={NULL}/shelf={NULL}/plain/=x", "a=b.jsonl"), {"audio": "/a.wav", "text": "t"}
    )
    rows, rejects = read(path)
    assert not rejects and rows["language"].to_pylist() == rows["shelf"].to_pylist() == [None]
    assert "a" not in rows.schema.names and "plain" not in rows.schema.names


def test_a_url_states_columns_too_but_not_in_its_query():
    """Fails if a pre-signed query is taken for columns."""
    from pipeline.manifest.partitions import partition_columns

    assert partition_columns("https://h/lang%75age=es/day=1%2F2/m.jsonl?X-Sig=a/b=c/d") == {
        "language": "es",
        "day": "1/2",
    }
    assert partition_columns("s3://b/k=v/m.parquet") == {"k": "v"} and partition_columns("/x/m=1.jsonl") == {}


def test_spanish_folders_go_to_the_spanish_model(tmp_path):
    """Fails if a row's language in the folder's name does not choose its model."""
    import io

    from pipeline.engine.run import Driver

    for language in ("en", "es"):
        jsonl(
            in_folders(tmp_path / "m", f"language={language}", "m.jsonl"),
            {"id": language, "audio": "/a.wav", "text": "t"},
        )
    config = load_config(None, {"manifest": [str(tmp_path / "m")], "output": str(tmp_path / "out"), "mode": "text"})
    assert sorted(Driver(config, io.StringIO()).describe()["models"]) == ["fusion/en", "fusion/es"]
