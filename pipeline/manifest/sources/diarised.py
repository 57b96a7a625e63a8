"""Utterances as RTTM lines and as Praat's TextGrids: who talks when, and in TextGrids the words and the label.

Sources: the RT-09 evaluation plan, appendix A; "TextGrid file formats" in Praat's manual.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import quote

from pipeline.config.columns import SPEAKER_ID
from pipeline.manifest.sources.corpus import Corpus, Row

_NOBODY = "unknown"
_TIMED = ("audio", "offset", "duration")


class Interval(NamedTuple):
    """One interval of a tier."""

    start_s: float
    end_s: float
    text: str


def speaker_of(row: Row) -> str:
    """Return the name of a row's speaker: its `speaker_id`, its channel, or "unknown"."""
    if row.get(SPEAKER_ID) is not None:
        return str(row[SPEAKER_ID])
    return f"channel_{row['channel']}" if "channel" in row else _NOBODY


def recording_of(row: Row) -> str:
    """Return the recording id in an utterance's id."""
    return str(row["id"]).rpartition("#")[0]


def rttm(corpus: Corpus) -> bytes:
    """Return the utterances of all recordings as RTTM, by their recordings' ids; blanks in names become underscores.

    Utterances without times are left out.
    """
    lines = []
    for row in _timed(corpus):
        start_s, duration_s, channel = float(str(row["offset"])), float(str(row["duration"])), row.get("channel") or 0
        names = ["_".join(name.split()) or _NOBODY for name in (recording_of(row), speaker_of(row))]
        lines.append(
            f"SPEAKER {names[0]} {int(str(channel)) + 1} {start_s:.4f} {duration_s:.4f} <NA> <NA> {names[1]} <NA> <NA>\n"
        )
    return "".join(lines).encode()


def textgrids(corpus: Corpus) -> Iterator[tuple[str, bytes]]:
    """Yield a file name and a TextGrid for each recording.

    Each speaker has a tier of the texts and one of the labels; overlapping utterances of a speaker, as windows are, continue in
    further tiers. Utterances without times are left out.
    """
    recordings: dict[str, list[Row]] = {}
    for row in _timed(corpus):
        recordings.setdefault(recording_of(row), []).append(row)
    for name, rows in recordings.items():
        tiers: dict[str, list[Interval]] = {}
        for row in sorted(rows, key=lambda row: float(str(row["offset"]))):
            start_s = float(str(row["offset"]))
            end_s = start_s + float(str(row["duration"]))
            number, speaker = 1, speaker_of(row)
            while (tier := f"{speaker} ({number})" if number > 1 else speaker) in tiers and tiers[tier][
                -1
            ].end_s > start_s:
                number += 1
            for each, value in ((tier, row.get("text")), (f"{tier}: label", row.get("label"))):
                tiers.setdefault(each, []).append(Interval(start_s, end_s, "" if value is None else str(value)))
        yield f"{quote(name, safe=' ')}.TextGrid", textgrid(tiers).encode()


def textgrid(tiers: Mapping[str, Sequence[Interval]]) -> str:
    """Return a TextGrid in Praat's long text format. Gaps between intervals become empty intervals."""
    length_s = max(intervals[-1].end_s for intervals in tiers.values())
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {length_s!r}"]
    lines += ["tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, intervals) in enumerate(tiers.items(), start=1):
        whole = list(_without_gaps(intervals, length_s))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}"]
        lines += ["        xmin = 0", f"        xmax = {length_s!r}", f"        intervals: size = {len(whole)}"]
        for place, interval in enumerate(whole, start=1):
            lines += [f"        intervals [{place}]:", f"            xmin = {interval.start_s!r}"]
            lines += [f"            xmax = {interval.end_s!r}", f"            text = {_quoted(interval.text)}"]
    return "\n".join(lines) + "\n"


def _without_gaps(intervals: Sequence[Interval], length_s: float) -> Iterator[Interval]:
    until_s = 0.0
    for interval in intervals:
        if interval.start_s > until_s:
            yield Interval(until_s, interval.start_s, "")
        yield interval
        until_s = interval.end_s
    if until_s < length_s:
        yield Interval(until_s, length_s, "")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _timed(corpus: Corpus) -> list[Row]:
    """Leave out the rows without times. Returns: the others."""
    timed = [row for row in corpus.rows if all(name in row for name in _TIMED)]
    kept = {id(row) for row in timed}
    for row in corpus.rows:
        if id(row) not in kept:
            corpus.leave_out("an utterance without times", str(row["id"]))
    corpus.rows = timed
    return timed
