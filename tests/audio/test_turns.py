"""Turns of speakers: from lists, JSON and RTTM; bounds; the time in which others talk too."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.audio.turns import Overlap, Turn, clipped, lack_text, listed_turns, rttm_turns
from pipeline.errors import Reason, RejectedRow, Stage

LISTED = [
    {"start_s": 0, "end_s": 2.5, "speaker": "a", "text": "Hello."},
    {"start_s": 2.0, "end_s": 4.0, "speaker": 7, "text": None, "confidence": 0.5},
    {"start_s": 5.0, "end_s": 5.0},
]
TURNS = [Turn(0.0, 2.5, "a", "Hello."), Turn(2.0, 4.0, "7"), Turn(5.0, 5.0, None)]
RTTM = """;; made by hand
SPKR-INFO talk 1 <NA> <NA> <NA> unknown ann <NA> <NA>
SPEAKER talk 1 0.50 1.25 <NA> <NA> ann <NA> <NA>

SPEAKER talk 1 1.50 2.00 <NA> <NA> <NA> 0.9
SPEAKER other 1 9.00 1.00 <NA> <NA> bob <NA> <NA>
"""


def why(function, *arguments, **named) -> str:
    with pytest.raises(RejectedRow) as caught:
        function(*arguments, **named)
    assert caught.value.reason is Reason.BAD_TURNS and caught.value.stage is Stage.SEGMENT
    return str(caught.value)


def test_a_list_and_its_json_are_the_same():
    """Fails if a turn changes on its way, or a CSV, which has no lists, cannot give turns."""
    assert listed_turns(LISTED) == listed_turns(json.dumps(LISTED)) == TURNS


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("[{", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ('{"start_s": 0}', "neither a list"),
        (3.5, "neither a list"),
        ([None], "turn 1 is not an object"),
        ([LISTED[0], {"start_s": 1.0}], "turn 2 has no number as end_s"),
        ([{"start_s": "1", "end_s": 2}], "turn 1 has no number as start_s"),
        ([{"start_s": True, "end_s": 2}], "turn 1 has no number as start_s"),
        ([{"start_s": 0, "end_s": 2, "speaker": ["a"]}], "a speaker or a text"),
        ([{"start_s": 0, "end_s": 2, "text": 3}], "a speaker or a text"),
        ([{"start_s": 2, "end_s": 1}], "from 2 to 1 s"),
        ([{"start_s": -1, "end_s": 1}], "from -1 to 1 s"),
        ("[{\"start_s\": 0, \"end_s\": NaN}]", "from 0 to nan s"),
        ("[{\"start_s\": 0, \"end_s\": 1e999}]", "from 0 to inf s"),
    ],
)  # fmt: skip
def test_lists_that_are_wrong(value, says):
    """Fails if a wrong turn is read as another one, or raises anything but the row's reject."""
    assert says in why(listed_turns, value)


def test_rttm_of_one_recording_and_of_several():
    """Fails if a line of another recording or type becomes a turn, or a file of one recording needs its name."""
    assert rttm_turns(RTTM.encode(), {"talk", "id"}) == [Turn(0.5, 1.75, "ann"), Turn(1.5, 3.5, None)]
    alone = "\ufeff" + "".join(line for line in RTTM.splitlines(True) if "other" not in line)
    assert rttm_turns(alone.encode(), {"anything"}) == rttm_turns(RTTM.encode(), {"talk"})
    assert rttm_turns(b"", {"talk"}) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (RTTM.encode(), "turns of 2 recordings, and 0 of them"),
        (b"SPEAKER talk 1 0.5 x <NA> <NA> ann", "line 1 of the RTTM file has a start or a duration"),
        (b"SPEAKER talk 1 0.5 1.0", "line 1 of the RTTM file is not"),
        (b";\n\nRIFF....WAVE", "line 3 of the RTTM file is not"),
        (b"SPEAKER talk 1 0.5 -1 <NA> <NA> ann", "from 0.5 to -0.5 s"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_rttm_that_is_wrong(content, says):
    """Fails if a damaged file gives some of its turns, or takes the shard down."""
    assert says in why(rttm_turns, content, {"x"})


def test_turns_are_cut_to_the_span():
    """Fails if times do not begin at the span, a turn outside stays, or one of 20 ms reaches a model."""
    turns = [Turn(0, 3, "a"), Turn(9.99, 12, "b"), Turn(4, 11, "b", "x"), Turn(6, 6.02, "c"), Turn(20, 30, "c")]
    span = {"offset_s": 2.0, "length_s": 8.0, "whole": False}
    assert clipped(turns, **span) == [Turn(0, 1, "a"), Turn(2, 8, "b", "x")]
    with pytest.raises(RejectedRow) as caught:
        clipped(turns[3:], **span)
    assert caught.value.reason is Reason.NO_SPEECH


def test_turns_of_another_recording_are_refused():
    """Fails if turns that end after the recording, or that are far too many, are annotated as if they were its own."""
    assert clipped([Turn(0, 10.4, "a")], offset_s=0.0, length_s=10.0, whole=True) == [Turn(0, 10, "a")]
    assert "ends at 10.600 s" in why(clipped, [Turn(0, 10.6, "a")], offset_s=0.0, length_s=10.0, whole=True)
    assert "11 turns" in why(clipped, [Turn(0, 10, str(n)) for n in range(11)], offset_s=0.0, length_s=10.0, whole=True)


def test_overlap_by_hand():
    """Fails if time of the same speaker counts as another's, three count double, or a touching turn counts."""
    overlap = Overlap([Turn(0, 4, "a"), Turn(2, 3, "a"), Turn(3, 6, "b"), Turn(3.5, 4.5, "c"), Turn(6, 7, "a")])
    spans = [(0, 4), (2, 3), (3, 6), (3.5, 4.5), (6, 7)]
    assert [overlap.share(*span) for span in spans] == pytest.approx([0.25, 0.0, 1.5 / 3, 1.0, 0.0])


def test_overlap_is_that_of_a_grid():
    """Fails if the sweep over edges differs from counting speakers at each millisecond of random turns."""
    for seed in range(20):
        chance = np.random.default_rng(seed)
        starts = chance.integers(0, 9_000, 12) / 1000
        turns = [
            Turn(float(start), float(start + chance.integers(40, 3_000) / 1000), "abc"[chance.integers(3)])
            for start in starts
        ]
        grid = np.arange(0, 13, 0.001) + 0.0005
        talking = {name: np.zeros(len(grid), bool) for name in "abc"}
        for turn in turns:
            talking[str(turn.speaker)] |= (grid > turn.start_s) & (grid < turn.end_s)
        overlap = Overlap(turns)
        for turn in turns:
            inside = (grid > turn.start_s) & (grid < turn.end_s)
            others = np.any([each for name, each in talking.items() if name != turn.speaker], axis=0)
            assert overlap.share(turn.start_s, turn.end_s) == pytest.approx(others[inside].mean(), abs=1e-6), seed


@pytest.mark.parametrize(
    ("column", "lacks"),
    [
        ([[{"start_s": 0.0, "text": "x"}], None], False),
        ([[{"start_s": 0.0, "text": "x"}, {"start_s": 1.0, "text": None}]], True),
        ([[{"start_s": 0.0}]], True),
        ([[]], False),
        (["a.rttm", None], True),
        (pa.nulls(2, pa.string()), False),
    ],
)
def test_whether_turns_lack_a_text(column, lacks):
    """Fails if Whisper is not loaded although a turn must be transcribed, or is loaded for texts that are all given."""
    assert lack_text(pa.chunked_array([column])) is lacks
