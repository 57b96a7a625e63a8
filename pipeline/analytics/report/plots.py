"""Plots as inline SVG whose colours follow the page's light or dark theme.

matplotlib draws in placeholder colours, which are replaced by CSS variables. Parts that an HTML page does not need
(namespaces, metadata, unused identifiers) are removed, and the other identifiers are made unique on the page.

Each mark is a link to the row of the section's table that it was drawn from (`#NAME-r3`) or to a cell of that row
(`#NAME-r3-c5`); its title has the values in words.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from markupsafe import Markup

from pipeline.schema import EMOTIONS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_INK, _FAINT, _ACCENT, _NONE = "#010203", "#010204", "#010205", "#010206"
_PLACES = {_INK: "var(--ink)", _FAINT: "var(--faint)", _ACCENT: "var(--accent)", _NONE: "var(--none)"}
_EMOTION = {emotion: f"#0203{number:02x}" for number, emotion in enumerate(EMOTIONS)}
_PLACES |= {colour: f"var(--{emotion})" for emotion, colour in _EMOTION.items()}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.grid": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
_GREY = ("(abstained)", "(no model)", "(unmapped)", "(regression)", "(no_speech)", "(none)")
"""Groups without an emotion, drawn in grey."""
_WIDTH_IN = 4.2
"""Width of a plot: 302 points, the space on a phone 375 points wide, so that text is not scaled there."""
_LONG_IN = 9.2
"""Width of a conversation: 662 points, and on a phone as much, to be scrolled."""
_LONGEST_NAME = 20
_FONT = re.compile(r"font-family: [^;]*;\s*|; font-family: [^;]*$")


def bars(names: Sequence[str], values: Sequence[float], *, label: str, form: str, name: str) -> Markup:
    """Draw horizontal bars in the given order, each with its value. Each emotion has its own colour."""

    def draw(axes: Axes) -> None:
        colours = [_EMOTION.get(each, _ACCENT if each not in _GREY else _NONE) for each in names]
        drawn = axes.barh(range(len(names)), values, color=colours, height=0.72)
        for row, (bar, each, value) in enumerate(zip(drawn, names, values, strict=True)):
            bar.set_url(_link(f"r{row}", f"{each}: {form.format(value)} {label}"))
        axes.bar_label(drawn, labels=[form.format(value) for value in values], padding=4)
        axes.set_yticks(range(len(names)), distinct(names))
        axes.set_xlim(0, max(values, default=0) * 1.2 or 1)
        axes.tick_params(length=0)
        axes.set_xticks([])  # each bar is labelled with its value
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel(label, loc="left")

    return _drawn(draw, name, height_in=0.6 + 0.28 * len(names))


def losses(
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    *,
    label: str,
    form: str,
    bounds: tuple[float, float],
    name: str,
) -> Markup:
    """Draw horizontal bars around zero, each with its value and, where it has one, its interval as a line.

    Args:
        bounds: ends of the axis, before room for the values is added; plots to be compared share them.
    """

    def draw(axes: Axes) -> None:
        width = bounds[1] - bounds[0] or 1.0
        axes.barh(range(len(names)), values, color=_ACCENT, alpha=0.75, height=0.5)
        for row, (value, low, high) in enumerate(zip(values, lows, highs, strict=True)):
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=_INK, linewidth=1.2, marker="|", markersize=7)
            end = max(value, high or value, 0.0)
            axes.text(end + 0.03 * width, row, form.format(value), va="center", ha="left")
        axes.axvline(0, color=_FAINT, linewidth=1)
        axes.set_yticks(range(len(names)), distinct(names))
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(bounds[0] - 0.05 * width, bounds[1] + 0.22 * width)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel(label, loc="left")

    return _drawn(draw, name, height_in=0.8 + 0.34 * len(names))


def results(
    names: Sequence[str],
    figures: Sequence[tuple[float, float | None, float | None]],
    guesses: Sequence[float | None],
    published: Sequence[float | None],
    *,
    places: Sequence[int],
    name: str,
) -> Markup:
    """Draw figures as bars, with their intervals as lines, beside guessing and, where they exist, the published figures.

    Args:
        figures: the figure and the bounds of its interval.
        places: row of the section's table for each.
    """

    def draw(axes: Axes) -> None:
        rows = range(len(names))
        drawn = axes.barh(rows, [each[0] for each in figures], color=_ACCENT, alpha=0.75, height=0.5, label="here")
        for row, (bar, each, (figure, low, high)) in enumerate(zip(drawn, names, figures, strict=True)):
            bar.set_url(_link(f"r{places[row]}", f"{each}: {figure:.3f}"))
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=_INK, linewidth=1.2, marker="|", markersize=7)
            axes.text(1.03, row, f"{figure:.3f}", va="center", ha="left")
        for values, marker, colour, label in (
            (guesses, "|", _NONE, "guessing"),
            (published, "D", _EMOTION["joy"], "published"),
        ):
            known = [(value, row) for row, value in enumerate(values) if value is not None]
            if known:
                xs, ys = zip(*known, strict=True)
                size, width = (16, 3.0) if marker == "|" else (6, 1.0)
                axes.plot(
                    xs,
                    ys,
                    color=colour,
                    marker=marker,
                    markersize=size,
                    markeredgewidth=width,
                    linestyle="none",
                    label=label,
                )
        axes.set_yticks(rows, distinct(names))
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(min(0.0, *(each[0] for each in figures)), 1.2)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9, handlelength=1)

    return _drawn(draw, name, height_in=1.2 + 0.36 * len(names))


def columns(
    edges: Sequence[float],
    width: float,
    values: Sequence[float],
    *,
    x: str,
    y: str,
    bounds: tuple[float, float],
    name: str,
) -> Markup:
    """Draw a histogram whose bins start at `edges` and are `width` wide."""

    def draw(axes: Axes) -> None:
        drawn = axes.bar(edges, values, width=width * 0.92, align="edge", color=_ACCENT)
        for row, (bar, edge, value) in enumerate(zip(drawn, edges, values, strict=True)):
            bar.set_url(_link(f"r{row}", f"{x} {edge:.4g} to {edge + width:.4g}, {y}: {value:,.4g}"))
        axes.set_xlim(*bounds)
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return _drawn(draw, name, height_in=2.4)


def conversation(
    spans: Sequence[tuple[float, float, str, str]], curves: Mapping[str, Sequence[float | None]], *, name: str
) -> Markup:
    """Draw a lane for each speaker from 0 on, coloured by emotion, and below it dimensions over time.

    Args:
        spans: start and end in seconds, speaker and emotion of each utterance.
        curves: values of a dimension, one for each utterance; drawn at the middle of it, a line for each speaker.
    """
    lanes = list(dict.fromkeys(span[2] for span in spans))
    emotions = [each for each in (*EMOTIONS, *_GREY) if any(span[3] == each for span in spans)]
    lane_in = max(1.0, 0.34 * len(lanes))

    def draw(axes: Axes) -> None:
        figure = axes.figure
        grid = figure.add_gridspec(1 + len(curves), 1, height_ratios=[lane_in, *[1.0] * len(curves)])
        axes.set_subplotspec(grid[0])
        for emotion in emotions:
            for row, lane in enumerate(lanes):
                parts = {number: span for number, span in enumerate(spans) if span[2:] == (lane, emotion)}
                drawn = axes.broken_barh(
                    [(start, end - start) for start, end, _, _ in parts.values()],
                    (row - 0.38, 0.76),
                    color=_EMOTION.get(emotion, _NONE),
                )
                drawn.set_urls(
                    [
                        _link(f"r{number}", f"{start:,.1f} to {end:,.1f} s, {lane}: {emotion}")
                        for number, (start, end, _, _) in parts.items()
                    ]
                )
        axes.set_yticks(range(len(lanes)), distinct(lanes))
        axes.set_ylim(len(lanes) - 0.5, -0.5)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, max(span[1] for span in spans))
        lowest = axes
        for number, (dimension, values) in enumerate(curves.items(), 1):
            lowest = figure.add_subplot(grid[number], sharex=axes)
            _curve(lowest, spans, values, lanes)
            lowest.set_ylabel(dimension)
        lowest.set_xlabel("seconds")
        handles: list[Artist] = [Patch(color=_EMOTION.get(each, _NONE), label=each) for each in emotions]
        styles = _styles(lanes) if curves and len(lanes) > 1 else {}
        handles += [Line2D([], [], color=_ACCENT, linestyle=style, label=lane) for lane, style in styles.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=9, handlelength=1.6)

    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return _drawn(draw, name, height_in=0.9 + lane_in + 1.1 * len(curves), width_in=_LONG_IN)


_Dashes = tuple[float, Sequence[float]]
_DASHES: tuple[_Dashes, ...] = ((0.0, ()), (0.0, (4.0, 2.0)), (0.0, (1.0, 2.0)), (0.0, (6.0, 2.0, 1.0, 2.0)))


def _styles(lanes: Sequence[str]) -> dict[str, _Dashes]:
    """Return the dashes of each speaker's line; after four they repeat."""
    return dict(zip(lanes, itertools.cycle(_DASHES), strict=False))


def _curve(
    axes: Axes,
    spans: Sequence[tuple[float, float, str, str]],
    values: Sequence[float | None],
    lanes: Sequence[str],
) -> None:
    for lane, style in _styles(lanes).items():
        points = [
            ((start + end) / 2, value)
            for (start, end, speaker, _), value in zip(spans, values, strict=True)
            if speaker == lane and value is not None
        ]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            color=_ACCENT,
            linestyle=style,
            linewidth=1.4,
            marker="o",
            markersize=3,
        )
    axes.set_ylim(0, 1)


def confusions(
    classes: Sequence[str], counts: Sequence[Sequence[int]], shares: Sequence[Sequence[float]], *, name: str
) -> Markup:
    """Draw a confusion matrix: rows are true classes, columns predicted ones; stronger colour, larger row share."""
    from matplotlib.patches import Rectangle

    def draw(axes: Axes) -> None:
        for row, (numbers, parts) in enumerate(zip(counts, shares, strict=True)):
            for column, (number, share) in enumerate(zip(numbers, parts, strict=True)):
                place = (column - 0.48, row - 0.48)
                cell = Rectangle(place, 0.96, 0.96, facecolor=_ACCENT, alpha=round(0.04 + 0.6 * share, 3), linewidth=0)
                if number:
                    words = f"true {classes[row]}, predicted {classes[column]}: {number:,}"
                    cell.set_url(_link(f"r{row * len(classes) + column}", words))
                axes.add_patch(cell)
                axes.text(column, row, f"{number:,}", ha="center", va="center", fontsize=9)
        axes.set_xticks(range(len(classes)), classes, rotation=40, ha="right")
        axes.set_yticks(range(len(classes)), classes)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlim(-0.5, len(classes) - 0.5)
        axes.set_ylim(len(classes) - 0.5, -0.5)
        axes.set_xlabel("recognised as")
        axes.set_ylabel("true")

    return _drawn(draw, name, height_in=1.2 + 0.38 * len(classes))


def reliability(confidence: Sequence[float], accuracy: Sequence[float], rows: Sequence[int], *, name: str) -> Markup:
    """Draw a reliability diagram: accuracy over mean confidence. The dashed line is perfect calibration."""

    def draw(axes: Axes) -> None:
        largest = max(rows, default=1)
        axes.plot([0, 1], [0, 1], color=_FAINT, linestyle="--", linewidth=1)
        axes.plot(confidence, accuracy, color=_ACCENT, linewidth=1.5)
        drawn = axes.scatter(confidence, accuracy, color=_ACCENT, s=[12 + 70 * number / largest for number in rows])
        points = enumerate(zip(confidence, accuracy, rows, strict=True))
        drawn.set_urls(
            [
                _link(f"r{row}", f"mean confidence {mean:.3f}: share correct {right:.3f} of {number:,}")
                for row, (mean, right, number) in points
            ]
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("mean confidence")
        axes.set_ylabel("share correct")

    return _drawn(draw, name, height_in=3.6)


def coverage(kept: Sequence[float], right: Sequence[float], *, name: str) -> Markup:
    """Draw the accuracy of the kept utterances over the share that is kept."""

    def draw(axes: Axes) -> None:
        axes.plot(kept, right, color=_ACCENT, linewidth=1.5)
        drawn = axes.scatter(kept, right, color=_ACCENT, s=[16.0] * len(kept))
        drawn.set_urls(
            [
                _link(f"r{row}", f"share kept {part:.3f}: share correct {share:.3f}")
                for row, (part, share) in enumerate(zip(kept, right, strict=True))
            ]
        )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("share kept")
        axes.set_ylabel("share of these correct")

    return _drawn(draw, name, height_in=2.8)


def most(shares: Sequence[float]) -> str:
    """Return the most frequent emotion in words. Shares are in the order of `EMOTIONS`."""
    return f"mostly {EMOTIONS[shares.index(max(shares))]}" if any(shares) else "no emotion"


def stacks(names: Sequence[str], shares: Sequence[Sequence[float]], *, first: int, name: str) -> Markup:
    """Draw a stacked bar for each name, divided by emotion. Shares are in the order of `EMOTIONS`.

    Args:
        first: column of the section's table that has the first emotion.
    """

    def draw(axes: Axes) -> None:
        left = [0.0] * len(names)
        for number, emotion in enumerate(EMOTIONS):
            part = [each[number] for each in shares]
            drawn = axes.barh(range(len(names)), part, left=left, color=_EMOTION[emotion], height=0.76, label=emotion)
            for row, (bar, value) in enumerate(zip(drawn, part, strict=True)):
                if value:
                    bar.set_url(_link(f"r{row}-c{first + number}", f"{names[row]}, {emotion}: {100 * value:.0f} %"))
            left = [before + more for before, more in zip(left, part, strict=True)]
        axes.set_yticks(range(len(names)), distinct(names))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.set_xlabel("share of utterances")
        axes.figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9, handlelength=1)

    return _drawn(draw, name, height_in=1.5 + 0.26 * len(names))


def distinct(names: Sequence[str]) -> list[str]:
    """Shorten names for an axis so that names that differ stay different: where beginnings are equal, ends are shown."""
    plain = [_printable(each) for each in names]
    begun = [each if len(each) <= _LONGEST_NAME else f"{each[: _LONGEST_NAME - 1]}…" for each in plain]
    short = list(begun)
    for place, each in enumerate(plain):
        equal = [other for other, label in zip(plain, begun, strict=True) if label == begun[place] and other != each]
        if equal:
            short[place] = _around(each, max(_equal_letters(each, other) for other in equal))
    return [
        each if short.index(each) == place else f"{each[: _LONGEST_NAME - 4]} #{place + 1}"
        for place, each in enumerate(short)
    ]


def _equal_letters(first: str, second: str) -> int:
    """Return the length of the common beginning."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


def _around(name: str, place: int) -> str:
    """Shorten a name to its beginning and the letters from `place` on, or those at its end."""
    head, room = name[:5], _LONGEST_NAME - 6
    start = min(place, len(name) - room)
    rest = name[start : start + room]
    return f"{head}…{rest}" if start + room >= len(name) else f"{head}…{rest[:-1]}…"


def _printable(text: str) -> str:
    """Replace control characters (invalid in XML) and surrogates (invalid in matplotlib)."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def _link(place: str, words: str) -> str:
    """Return what matplotlib takes for the address of a mark: the place in the table, a space, and the mark's title."""
    return f"#{place} {_printable(words)}"


def _drawn(draw: Callable[[Axes], None], name: str, *, height_in: float, width_in: float = _WIDTH_IN) -> Markup:
    """Run matplotlib without a display and without its global state."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width_in, height_in))
        FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(content: bytes, name: str) -> Markup:
    """Convert the SVG for embedding in an HTML page. `name` makes its identifiers unique on the page."""
    root = ElementTree.fromstring(content)
    text = content.decode()
    for parent in list(root.iter()):
        for child in list(parent):
            kind = child.tag.rpartition("}")[2]
            # its style would apply to the whole page
            if kind in ("metadata", "style") or (
                kind == "defs" and not [c for c in child if not c.tag.endswith("style")]
            ):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        given: dict[str, Any] = {key.rpartition("}")[2]: value for key, value in element.attrib.items()}
        if element.tag == "a":
            given["href"], _, words = given["href"].partition(" ")
            del given["target"]
            title = ElementTree.Element("title")
            title.text = words
            element.insert(0, title)
        if (mine := given.pop("id", None)) and f"#{mine}" in text:
            given["id"] = f"{name}-{mine}"
        for key, value in given.items():
            if value.startswith("#") and key == "href":
                given[key] = f"#{name}-{value[1:]}"
            for colour, variable in _PLACES.items():
                given[key] = given[key].replace(colour, variable)
            given[key] = given[key].replace("url(#", f"url(#{name}-")
        if element.tag == "text":
            given["style"] = _FONT.sub("", given["style"])
            given["aria-hidden"] = "true"
        element.attrib.clear()
        element.attrib.update(given)
    for surplus in ("width", "height", "version"):
        root.attrib.pop(surplus, None)
    return Markup(ElementTree.tostring(root, encoding="unicode"))  # which escapes
