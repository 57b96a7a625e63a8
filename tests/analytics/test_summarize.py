from __future__ import annotations

import shlex
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.summarize import main
from pipeline.analytics.printed import table_lines
from pipeline.analytics.summarize import TIMED, merged, parse_groups, summarize
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError, JobError
from pipeline.schema import EMOTIONS
from pipeline.storage.store import open_store
from tests.support.corpus import ROOT
from tests.support.outputs import FIRST, LONG, SECOND, annotate, finished_output, plan_rows, publish_plan


def summarized(output, *words):
    rows = finished_rows(open_store(output))
    groups = parse_groups(words, rows.schema().names)
    done = [plan for plan, _ in summarize(rows, groups)]
    return done, merged(rows.store, groups).to_pylist()


def utterances(output):
    return ds.dataset(f"{output}/utterances", partitioning="hive").to_table().sort_by("utterance_id").to_pylist()


def test_sums_are_those_of_a_loop_over_the_rows(tmp_path):
    """Fails if a share, a transition, a first or last emotion or a length is not what plain Python counts."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    done, rows = summarized(str(tmp_path / "out"), "speaker")
    assert done == ["000001", "000002"]
    by_speaker = defaultdict(list)
    for row in utterances(tmp_path / "out"):
        by_speaker[row["speaker"]].append(row)
    assert [row["speaker"] for row in rows] == sorted(by_speaker)
    for row in rows:
        mine = by_speaker[row["speaker"]]
        count = Counter(r["emotion"] for r in mine)
        assert row["utterances"] == len(mine) and row["recordings"] == len({r["recording_id"] for r in mine})
        assert row["share"] == pytest.approx({e: count[e] / len(mine) for e in EMOTIONS})
        assert row["speech_s"] == pytest.approx(1.25 * len(mine)) and row["share_s"] == pytest.approx(row["share"])
        assert row["confidence"] == pytest.approx(sum(r["confidence"] for r in mine) / len(mine))
        assert row["confidence_max"] == pytest.approx(max(r["confidence"] for r in mine))
        # three segments of 1.25 s, one every 1.5 s, end at 4.25 s
        long = any(r["recording_id"] == LONG for r in mine)
        assert row["length_s"] == pytest.approx(1.25 * (row["recordings"] - long) + 4.25 * long)
        told = [r["emotion"] for r in mine if r["recording_id"] == LONG]
        moves = Counter(pairwise(told))
        assert {(a, b): n for a in EMOTIONS for b, n in row["transitions"][a].items() if n} == dict(moves)
        assert row["changes"] == (
            pytest.approx(sum(a != b for a, b in moves.elements()) / moves.total()) if long else None
        )


def test_a_bucket_is_summed_up_as_a_folder_is(tmp_path, s3):
    """Fails if rows in object storage are read otherwise than on disk, or summaries cannot be written or read there."""
    here, there = str(tmp_path / "out"), f"s3://{s3.bucket}/summarize"
    found = []
    for output in (here, there):
        finished_output(output, tmp_path / "m")
        found.append(summarized(output, "speaker", "half=take // 6"))
    assert found[0] == found[1] and found[0][0] == ["000001", "000002"]


def test_one_recording_is_told_from_its_first_to_its_last_emotion(tmp_path):
    """Fails if order inside a recording is lost: by segment it is, not by name or by file."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    _, rows = summarized(str(tmp_path / "out"), "recording_id")
    told = [row["emotion"] for row in utterances(tmp_path / "out") if row["recording_id"] == LONG]
    (row,) = [row for row in rows if row["recording_id"] == LONG]
    assert (row["opens_with"], row["closes_with"]) == (told[0], told[-1]) and told[0] != told[-1]


def test_the_manifest_knows_how_long_a_recording_is(tmp_path):
    """Fails if silence after the last word, which the manifest's duration covers, is not part of the length."""
    store = open_store(str(tmp_path / "out"))
    plan = plan_rows(store, tmp_path / "m", [{**FIRST[1], "duration": 10.0}, {**FIRST[3], "duration": 2.5}])
    annotate(str(tmp_path / "out"), plan)
    publish_plan(store, plan)
    _, (row,) = summarized(str(tmp_path / "out"), "speaker")
    assert row["length_s"] == 12.5 and row["speech_share"] == pytest.approx(4 * 1.25 / 12.5)


def one_run(folder: Path, records: list[dict[str, object]]) -> str:
    """An output with one finished run of these rows."""
    output = str(folder / "out")
    store = open_store(output)
    plan = plan_rows(store, folder / "m", records)
    annotate(output, plan)
    publish_plan(store, plan)
    return output


@pytest.mark.parametrize("known", [[1], [3, 5], []], ids=["the long one", "others", "none"])
def test_the_share_of_speech_is_over_recordings_of_one_kind(tmp_path, known):
    """Fails if the speech of recordings whose duration is unknown counts against the durations of the others, or a recording
    up to its last word is taken for a whole one."""
    durations = {n: 6.0 + n for n in known}
    records = [{**FIRST[n], **({"duration": durations[n]} if n in durations else {})} for n in (1, 3, 5)]
    output = one_run(tmp_path, records)
    _, (row,) = summarized(output, "speaker")
    speech = {1: 3 * 1.25, 3: 1.25, 5: 1.25}
    expected = sum(speech[n] for n in known) / sum(durations.values()) if known else None
    assert row["speech_share"] == (pytest.approx(expected) if known else None)
    assert row["speech_s"] == pytest.approx(5 * 1.25)
    # divided into groups, a recording's speech is still over its whole duration
    _, rows = summarized(output, "recording_id", "second=floor(start_s / 2)")
    parts = [row["speech_share"] for row in rows if row["recording_id"] == LONG]
    assert len(parts) == 2
    if 1 in known:
        assert sum(parts) == pytest.approx(3 * 1.25 / durations[1])
    else:
        assert parts == [None, None]


def test_summaries_of_an_earlier_version_are_read(tmp_path):
    """Fails if files without the sums behind the share of speech cannot be added up with those that have them."""
    output = str(tmp_path / "out")
    finished_output(output, tmp_path / "m")
    _, before = summarized(output, "speaker")
    file = tmp_path / "out/summaries/speaker/000001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(list(TIMED)), file)
    assert summarized(output, "speaker") == ([], before)
    assert [row["speech_share"] for row in before] == [None] * 3


def printed(capsys, output: str, *arguments: str) -> tuple[list[str], list[list[str]], str]:
    """The header and the cells of the table, and everything that was printed."""
    assert main([output, "--by", *arguments]) == 0
    found = capsys.readouterr()
    table = found.out.partition("\n\n")[2].splitlines()
    rows = [line.split() for line in table[1:] if "more groups" not in line]
    return table[0].split(), rows, found.out + found.err


@pytest.mark.parametrize("count", [21, 120])
def test_every_group_and_every_emotion_is_printed(tmp_path, capsys, monkeypatch, count):
    """Fails if a table is cut to 20 rows, or emotions are left out because the groups have long names."""
    monkeypatch.setenv("COLUMNS", "80")
    records = [
        {"id": f"r{n:03d}-{'x' * 90}", "audio": f"/a/{n}.wav", "text": "t", "speaker": "a", "take": n}
        for n in range(count)
    ]
    output = one_run(tmp_path, records)
    header, rows, said = printed(capsys, output, "recording_id")
    assert [name for name in header if name in EMOTIONS] == list(EMOTIONS)
    assert [row[0] for row in rows] == [row["id"] for row in records] and "more groups" not in said
    header, rows, said = printed(capsys, output, "recording_id", "--rows", "5")
    assert len(rows) == 5 and f"{count - 5} more groups; --rows {count} prints all, --to FILE writes all" in said


def test_a_terminal_shows_every_column_in_blocks_and_says_how_many_groups_there_are(tmp_path, capsys, monkeypatch):
    """Fails if a narrow terminal hides a column, a block lacks the groups, or groups that are not printed go unmentioned."""
    records = [{**FIRST[2], "id": f"r{n:03d}", "audio": f"/a/{n}.wav"} for n in range(60)]
    output = one_run(tmp_path, records)
    monkeypatch.setattr("jobs.summarize.terminal_width", lambda: 60)
    _, _, said = printed(capsys, output, "recording_id")
    lines = said.partition("\n\n")[2].splitlines()
    assert max(map(len, lines[:-1])) <= 60 and "10 more groups; --rows 60" in lines[-1]
    headers = [line.split() for line in lines if line.startswith("recording_id")]
    assert len(headers) > 1 and {name for header in headers for name in header} >= set(EMOTIONS)
    assert len([line for line in lines if line.startswith("r000")]) == len(headers)


def test_cells_are_printed_as_they_are():
    """Fails if a value is cut without a mark, moves the cursor of the terminal, or a row goes missing."""
    table = pa.table({"name": ["a\x1b[2J", "b" * 30, None], "count": [1, 20, 3], "mean": [0.5, None, 2.0]})
    assert [line.split() for line in table_lines(table)] == [
        ["name", "count", "mean"], ["a\\x1b[2J", "1", "0.5"], ["b" * 30, "20", "NULL"], ["NULL", "3", "2"],
    ]  # fmt: skip
    assert len({len(line) for line in table_lines(table)}) == 1  # numbers end below each other
    narrow = list(table_lines(table, width=20))
    assert f"{'b' * 19}…     20" in narrow and narrow.count("") == 1


def test_minutes_are_whole_and_a_division_that_is_not_is_pointed_out(tmp_path, capsys):
    """Fails if the example for minutes makes a group of each utterance, or `//` on seconds does so without a word."""
    output = one_run(tmp_path, FIRST)
    _, rows, said = printed(capsys, output, "minute=floor(start_s / 60)")
    assert [row[:3] for row in rows] == [["0", "10", "12"]] and "note:" not in said
    _, rows, said = printed(capsys, output, "part=start_s // 60")
    assert len(rows) > 1 and "note: part is not a whole number in every group" in said and "floor(a / b)" in said
    _, rows, said = printed(capsys, output, "half=take // 6")
    assert len(rows) == 2 and "note:" not in said


def test_the_examples_of_the_documentation_run(tmp_path, capsys):
    """Fails if a command for summaries in README.md or docs/ is refused, or divides one recording into a group an utterance."""
    output = one_run(tmp_path, FIRST)
    found = 0
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for line in page.read_text(encoding="utf-8").splitlines():
            if (
                line.startswith("    python -m jobs.summarize out ") and "recorded_at" not in line
            ):  # a column of some manifests
                words = shlex.split(line.partition("    #")[0])[4:]
                words = [
                    word if not word.endswith(".parquet") else str(tmp_path / f"{found}.parquet") for word in words
                ]
                assert main([output, *words]) == 0, line
                found += 1
                said = capsys.readouterr()
                assert "note:" not in said.err
                if "recording_id" in words:
                    assert len([row for row in said.out.splitlines() if row.split()[:1] == [LONG]]) == 1
    assert found >= 3


def test_each_night_adds_its_own_file_and_reads_nothing_else(tmp_path):
    """Fails if a run is summarised twice, an unfinished one at all, or one that is summarised is read again."""
    output = str(tmp_path / "out")
    store = open_store(output)
    for number, records in enumerate([FIRST, SECOND]):
        plan = plan_rows(store, tmp_path / str(number), records)
        annotate(output, plan, shards=None if number == 0 else [0])
        if number == 0:
            publish_plan(store, plan)
    assert summarized(output, "speaker", "half=take // 6")[0] == ["000001"]
    written = tmp_path / "out/summaries/speaker+half/000001.parquet"
    before = written.stat().st_mtime_ns
    for part in (tmp_path / "out/utterances").rglob("000001-*.parquet"):
        part.write_bytes(b"gone bad")
    annotate(output, plan, shards=[1])
    publish_plan(store, plan)
    done, rows = summarized(output, "speaker", "half=take // 6")
    assert done == ["000002"] and written.stat().st_mtime_ns == before
    assert sum(row["recordings"] for row in rows) == 10 + 3
    assert summarized(output, "speaker", "half=take // 6")[0] == []
    with pytest.raises(JobError, match="cannot read the rows"):
        summarized(output, "take")  # groups nobody made yet need the damaged files


def test_any_reader_may_add_up_the_files(tmp_path):
    """Fails if a file that is not a summary lies among them, or a group counts one utterance in two files."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    summarized(str(tmp_path / "out"), "label")
    query = (
        f"SELECT label, sum(utterances), sum(by_emotion.joy) FROM '{tmp_path}/out/summaries/label/*.parquet' GROUP BY 1"
    )
    counts = Counter(row["label"] for row in utterances(tmp_path / "out"))
    assert {label: n for label, n, _ in duckdb.sql(query).fetchall()} == counts
    assert sum(joy for _, _, joy in duckdb.sql(query).fetchall()) == counts["joy"]


def test_groups_of_another_meaning_take_another_name(tmp_path):
    """Fails if one folder mixes two expressions, or an expression that could not be run keeps the name for itself."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    output = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="nope"):
        summarized(output, "part=nope(take)")
    summarized(output, "part=take // 6")
    with pytest.raises(ConfigError, match="another name"):
        summarized(output, "part=take // 7")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["speeker"], "did you mean 'speaker'"), (["speaker,speaker"], "twice"), (["utterances=take"], "every summary"),
     (["a=read_csv('/etc/passwd')"], "cannot be run"), (["a=(SELECT 1 FROM '/etc/passwd')"], "cannot be run")],
)  # fmt: skip
def test_groups_that_cannot_be_made_are_refused(tmp_path, words, sentence):
    """Fails if a slip of the pen is not named, or SQL opens files."""
    finished_output(str(tmp_path / "out"), tmp_path / "m")
    with pytest.raises(ConfigError, match=sentence):
        summarized(str(tmp_path / "out"), *words)


def test_the_command(tmp_path, capsys):
    """Fails if the command does not print what it found, writes over a file, or takes a folder that is none."""
    output, table = str(tmp_path / "out"), tmp_path / "speakers.parquet"
    finished_output(output, tmp_path / "m")
    assert main([output, "--by", "speaker", "--to", str(table)]) == 0
    assert "2 new, 2 runs" in capsys.readouterr().out and pq.read_table(table).num_rows == 3
    assert main([output, "--by", "speaker", "--to", str(table)]) == 2
    assert "already exists" in capsys.readouterr().err
    assert main([str(tmp_path), "--by", "speaker"]) == 2
    assert "no output of this pipeline" in capsys.readouterr().err
