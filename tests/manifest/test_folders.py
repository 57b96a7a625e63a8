"""Folders and globs given as manifests: what is left out of them, what is refused, what links lead to, and what is said."""

from __future__ import annotations

import itertools
import json
import logging
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ConfigError
from pipeline.manifest.read import expand
from tests.support.cases import case
from tests.support.corpus import AUDIO, ROOT
from tests.support.manifests import jsonl, read
from tests.support.s3_server import S3Server

ROWS = [{"id": name, "audio": f"{name}.wav", "label": "old"} for name in ("a", "b", "c")]


def corpus_with_output(corpus: Path) -> Path:
    """A folder with a manifest and, below it, an output as jobs.annotate leaves it."""
    for part in ("utterances/language=en/000001-000000.parquet", "rejects/000001.parquet", "compacted/0.parquet"):
        (corpus / "out" / part).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(ROWS), corpus / "out" / part)
    (corpus / "out/_runs/000001").mkdir(parents=True)
    jsonl(corpus / "out/_dataset.json", {"settings": {}})
    jsonl(corpus / "out/_runs/000001/plan.json", {})
    (corpus / "day-1").mkdir()
    jsonl(corpus / "day-1/m.jsonl", *ROWS)
    return corpus / "out"


# -- the output


NAMES_OF_THE_FOLDER = ["{c}", "{c}/", "{c}//", "file://{c}", ".", "../corpus", "{link}", "{link}/", "{c}/*", "{c}/*/*", "{c}/**",
                       "{c}/**/*", "{c}/[!x]*/", "{link}/**/*.*"]  # fmt: skip


NAMES_OF_THE_OUTPUT = ["{c}/out", "{c}/out/", "{link}/out", "out", "{out_link}", "file://{c}/out"]


def test_a_manifest_folder_that_holds_the_output_gives_its_own_manifests(tmp_path, monkeypatch, caplog):
    """Fails if a second night reads the first night's results as manifests, under whatever name folder and output go."""
    corpus = tmp_path / "corpus"
    corpus_with_output(corpus)
    (tmp_path / "link").symlink_to(corpus)
    (tmp_path / "out-link").symlink_to(corpus / "out")
    monkeypatch.chdir(corpus)
    names = {"c": str(corpus), "link": str(tmp_path / "link"), "out_link": str(tmp_path / "out-link")}
    for given, output in itertools.product(NAMES_OF_THE_FOLDER, NAMES_OF_THE_OUTPUT):
        with case(given, output):
            caplog.clear()
            manifests = expand([given.format(**names)], output=output.format(**names))
            assert [os.path.realpath(path) for path in manifests] == [str(corpus / "day-1/m.jsonl")]
            if given != "{c}/[!x]*/":
                assert "the output of this job" in caplog.text


def test_the_job_tells_the_search_where_its_output_is(tmp_path):
    """Fails if the driver looks for manifests without knowing what it must not read."""
    import io

    from pipeline.config import load_config
    from pipeline.engine.run import Driver

    (tmp_path / "out/utterances").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "out/utterances/000001-000000.parquet")
    jsonl(tmp_path / "m.jsonl", {"id": "u", "audio": "u.wav", "text": "t"})
    config = load_config(None, {"manifest": [str(tmp_path)], "output": f"{tmp_path}/out", "mode": "text"})
    described = Driver(config, io.StringIO()).describe()
    assert (described["manifests"], described["rows_new"]) == ([f"{tmp_path}/m.jsonl"], 1)


def test_a_link_into_the_output_is_no_way_in(tmp_path):
    """Fails if a link in the corpus, to the output or to a file of it, lets results back in."""
    corpus = tmp_path / "corpus"
    out = corpus_with_output(corpus)
    (corpus / "results").symlink_to(out)
    assert expand([str(corpus)], output=str(out)) == [f"{corpus}/day-1/m.jsonl"]
    (corpus / "best.parquet").symlink_to(out / "rejects/000001.parquet")
    with pytest.raises(ConfigError, match=r"is an output of jobs\.annotate"):
        expand([str(corpus)], output=str(out))


@pytest.mark.parametrize("given", ["out", "out/utterances", "out/utterances/language=en", "out/utterances/**/*.parquet", ".",
                                   "out/rejects/000001.parquet", "out/compacted", "*"])  # fmt: skip
def test_an_output_is_refused_as_a_manifest(tmp_path, monkeypatch, given):
    """Fails if an output, a folder in it or one below the folder given is annotated again, as new rows."""
    corpus_with_output(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path / "corpus")
    for output in (None, "elsewhere"):
        with pytest.raises(ConfigError, match=r"is an output of jobs\.annotate.*another --output"):
            expand([given], output=output)


def test_files_of_the_user_in_the_output_are_read_when_named(tmp_path):
    """Fails if a job whose manifest was always kept in its output folder can no longer be resumed."""
    out = corpus_with_output(tmp_path)
    mine = [str(jsonl(out / "m.jsonl", *ROWS)), str(out / "lists/n.jsonl")]
    (out / "lists").mkdir()
    jsonl(out / "lists/n.jsonl", *ROWS)
    assert expand([mine[0], f"{out}/lists"], output=str(out)) == mine
    assert expand([f"{out}/*.jsonl"], output=str(out)) == mine[:1]
    assert expand([f"{out}/*"], output=str(out)) == [mine[1], mine[0]]
    with pytest.raises(ConfigError, match="is an output"):
        expand([str(out)], output=str(out))


def test_the_output_below_a_prefix_of_a_bucket(s3: S3Server):
    """Fails if a bucket's prefix that holds the output is read with it, or another output there is read in silence."""
    files, top = s3.filesystem(), f"{s3.bucket}/holds-output"
    files.pipe_file(f"{top}/day/m.jsonl", b'{"audio": "a.wav"}\n')
    files.pipe_file(f"{top}/out/_dataset.json", b"{}")
    files.pipe_file(f"{top}/out/utterances/1.parquet", b"PAR1")
    for given in (f"s3://{top}", f"s3://{top}/", f"s3a://{top}", f"s3://{top}/*", f"s3://{top}/**/*"):
        for output in (f"s3://{top}/out", f"s3a://{top}/out/"):
            (found,) = expand([given], output=output)
            assert found.endswith(f"://{top}/day/m.jsonl")
        with pytest.raises(ConfigError, match="is an output"):
            expand([given], output=f"s3://{top}-2/out")
    with pytest.raises(ConfigError, match="is an output"):
        expand([f"s3://{top}/out/utterances"])


def test_a_conversion_does_not_read_what_it_wrote(tmp_path):
    """Fails if `make_manifest FOLDER --layout nemo --output FOLDER/x.jsonl --overwrite` doubles its rows when it is repeated."""
    from jobs.make_manifest import main

    jsonl(tmp_path / "nemo.jsonl", {"audio_filepath": "a.wav", "duration": 1.0})
    words = [str(tmp_path), "--layout", "nemo", "--overwrite", "--output", str(tmp_path / "ours.jsonl")]
    assert [main(words), main(words), main(words)] == [0, 0, 0]
    assert len((tmp_path / "ours.jsonl").read_text().splitlines()) == 1


# -- tables


def delta(folder: Path) -> None:
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(str(folder), pa.Table.from_pylist(ROWS), partition_by=["label"])
    DeltaTable(str(folder)).delete("id = 'b'")


def lance_table(folder: Path) -> None:
    import lance

    lance.write_dataset(pa.Table.from_pylist(ROWS), str(folder)).delete("id = 'b'")


def iceberg(folder: Path) -> None:
    (folder / "data").mkdir(parents=True)
    (folder / "metadata").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "data/00000-0-x.parquet")
    jsonl(folder / "metadata/00001-5f2e.metadata.json", {"format-version": 2})


def hudi(folder: Path) -> None:
    (folder / ".hoodie").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(ROWS), folder / "x_0-1-0_2024.parquet")


TABLES = {"Delta": delta, "Lance": lance_table, "Iceberg": iceberg, "Hudi": hudi}


@pytest.mark.parametrize("form", TABLES)
def test_a_table_whose_log_says_which_rows_count_is_refused(tmp_path, monkeypatch, form):
    """Fails if rows that were deleted from a table come back, by whatever name its files are reached."""
    (tmp_path / "lake").mkdir()
    table = tmp_path / "lake/calls"
    TABLES[form](table)
    jsonl(tmp_path / "lake/m.jsonl", *ROWS)
    (tmp_path / "link").symlink_to(table)
    files = sorted(path for path in table.rglob("*.parquet")) or sorted(table.rglob("data/*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/part.parquet").symlink_to(files[0])
    (tmp_path / "third").mkdir()
    (tmp_path / "third/part").symlink_to(files[0].parent)
    monkeypatch.chdir(tmp_path)
    given = ["lake/calls", "lake/calls/", "lake", "link", "lake/*", "lake/*/*", "lake/**/*.parquet", "lake/calls/*", "third",
             str(files[0]), str(files[0].parent), *(["other"] if form != "Lance" else [])]  # fmt: skip
    for name in given:
        with pytest.raises(ConfigError, match=f"table of the {form} format.*Export"):
            expand([name])
    assert expand(["lake/m.jsonl"]) == [str(tmp_path / "lake/m.jsonl")]


def test_the_export_that_is_advised_keeps_deleted_rows_deleted(tmp_path, monkeypatch):
    """Fails if the message on a Delta table names a command that does not run, or that brings deleted rows back."""
    delta(tmp_path / "calls")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        expand(["calls"])
    command = str(refused.value).partition("for example: ")[2]
    done = subprocess.run([sys.executable, *shlex.split(command)[1:]], check=False, cwd=tmp_path)
    assert done.returncode in (0, -signal.SIGABRT)  # threads of deltalake may abort at exit, when the file is complete
    assert sorted(read(tmp_path / "m.parquet")[0]["recording_id"].to_pylist()) == ["a", "c"]


def test_a_table_in_a_store_is_refused() -> None:
    """Fails if only tables on disk are recognised."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/tables/calls/_delta_log/0.json", b"{}")
    memory.pipe_file("/tables/calls/day=1/x.parquet", b"PAR1")
    for name in ("", "/calls", "/*", "/calls/day=1", "/calls/day=1/x.parquet", "/**/*.parquet"):
        with pytest.raises(ConfigError, match="Delta"):
            expand([f"memory://tables{name}"])


# -- what is skipped, and said


def test_hidden_files_are_skipped_as_other_readers_do_and_said_where_rows_could_be_missed(tmp_path, caplog):
    """Fails if Spark's markers are read or lamented, or a hidden manifest, or a form that is not read, is skipped in silence."""
    for name in ("_SUCCESS", "_committed_12", "_started_12", ".part-0.parquet.crc", "._m.jsonl", "a.wav", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    jsonl(tmp_path / "m.jsonl", *ROWS)
    assert expand([str(tmp_path)]) == [f"{tmp_path}/m.jsonl"] and not caplog.records
    jsonl(tmp_path / "_n.jsonl", *ROWS)
    (tmp_path / ".old").mkdir()
    (tmp_path / "000000_0").write_bytes(b"x")
    (tmp_path / "p.orc").write_bytes(b"x")
    assert expand([str(tmp_path)]) == [f"{tmp_path}/m.jsonl"]
    assert (
        f"left out: 2, names that begin with '.' or '_' are read only when given explicitly: {tmp_path}/.old"
        in caplog.text
    )
    assert f"left out: 2, possibly a manifest, but not named like one: {tmp_path}/000000_0" in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    assert expand([f"{tmp_path}/_*.jsonl"]) == [f"{tmp_path}/_n.jsonl"]


@pytest.mark.parametrize("name", ["odd[1]", "what?", "a*b", "[!x]", "{a,b}", "100%", "a b", "day=1"])
def test_names_with_glob_characters_mean_themselves(tmp_path, name):
    """Fails if a file or folder that is really named like a pattern is not found, or others are taken for it."""
    for each in (name, "odd1", "whatX", "aXb", "y"):
        (tmp_path / each).mkdir()
        jsonl(tmp_path / each / f"{name}.jsonl", *ROWS)
    wanted = [f"{tmp_path}/{name}/{name}.jsonl"]
    assert expand([f"{tmp_path}/{name}"]) == expand(wanted) == wanted


def test_a_folder_without_manifests_says_what_it_holds(tmp_path):
    """Fails if somebody who gives a folder of audio, or of hidden files, is not told what to do."""
    for number in range(3):
        (tmp_path / f"{number}.WAV").write_bytes(b"RIFF")
    (tmp_path / "_hidden.jsonl").write_bytes(b"")
    with pytest.raises(ConfigError) as refused:
        expand([f"{tmp_path}/"])
    message = str(refused.value)
    assert "no file with a manifest's extension" in message and "3 audio files" in message and "1 left out" in message
    assert f"python -m jobs.make_manifest {tmp_path}/ --output manifest.jsonl" in message


@pytest.mark.parametrize("clip", ["en_16k_pcm16.wav", "x.mp3", "y.m4a", "z z.opus", "t.amr"])
def test_an_audio_file_as_manifest_names_the_command_that_makes_one(tmp_path, clip):
    """Fails if `--manifest call.wav` says what is wrong and not what to do."""
    content = {
        "x": b"\xff\xfb\x90\x64" + bytes(300),
        "y": b"\0\0\0\x20ftypM4A \0\0\0\0",
        "t": b"#!AMR\n\x3c\x08\xff\0\x01",
    }
    (tmp_path / clip).write_bytes(content.get(clip[0], (AUDIO / "en_16k_pcm16.wav").read_bytes()))
    with pytest.raises(ConfigError) as refused:
        read(tmp_path / clip)
    quoted = f"'{tmp_path}/{clip}'" if " " in clip else f"{tmp_path}/{clip}"
    assert f"python -m jobs.make_manifest {quoted} --output manifest.jsonl" in str(refused.value)


# -- folders that cannot be listed, links, names that are not UTF-8


def test_folders_behind_links_are_read_once_under_their_real_name(tmp_path):
    """Fails if a linked folder is skipped, a loop never ends, or `latest -> day-1` gives every row twice."""
    (tmp_path / "disk-2/day-2").mkdir(parents=True)
    (tmp_path / "corpus/day-1").mkdir(parents=True)
    corpus = tmp_path / "corpus"
    jsonl(corpus / "day-1/m.jsonl", *ROWS)
    jsonl(tmp_path / "disk-2/day-2/m.jsonl", *ROWS)
    (corpus / "day-2").symlink_to("../disk-2/day-2")
    (corpus / "a-latest").symlink_to("day-1")
    (corpus / "day-1/loop").symlink_to(corpus)
    (corpus / "self").symlink_to("self")
    (tmp_path / "disk-2/day-2/back").symlink_to(tmp_path / "disk-2")
    wanted = [f"{corpus}/day-1/m.jsonl", f"{corpus}/day-2/m.jsonl"]
    for given in (corpus, f"{corpus}/**/*.jsonl", f"{corpus}/*/m.jsonl", f"{corpus}/*"):
        assert expand([str(given)]) == wanted or set(expand([str(given)])) == {*wanted, f"{corpus}/self"}


def test_random_trees_of_links_lose_and_double_nothing(tmp_path):
    """Fails if some arrangement of folders and links hides a manifest or reads one twice."""
    for seed in range(20):
        chance, top = random.Random(seed), tmp_path / str(seed) / "corpus"
        top.mkdir(parents=True)
        outside = tmp_path / str(seed) / "outside"
        folders = [top, outside]
        for number in range(8):
            folders.append(chance.choice(folders) / f"d{number}")
        for folder in folders:
            folder.mkdir(exist_ok=True, parents=True)
            jsonl(folder / "m.jsonl", *ROWS)
        for number in range(6):
            (chance.choice(folders) / f"l{number}").symlink_to(chance.choice(folders))
        (top / "out-there").symlink_to(outside)
        found = expand([str(top)])
        wanted = {str(folder / "m.jsonl") for folder in folders}
        assert sorted(map(os.path.realpath, found)) == sorted(wanted), seed
        assert {path for path in wanted if path.startswith(f"{top}/")} <= set(found), seed


UNLISTABLE = """
import os, sys
import jobs.make_manifest as command, pipeline.manifest.read as manifests
import pipeline.manifest.sources.files, pipeline.audio.decode, fsspec.implementations.local
from pipeline.errors import ConfigError
folder = sys.argv[1]
if os.getuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for source in (folder, folder + "/*", folder + "/**/*"):
    print(command.main([source, "--output", folder + "/../made.jsonl"]))
    try:
        print(len(manifests.expand([source])))
    except ConfigError as error:
        print(error)
"""


@pytest.mark.parametrize("closed", ["day-2", "deep/er", "lost+found", ".Trashes"])
def test_a_folder_that_may_not_be_listed_is_named(closed):
    """Fails if make_manifest or --manifest FOLDER leaves out a closed folder in silence, or stops for the system's own."""
    with tempfile.TemporaryDirectory(dir="/tmp") as top:
        folder = Path(top) / "corpus"
        (folder / closed).mkdir(parents=True)
        (folder / "day-1").mkdir()
        jsonl(folder / "day-1/m.jsonl", {"audio": "a.wav"})
        (folder / "day-1/a.wav").write_bytes(b"RIFF")
        (folder / closed).chmod(0)
        Path(top).chmod(0o777)
        done = subprocess.run([sys.executable, "-c", UNLISTABLE, str(folder)], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)  # fmt: skip
        (folder / closed).chmod(0o700)
        if closed in ("lost+found", ".Trashes"):
            assert "2" not in done.stdout.splitlines()[:2] and f"{folder}/{closed}" in done.stderr
        else:
            assert done.stdout.splitlines()[0] == "2" and f"{folder}/{closed} may not be listed" in done.stdout
            assert f"{folder}/{closed} may not be listed" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", [b"caf\xe9", b"\xff\xfe", b"ok\xc3", b"deep\xa0/a"])
def test_a_name_that_is_not_utf8_costs_itself_alone(tmp_path, capsys, name):
    """Fails if one file name in another encoding stops the night, is lost in silence, or is written into a manifest."""
    from jobs.make_manifest import main

    odd = Path(os.fsdecode(os.fsencode(tmp_path / "in") + b"/" + name + b".wav"))
    odd.parent.mkdir(parents=True, exist_ok=True)
    odd.write_bytes(b"RIFF")
    (tmp_path / "in/ok.wav").write_bytes(b"RIFF")
    for options in ([], ["--versions"]):
        assert main([str(tmp_path / "in"), "--overwrite", "--output", str(tmp_path / "m.jsonl"), *options]) == 0
        (line,) = (tmp_path / "m.jsonl").read_bytes().decode("utf-8").splitlines()
        assert json.loads(line)["audio"] == f"{tmp_path}/in/ok.wav"
        assert "left out: 1, names that are not UTF-8" in capsys.readouterr().err
    assert main([str(odd), "--overwrite", "--output", str(tmp_path / "m.jsonl")]) == 2
    jsonl(tmp_path / "in/ok.jsonl", *ROWS)
    odd.rename(odd.with_suffix(".jsonl"))
    with pytest.raises(ConfigError, match=r"\\x.*not UTF-8.*rename"):
        expand([str(tmp_path / "in")])


def test_names_that_begin_with_a_dot_are_counted(tmp_path, capsys):
    """Fails if make_manifest leaves out a recording whose name begins with a dot without a message."""
    from jobs.make_manifest import main

    for name in (".a.wav", "b.wav", "day/.c.wav"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"RIFF")
    assert main([str(tmp_path / "in"), "--output", str(tmp_path / "m.jsonl")]) == 0
    said = capsys.readouterr()
    assert "1 rows" in said.out and f"left out: 2, names that begin with a dot: {tmp_path}/in/.a.wav" in said.err
