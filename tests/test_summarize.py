from __future__ import annotations

from collections import Counter, defaultdict
from itertools import pairwise

import duckdb
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.summarize import main
from pipeline.analytics.summarize import merged, parse_groups, summarize
from pipeline.analytics.tables import finished_rows
from pipeline.errors import ConfigError, JobError
from pipeline.schema import EMOTIONS
from pipeline.storage import open_store
from tests.outputs import FIRST, LONG, SECOND, annotate, finished_output, plan_rows, publish_plan


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
    with pytest.raises(JobError, match="cannot be read"):
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
     (["a=read_csv('/etc/passwd')"], "cannot be asked"), (["a=(SELECT 1 FROM '/etc/passwd')"], "cannot be asked")],
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
    assert "is there already" in capsys.readouterr().err
    assert main([str(tmp_path), "--by", "speaker"]) == 2
    assert "no output of this pipeline" in capsys.readouterr().err
