"""Call metrics: hand counts of a short conversation, and random conversations against a count of 10 ms steps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.calls import main
from pipeline.analytics.calls import metrics
from pipeline.analytics.calls.columns import CALL_COLUMNS, LEAST_OVERLAP_S, QUARTERS
from pipeline.analytics.calls.metrics import call_rows, measure_calls, parse_calls
from pipeline.dataset.plan import read_shard
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.schema import EMOTIONS
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import open_store
from tests.support.outputs import plan_rows, publish_plan, recognised


class Said(NamedTuple):
    """One utterance of a made-up conversation; times in s."""

    call: str
    channel: int
    start_s: float
    end_s: float
    emotion: str | None
    text: str = "one two three"
    loudness_dbfs: float | None = -20.0
    arousal: float | None = None


def output_of(folder: Path, *nights: Sequence[Said]) -> str:
    """Write an output with a published plan for each night, each utterance a row of its own."""
    output = str(folder / "out")
    store = open_store(output)
    for night, script in enumerate(nights):
        records = [
            {
                "id": "/".join(map(str, said[:5])), "audio": f"/a/{said.call}.wav", "channel": said.channel, "text": said.text,
                "offset": said.start_s, "duration": said.end_s - said.start_s, "speaker": "x", "number": number,
            }
            for number, said in enumerate(script)
        ]  # fmt: skip
        plan = plan_rows(store, folder / str(night), records, shard_rows=64)
        for shard in plan.shards():
            rows = read_shard(store, shard)
            told = [script[number] for number in rows["number"].to_pylist()]
            table = recognised(rows, shard.number)
            values = {
                **{name: pa.array([getattr(said, name) for said in told]) for name in ("start_s", "end_s", "text")},
                **{
                    name: pa.array([getattr(said, name) for said in told], pa.float32())
                    for name in ("loudness_dbfs", "arousal")
                },
                "emotion": pa.array([said.emotion for said in told], pa.string()),
            }
            for name, column in values.items():
                table = table.set_column(table.schema.get_field_index(name), name, column)
            assert finish(Work(output, plan, AudioRoots.parse(("/a",), [])), shard, table, {}).won
        publish_plan(store, plan)
    return output


def measured(output: str, *by: str, speaker: str = "channel") -> dict[tuple[str | None, ...], dict[str, object]]:
    rows = finished_rows(open_store(output))
    calls = parse_calls(by or ["audio"], speaker, rows.schema().names)
    list(measure_calls(rows, calls))
    names = list(calls.groups.by)
    return {(*(row[name] for name in names), row["speaker"]): row for row in call_rows(rows.store, calls).to_pylist()}


TALK = [
    Said("one", 0, 0.0, 4.0, "neutral", "good morning how can I help", -20.0, 0.2),
    Said("one", 1, 4.5, 9.0, "anger", "my parcel is lost", -10.0, 0.9),
    Said("one", 0, 8.0, 10.0, "neutral", "I am", -20.0, 0.4),  # cuts in with 1 s to go, and ends later
    Said("one", 1, 10.3, 14.0, "anger", "", -10.0),
    Said("one", 0, 13.8, 15.0, None, "sorry", None),  # an overlap of 0.2 s is that of the cuts
    Said("one", 1, 16.0, 20.0, "joy", "thank you", -10.0, 0.5),
    Said("one", 0, 17.0, 18.0, "joy", "bye", -20.0),  # a word in between, which takes nothing over
    Said("two", 0, 1.0, 2.0, "fear"),
]
"""A call of 20 s with 4, 4 and 8 s in its quarters, and another with one utterance."""


def test_figures_are_those_of_a_hand_count(tmp_path):
    """Fails if any figure of a call or a speaker is not what counting by hand gives."""
    rows = measured(output_of(tmp_path, TALK))
    assert list(rows) == [
        ("/a/one.wav", None),
        ("/a/one.wav", "0"),
        ("/a/one.wav", "1"),
        ("/a/two.wav", None),
        ("/a/two.wav", "0"),
    ]
    call, agent, customer = (rows["/a/one.wav", speaker] for speaker in (None, "0", "1"))
    assert [row["length_s"] for row in rows.values()] == [20.0, 20.0, 20.0, 2.0, 2.0]
    assert [row["talk_s"] for row in (agent, customer, call)] == pytest.approx([8.2, 12.2, 4 + 5.5 + 4.7 + 4])
    assert [row["silence_s"] for row in (agent, customer, call)] == pytest.approx([11.8, 7.8, 1.8])
    assert [row["overlap_s"] for row in (agent, customer, call)] == pytest.approx([2.2] * 3)
    assert [row["interruptions"] for row in (agent, customer, call)] == [1, 0, 1]
    assert [row["words"] for row in (agent, customer, call)] == [6 + 2 + 1 + 1, 4 + 2, 16]
    assert [row["worded_s"] for row in (agent, customer)] == pytest.approx([8.2, 8.5])
    assert (agent["first_emotion"], agent["last_emotion"], call["first_emotion"]) == ("neutral", "joy", "neutral")
    assert {e: n for e, n in customer["by_emotion"].items() if n} == {"anger": 2, "joy": 1}
    assert customer["speech_s_by_emotion"]["anger"] == pytest.approx(8.2)
    quarters = [{e: n for e, n in call["by_quarter"][name].items() if n} for name in QUARTERS]
    assert quarters == [{"neutral": 1}, {"anger": 1, "neutral": 1}, {"anger": 1}, {"joy": 2}]
    assert {(a, b): n for a in EMOTIONS for b, n in agent["transitions"][a].items() if n} == {("neutral", "neutral"): 1}
    moves = {(a, b): n for a in EMOTIONS for b, n in call["transitions"][a].items() if n}
    assert moves == {("neutral", "anger"): 2, ("anger", "neutral"): 1, ("joy", "joy"): 1}
    assert (agent["arousal_sum"], agent["arousal_count"]) == (pytest.approx(0.6), 2)
    assert 10 * math.log10(customer["loudness_power_s"] / customer["loudness_s"]) == pytest.approx(-10)
    assert 10 * math.log10(call["loudness_power_s"] / call["loudness_s"]) == pytest.approx(
        10 * math.log10((7.0 * 0.01 + 12.2 * 0.1) / 19.2)
    )


def raster(script: Sequence[Said]) -> tuple[dict[str, list[float]], int]:
    """Return talk and overlap in s of each speaker and of the call (""), by steps of 10 ms; and the interruptions."""
    speakers = {said.channel for said in script}
    steps = defaultdict(set)
    for said in script:
        for step in range(round(said.start_s * 100), round(said.end_s * 100)):
            steps[step].add(said.channel)
    figures = {"": [len(steps) / 100, sum(len(who) > 1 for who in steps.values()) / 100]}
    for one in speakers:
        mine = [who for who in steps.values() if one in who]
        figures[str(one)] = [len(mine) / 100, sum(len(who) > 1 for who in mine) / 100]
    cutting_in = sum(
        any(
            other.channel != said.channel and other.start_s < said.start_s <= other.end_s - LEAST_OVERLAP_S
            and said.end_s > other.end_s
            for other in script
        )
        for said in script
    )  # fmt: skip
    return figures, cutting_in


def conversation(call: str, random: Random, speakers: int) -> list[Said]:
    """Return utterances at random times in steps of 0.25 s, so that many edges coincide."""
    spans = ((random.randrange(200) / 4, random.randrange(1, 40) / 4, random.randrange(speakers)) for _ in range(40))
    said = (Said(call, who, start, start + length, random.choice([*EMOTIONS, None])) for start, length, who in spans)
    return list(dict.fromkeys(said))


def test_random_conversations_are_measured_as_a_raster_counts_them(tmp_path):
    """Fails if coinciding edges, utterances of one speaker that overlap, or a third speaker are counted wrong."""
    random = Random(5)
    scripts = {f"c{n}": conversation(f"c{n}", random, n + 1) for n in range(5)}
    rows = measured(output_of(tmp_path, [said for script in scripts.values() for said in script]))
    for call, script in scripts.items():
        figures, cutting_in = raster(script)
        assert rows[f"/a/{call}.wav", None]["interruptions"] == cutting_in
        for speaker, (talk_s, overlap_s) in figures.items():
            row = rows[f"/a/{call}.wav", speaker or None]
            assert (row["talk_s"], row["overlap_s"]) == (pytest.approx(talk_s), pytest.approx(overlap_s)), (
                call,
                speaker,
            )
            assert row["talk_s"] + row["silence_s"] == pytest.approx(row["length_s"])


def test_a_call_over_several_runs_is_measured_as_in_one(tmp_path, monkeypatch):
    """Fails if a second run's channel misses the first's, an untouched call is read again, or a call counts twice."""
    random = Random(6)
    script = [said for n in range(3) for said in conversation(f"c{n}", random, 2)]
    whole = measured(output_of(tmp_path / "whole", script))
    # the second night adds a channel to two calls, the third another to one of them
    nights = [
        [said for said in script if said.channel == 0 or said.call == "c0"],
        [said for said in script if said.channel == 1 and said.call == "c1"],
        [*(said for said in script if said.channel == 1 and said.call == "c2"), Said("c3", 0, 0.0, 1.0, "joy")],
    ]
    read = []
    real = metrics.sums
    monkeypatch.setattr(
        metrics, "sums", lambda by, speaker, run, columns: read.append(run) or real(by, speaker, run, columns)
    )
    output = output_of(tmp_path / "nights", *nights)
    rows = measured(output)
    assert read == ["000001", "000002", "000003"] and measured(output) == rows and len(read) == 3
    assert {key for key in rows if key not in whole} == {("/a/c3.wav", None), ("/a/c3.wav", "0")}
    assert [rows[f"/a/c{n}.wav", None]["run_id"] for n in range(4)] == ["000001", "000002", "000003", "000003"]
    for key, row in whole.items():
        for name in set(CALL_COLUMNS) - {"run_id", "runs"}:
            counts = isinstance(row[name], dict) and name != "speech_s_by_emotion"
            expected = row[name] if counts else pytest.approx(row[name])  # sums of floats depend on their order
            assert rows[key][name] == expected, (key, name)


def test_a_run_that_is_finished_late_is_counted(tmp_path, monkeypatch):
    """Fails if a call lacks the utterances of a run that was planned before another and finished after it."""
    random = Random(7)
    script = [said for n in range(2) for said in conversation(f"c{n}", random, 2)]
    whole = measured(output_of(tmp_path / "whole", script))
    output = output_of(tmp_path / "late", *([said for said in script if said.channel == channel] for channel in (0, 1)))
    real = finished_rows
    monkeypatch.setitem(globals(), "finished_rows", lambda store: real(store).of(["000002"]))
    alone = measured(output)
    monkeypatch.setitem(globals(), "finished_rows", real)
    rows = measured(output)
    assert {row["runs"] for row in alone.values()} == {1} and {row["runs"] for row in rows.values()} == {2}
    assert rows.keys() == whole.keys()
    for key, row in whole.items():
        assert (rows[key]["talk_s"], rows[key]["overlap_s"]) == pytest.approx((row["talk_s"], row["overlap_s"]))
        assert (rows[key]["interruptions"], rows[key]["utterances"]) == (row["interruptions"], row["utterances"])


def test_columns_that_identify_a_call_can_be_chosen(tmp_path):
    """Fails if an expression, several columns or another column of the speaker are not used, or metrics mix two definitions."""
    output = output_of(tmp_path, TALK)
    rows = measured(output, "parity=number % 2", "audio", speaker="speaker")
    assert rows[0, "/a/one.wav", "x"]["utterances"] == 4 and rows[1, "/a/one.wav", None]["utterances"] == 3
    with pytest.raises(ConfigError, match="already contains metrics"):
        measured(output, "parity=number % 3", "audio", speaker="speaker")
    for words, message in ((("nobody",), "no such column"), (("words=number",), "is a column of every file")):
        with pytest.raises(ConfigError, match=message):
            measured(output, *words)
    with pytest.raises(ConfigError, match="--speaker chanel: no such column; did you mean 'channel'"):
        measured(output, speaker="chanel")


def test_every_column_is_described_and_the_command_prints_every_figure(tmp_path, capsys):
    """Fails if a column lacks its description, or the table or the JSON differ from the files."""
    output = output_of(tmp_path, TALK)
    assert main([output, "--to", str(tmp_path / "calls.parquet")]) == 0
    printed = capsys.readouterr().out
    header, all_of_one, agent, customer, *_ = [
        line for line in printed.splitlines() if "speaker" in line or ".wav" in line
    ]
    assert header.split()[:4] == ["audio", "speaker", "length_s", "talk_s"]
    times = ["(all)", "20", "18.2", "NULL", "1.8", "2.2", "1", "57", "-11.7"]
    assert all_of_one.split()[1:] == [*times, "neutral", "joy", "anger", "0.33", "0.5"]
    assert agent.split()[1:7] == ["0", "NULL", "8.2", "0.4", "NULL", "2.2"]
    assert customer.split()[1:7] == ["1", "NULL", "12.2", "0.6", "NULL", "2.2"]
    schema = pq.read_schema(tmp_path / "calls.parquet")
    assert schema.names == ["audio", *CALL_COLUMNS]
    assert all(
        schema.field(name).metadata[b"description"].decode() == CALL_COLUMNS[name].description for name in CALL_COLUMNS
    )
    assert main([output, "--json"]) == 0
    [one, two] = json.loads(capsys.readouterr().out)["calls"]
    figures = one["ConversationCharacteristics"]
    assert one["Call"] == {"audio": "/a/one.wav"} and one["Participants"] == [
        {"ParticipantRole": "0"},
        {"ParticipantRole": "1"},
    ]
    assert figures["TotalConversationDurationMillis"] == 20000 and figures["NonTalkTime"] == {"TotalTimeMillis": 1800}
    assert figures["TalkTime"]["DetailsByParticipant"]["1"] == {
        "TotalTimeMillis": 12200,
        "Share": pytest.approx(12.2 / 20.4),
    }
    assert figures["Interruptions"] == {"TotalCount": 1, "CountByInterrupter": {"0": 1, "1": 0}}
    speed = figures["TalkSpeed"]["DetailsByParticipant"]
    assert speed["0"] == {"AverageWordsPerMinute": pytest.approx(600 / 8.2)}
    emotion = figures["Emotion"]["DetailsByParticipant"]["1"]
    assert emotion["Overall"] == {"anger": pytest.approx(2 / 3), "joy": pytest.approx(1 / 3)}
    assert emotion["ByPeriod"]["QUARTER"] == [{}, {"anger": 1.0}, {"anger": 1.0}, {"joy": 1.0}]
    assert (emotion["First"], emotion["Last"], emotion["Transitions"]) == (
        "anger",
        "joy",
        {"anger": {"anger": 1, "joy": 1}},
    )
    assert figures["Dimensions"]["DetailsByParticipant"]["0"] == {"arousal": pytest.approx(0.3)}
    assert two["ConversationCharacteristics"]["Loudness"]["DetailsByParticipant"]["0"] == {
        "AverageDbfs": pytest.approx(-20)
    }
