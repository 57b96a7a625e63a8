"""Turns of speakers: spans of a recording with the person who talks, from a manifest column or an RTTM file.

RTTM is the format of NIST's diarisation evaluations: `SPEAKER <file> <channel> <start> <duration> <NA> <NA> <speaker> ...`, one
turn a line. Source: The 2009 (RT-09) Rich Transcription Meeting Recognition Evaluation Plan, appendix A.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.limits import DEFAULT_LIMITS
from pipeline.errors import Reason, RejectedRow, Stage

MAX_RTTM_BYTES = 16 << 20
"""Largest RTTM file: about 300,000 turns."""
_SLACK_S = 0.5
"""Seconds by which a turn may end after its recording, as a manifest's span may."""
_MOST_TALK = 10
"""Total time of the turns, as a multiple of the recording's: more is a mistake, and would cost as much more to annotate."""
_IGNORED = ("SPKR-INFO", "NOSCORE", "NO_RT_METADATA", "SEGMENT", "LEXEME", "NON-LEX", "NON-SPEECH", "FILLER", "EDIT")
"""Other types of RTTM lines."""
_SPEAKER_FIELDS = 8


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: seconds from the beginning of the recording, the speaker's name, and what is said, each None if not given."""

    start_s: float
    end_s: float
    speaker: str | None
    text: str | None = None


def bad_turns(detail: str) -> RejectedRow:
    """Return the rejection of a row for its turns."""
    return RejectedRow(Reason.BAD_TURNS, detail, Stage.SEGMENT)


def listed_turns(value: object) -> list[Turn]:
    """Return the turns of a list of {start_s, end_s, speaker, text}, the last two optional, or of its JSON.

    Raises: RejectedRow BAD_TURNS naming the first turn that is wrong.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise bad_turns("the turns are no valid JSON") from error
    if not isinstance(value, list):
        raise bad_turns("the turns are neither a list nor the URI of an RTTM file")
    return [_listed(number, each) for number, each in enumerate(value, start=1)]


def _listed(number: int, value: object) -> Turn:
    if not isinstance(value, dict):
        raise bad_turns(f"turn {number} is not an object with start_s and end_s")
    times: dict[str, float] = {}
    for name in ("start_s", "end_s"):
        time = value.get(name)
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise bad_turns(f"turn {number} has no number as {name}")
        times[name] = float(time)
    speaker, text = value.get("speaker"), value.get("text")
    if not isinstance(speaker, str | int | None) or isinstance(speaker, bool) or not isinstance(text, str | None):
        raise bad_turns(f"turn {number} has a speaker or a text that is not text")
    return _turn(f"turn {number}", times["start_s"], times["end_s"], None if speaker is None else str(speaker), text)


def rttm_turns(content: bytes, names: Collection[str]) -> list[Turn]:
    """Return the turns of one recording in an RTTM file.

    Args:
        names: names that the file may give the recording; they matter where it has turns of several recordings.
    Raises: RejectedRow BAD_TURNS naming the first line that is wrong.
    """
    try:
        lines = content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise bad_turns("the RTTM file is not UTF-8") from error
    turns: dict[str, list[Turn]] = {}
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields or fields[0].startswith(";") or fields[0] in _IGNORED:
            continue
        where = f"line {number} of the RTTM file"
        if fields[0] != "SPEAKER" or len(fields) < _SPEAKER_FIELDS:
            raise bad_turns(f"{where} is not 'SPEAKER file channel start duration <NA> <NA> speaker'")
        try:
            start_s, duration_s = float(fields[3]), float(fields[4])
        except ValueError:
            raise bad_turns(f"{where} has a start or a duration that is not a number") from None
        speaker = None if fields[7] == "<NA>" else fields[7]
        turns.setdefault(fields[1], []).append(_turn(where, start_s, start_s + duration_s, speaker))
    if len(turns) < 2:
        return next(iter(turns.values()), [])
    ours = [name for name in turns if name in names]
    if len(ours) != 1:
        raise bad_turns(
            f"the RTTM file has turns of {len(turns):,} recordings, and {len(ours)} of them have a name of this one: "
            f"{' or '.join(sorted(names))}"
        )
    return turns[ours[0]]


def _turn(where: str, start_s: float, end_s: float, speaker: str | None, text: str | None = None) -> Turn:
    if not (math.isfinite(start_s) and math.isfinite(end_s) and 0 <= start_s <= end_s):
        raise bad_turns(
            f"{where} is from {start_s:g} to {end_s:g} s; a start of 0 or more and an end after it are expected"
        )
    return Turn(start_s, end_s, speaker, text)


def clipped(turns: Sequence[Turn], *, offset_s: float, length_s: float, whole: bool) -> list[Turn]:
    """Return the turns that are in a span of the recording, cut to it, in order, with times from its beginning.

    Turns of less than 35 ms there are left out: no model takes them.

    Args:
        offset_s, length_s: the span.
        whole: the span is the whole recording, so no turn may end after it.
    Raises: RejectedRow BAD_TURNS for turns that cannot be this recording's; NO_SPEECH for a span without turns.
    """
    end_s = max((turn.end_s for turn in turns), default=0.0)
    if whole and end_s > length_s + _SLACK_S:
        raise bad_turns(f"a turn ends at {end_s:.3f} s, but the recording ends at {length_s:.3f} s")
    kept = []
    for turn in turns:
        begin, end = max(turn.start_s - offset_s, 0.0), min(turn.end_s - offset_s, length_s)
        if end - begin >= DEFAULT_LIMITS.min_duration_s:
            kept.append(Turn(begin, end, turn.speaker, turn.text))
    if not kept:
        raise RejectedRow(Reason.NO_SPEECH, f"no turn is in these {length_s:.1f} s", Stage.SEGMENT)
    talk_s = sum(turn.end_s - turn.start_s for turn in kept)
    if talk_s > _MOST_TALK * length_s:
        raise bad_turns(
            f"{len(kept):,} turns of {talk_s:,.0f} s together are too many for a recording of {length_s:,.0f} s"
        )
    return sorted(kept, key=lambda turn: (turn.start_s, turn.end_s, turn.speaker or ""))


class Overlap:
    """Time in which two or more speakers talk.

    Args:
        turns: all turns of a recording; overlapping turns of one speaker count once.
    """

    def __init__(self, turns: Sequence[Turn]) -> None:
        edges = [edge for start_s, end_s in _islands(turns) for edge in ((start_s, 1), (end_s, -1))]
        edges.sort()
        times = np.array([time for time, _ in edges])
        together = np.cumsum([change for _, change in edges])[:-1] > 1
        self._times: NDArray[np.float64] = times
        self._until = np.concatenate([[0.0], np.cumsum(np.where(together, np.diff(times), 0.0))])

    def share(self, start_s: float, end_s: float) -> float:
        """Return the share of a span, which is in a turn, that others' turns cover."""
        before, after = np.interp([start_s, end_s], self._times, self._until)
        return min(max(float(after - before) / (end_s - start_s), 0.0), 1.0)


def _islands(turns: Sequence[Turn]) -> list[tuple[float, float]]:
    """Return the spans in which each speaker talks, without overlaps of the same speaker."""
    islands: dict[str | None, list[tuple[float, float]]] = {}
    for turn in sorted(turns, key=lambda turn: turn.start_s):
        mine = islands.setdefault(turn.speaker, [])
        if mine and turn.start_s <= mine[-1][1]:
            mine[-1] = (mine[-1][0], max(mine[-1][1], turn.end_s))
        else:
            mine.append((turn.start_s, turn.end_s))
    return [island for mine in islands.values() for island in mine]


def samples_of(turn: Turn, num_samples: int) -> tuple[int, int]:
    """Return the samples [start, end) of a turn in a waveform at 16 kHz."""
    return round(turn.start_s * SAMPLING_RATE), min(round(turn.end_s * SAMPLING_RATE), num_samples)


def lack_text(column: pa.ChunkedArray) -> bool:
    """Return whether some turns in a manifest column may be without a text: those of RTTM files are."""
    if not (pa.types.is_list(column.type) or pa.types.is_large_list(column.type)):
        return bool(column.null_count < len(column))
    turns = pc.list_flatten(column)
    if not pa.types.is_struct(turns.type) or turns.type.get_field_index("text") < 0:
        return len(turns) > 0
    return bool(pc.struct_field(turns, ["text"]).null_count)
