"""Who sounded how: the mean score of each emotion for each speaker, as a chart in the terminal and as an SVG file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import pyarrow as pa
import pyarrow.compute as pc

from demo.table import bar, cells, clean, cut, fill
from pipeline.schema import EMOTIONS

_NAME_CELLS = 14
_BAR_CELLS = 4


@dataclass(frozen=True, slots=True)
class Voice:
    """One speaker. `means` are in the order of `EMOTIONS`, None where no model of theirs has the emotion."""

    speaker: str
    utterances: int
    means: tuple[float | None, ...]


def voices(utterances: pa.Table) -> list[Voice]:
    """Mean scores by speaker, in the order of their names."""
    columns = {emotion: pc.struct_field(utterances["scores"], emotion) for emotion in EMOTIONS}
    table = pa.table({"speaker": pc.fill_null(utterances["speaker"], "?"), **columns})
    grouped = table.group_by("speaker").aggregate([("speaker", "count"), *((name, "mean") for name in EMOTIONS)])
    return [
        Voice(clean(row["speaker"]), row["speaker_count"], tuple(row[f"{name}_mean"] for name in EMOTIONS))
        for row in grouped.sort_by("speaker").to_pylist()
    ]


def chart(shown: Sequence[Voice], width: int) -> list[str]:
    """The chart's lines: percent and bar for each emotion; without bars where `width` cells do not hold them."""
    name_cells = min(_NAME_CELLS, max([len("who"), *(cells(voice.speaker) for voice in shown)]))
    column_cells = max(map(len, EMOTIONS))
    with_bars = name_cells + 4 + len(EMOTIONS) * (column_cells + 1) <= width
    titles = [name if with_bars else name[:3] for name in EMOTIONS]
    each = column_cells if with_bars else 3
    lines = [" ".join([fill("who", name_cells), "  n", *(fill(title, each) for title in titles)]).rstrip()]
    for voice in shown:
        values = (_cell(mean, with_bars=with_bars) for mean in voice.means)
        name = fill(cut(voice.speaker, name_cells), name_cells)
        lines.append(" ".join([name, f"{voice.utterances:>3}", *(fill(value, each) for value in values)]).rstrip())
    return lines


def _cell(mean: float | None, *, with_bars: bool) -> str:
    if mean is None:
        return "  –"
    return f"{mean * 100:3.0f}" + (f" {bar(mean, _BAR_CELLS)}" if with_bars else "")


_LEFT, _TOP, _WIDE, _HIGH = 110, 84, 84, 40
"""Pixels: beside and above the grid, and the size of one field."""


def svg(shown: Sequence[Voice], note: str) -> str:
    """The same numbers as a heat map: the darker the field, the higher the mean score. `note` stands in red above."""
    width, height = _LEFT + _WIDE * len(EMOTIONS) + 20, _TOP + _HIGH * len(shown) + 20
    count = sum(voice.utterances for voice in shown)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="14">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(16, 24, f"Mean emotion score per speaker, percent, {count} utterances", 'font-weight="bold"'),
        _text(16, 46, note, 'fill="#b00020"'),
    ]
    parts += [
        _text(_LEFT + _WIDE * (column + 0.5), _TOP - 10, name, 'text-anchor="middle"')
        for column, name in enumerate(EMOTIONS)
    ]
    for row, voice in enumerate(shown):
        middle = _TOP + _HIGH * row + _HIGH / 2 + 5
        parts.append(_text(16, middle, f"{cut(voice.speaker, 10)} ({voice.utterances})"))
        for column, mean in enumerate(voice.means):
            x, y = _LEFT + _WIDE * column, _TOP + _HIGH * row
            shade = f'fill="#1f4e8c" fill-opacity="{mean:.3f}"' if mean is not None else 'fill="#eee"'
            parts.append(f'<rect x="{x + 1}" y="{y + 1}" width="{_WIDE - 2}" height="{_HIGH - 2}" {shade}/>')
            ink = 'text-anchor="middle" fill="#fff"' if (mean or 0) > 0.5 else 'text-anchor="middle"'
            parts.append(_text(x + _WIDE / 2, middle, "–" if mean is None else f"{mean * 100:.0f}", ink))
    return "\n".join([*parts, "</svg>\n"])


def _text(x: float, y: float, words: str, attributes: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{escape(words)}</text>'
