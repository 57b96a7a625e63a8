"""What a file is, by content, and which files a name leads to."""

from __future__ import annotations

import functools
import gzip
import io

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.errors import ConfigError, JobError
from pipeline.manifest.read import expand
from tests.support.cases import case
from tests.support.manifests import put, read

gzipped = functools.partial(gzip.compress, mtime=0)  # parameters are names of tests: no clock in them


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
        "d.jsonl": gzipped(line),
        "e.jsonl": zstd(line),
        "f.jsonl": b"\xef\xbb\xbf" + line,
        "g.csv": b"\xef\xbb\xbfid\taudio\r\n1\ta.wav\r\n",
        "h.csv": b"id;audio\n1;a.wav\n",
        "i.csv": gzipped(b'"id" , "audio"\n"1","a.wav"\n'.replace(b" , ", b",")),
        "j.jsonl": b"\n\n \r\n" + line,
        "k.jsonl.gz": gzipped(line[:9]) + gzipped(line[9:]) + b"\0" * 512,
        "l.jsonl.zst": zstd(line[:9]) + zstd(line[9:]),
        "m.csv": b"audio , id\na.wav,1\n",
        "n.csv": b'audio,"id"\n"a.wav",1',
        "PARENT.csv": b"PARENT,audio,id\nx,a.wav,1",
    }.items():
        rows, rejects = read(put(tmp_path / name, content))
        assert (rows["recording_id"].to_pylist(), rows["audio"].to_pylist()) == (["1"], [f"{tmp_path}/a.wav"]), name
        assert not rejects


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf", gzipped(b""), b"audio,id\n", b"audio"])
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
    (gzipped(gzipped(b"{}")), "compressed twice"),
    (gzipped(b"PAR1\0\0"), "Parquet"),
    (b"audio,audio\na,b\n", "'audio' and 'audio'"),
    (b"audio,x,X\na,b,c\n", "'x' and 'X'"),
    (b"audio,manifest_label,label\na,b,c\n", "the same column"),
    (b",audio\n0,a.wav\n", "index=False"),
    (b"audio,text\ra.wav,x\rb.wav,y\r", "header"),
    (b'audio,"text\na.wav,x\n', "header"),
    (b"PAR1 no it is not", "Parquet"),
    (b"PAR1\0\0\0\0PAR1", "Parquet"),
]


def test_junk_is_named(tmp_path) -> None:
    """Fails if a file that is no manifest is read as rows, or refused without saying what it looks like."""
    for content, word in JUNK:
        with case(content, word), pytest.raises(ConfigError, match=word):
            read(put(tmp_path / "m", content))


@pytest.mark.parametrize("compress", [gzipped, zstandard.ZstdCompressor(write_checksum=True).compress])
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
    with pytest.raises(ConfigError, match="incomplete|malformed" if damage == "flipped" else "incomplete"):
        read(put(tmp_path / "m.jsonl.gz", bytes(whole)))


def test_corrupt_parquet(tmp_path) -> None:
    """Fails if damaged pages crash the reader or give rows in silence."""
    pq.write_table(pa.table({"audio": [f"{i}.wav" for i in range(5000)]}), tmp_path / "m", use_dictionary=False)
    content = bytearray((tmp_path / "m").read_bytes())
    content[200:400] = b"\xff" * 200
    with pytest.raises(ConfigError, match="does not decode"):
        read(put(tmp_path / "m", bytes(content)))


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


def test_a_real_s3_server(s3) -> None:
    """Fails if listing, gzip over a range-read object, or the errors of a real store differ from those of a disk."""
    files = s3.filesystem()
    top = f"{s3.bucket}/manifest-test"
    files.pipe_file(f"{top}/b.jsonl.gz", gzipped(b'{"audio": "x.wav"}\n' * 50_000))
    files.pipe_file(f"{top}/deep/a.csv", b"audio\n../y.wav\n")
    files.pipe_file(f"{top}/deep/a.wav", b"")
    found = [f"s3://{top}/b.jsonl.gz", f"s3://{top}/deep/a.csv"]
    assert expand([f"s3://{top}"]) == expand([f"s3://{top}/*"]) == found
    assert read(found[0])[0].num_rows == 50_000
    assert read(found[1])[0]["audio"].to_pylist() == [f"s3://{top}/y.wav"]
    with pytest.raises(ConfigError, match=r"did you mean 'a.csv'"):
        expand([f"s3://{top}/deep/b.csv"])
    for missing in (f"s3://{top}/none.csv", "s3://no-such-bucket/m.csv"):
        with pytest.raises(ConfigError, match="does not exist"):
            read(missing)


@pytest.mark.parametrize(
    ("name", "words"),
    [("manfest.jsonl", "did you mean 'manifest.jsonl'"), ("none/m.jsonl", "nor does its folder"), ("*.csv", "does not"),
     ("empty", "no file with a manifest's extension"), ("simplecache::s3://b/m.jsonl", "chained"), ("warp://b/m", "warp")],
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
