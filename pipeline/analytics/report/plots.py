"""Plots of reports.

Each mark is a link to the row of the section's table that it was drawn from (`#NAME-r3`) or to a cell of that row
(`#NAME-r3-c5`); its title has the values in words.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from pipeline.analytics.report.svg import (
    ACCENT,
    CARD,
    COLOURS,
    FAINT,
    GREY,
    INK,
    LONG_IN,
    NONE,
    distinct,
    drawn_svg,
    link,
)
from pipeline.schema import EMOTIONS

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes


def bars(names: Sequence[str], values: Sequence[float], *, label: str, form: str, name: str) -> Markup:
    """Draw horizontal bars in the given order, each with its value. Each emotion has its own colour."""

    def draw(axes: Axes) -> None:
        colours = [COLOURS.get(each, ACCENT if each not in GREY else NONE) for each in names]
        drawn = axes.barh(range(len(names)), values, color=colours, height=0.72)
        for row, (bar, each, value) in enumerate(zip(drawn, names, values, strict=True)):
            bar.set_url(link(f"r{row}", f"{each}: {form.format(value)} {label}"))
        axes.bar_label(drawn, labels=[form.format(value) for value in values], padding=4)
        axes.set_yticks(range(len(names)), distinct(names))
        axes.set_xlim(0, max(values, default=0) * 1.2 or 1)
        axes.tick_params(length=0)
        axes.set_xticks([])  # each bar is labelled with its value
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel(label, loc="left")

    return drawn_svg(draw, name, height_in=0.6 + 0.28 * len(names))


def losses(
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float | None],
    highs: Sequence[float | None],
    *,
    label: str,
    form: str,
    bounds: tuple[float, float],
    places: Sequence[int],
    name: str,
) -> Markup:
    """Draw horizontal bars around zero, each with its value and, where it has one, its interval as a line.

    Args:
        places: row of the section's table for each.
        bounds: ends of the axis, before room for the values is added; plots to be compared share them.
    """

    def draw(axes: Axes) -> None:
        width = bounds[1] - bounds[0] or 1.0
        drawn = axes.barh(range(len(names)), values, color=ACCENT, alpha=0.75, height=0.5)
        for bar, place, each, value in zip(drawn, places, names, values, strict=True):
            bar.set_url(link(f"r{place}", f"{each}: {form.format(value)} {label}"))
        for row, (value, low, high) in enumerate(zip(values, lows, highs, strict=True)):
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=INK, linewidth=1.2, marker="|", markersize=7)
            end = max(value, high or value, 0.0)
            axes.text(end + 0.03 * width, row, form.format(value), va="center", ha="left")
        axes.axvline(0, color=FAINT, linewidth=1)
        axes.set_yticks(range(len(names)), distinct(names))
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(bounds[0] - 0.05 * width, bounds[1] + 0.22 * width)
        axes.spines["left"].set_visible(False)
        axes.invert_yaxis()
        axes.set_xlabel(label, loc="left")

    return drawn_svg(draw, name, height_in=0.8 + 0.34 * len(names))


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
        drawn = axes.barh(rows, [each[0] for each in figures], color=ACCENT, alpha=0.75, height=0.5, label="here")
        for row, (bar, each, (figure, low, high)) in enumerate(zip(drawn, names, figures, strict=True)):
            bar.set_url(link(f"r{places[row]}", f"{each}: {figure:.3f}"))
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=INK, linewidth=1.2, marker="|", markersize=7)
            axes.text(1.03, row, f"{figure:.3f}", va="center", ha="left")
        for values, marker, colour, label in (
            (guesses, "|", NONE, "guessing"),
            (published, "D", COLOURS["joy"], "published"),
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

    return drawn_svg(draw, name, height_in=1.2 + 0.36 * len(names))


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
        drawn = axes.bar(edges, values, width=width * 0.92, align="edge", color=ACCENT)
        for row, (bar, edge, value) in enumerate(zip(drawn, edges, values, strict=True)):
            bar.set_url(link(f"r{row}", f"{x} {edge:.4g} to {edge + width:.4g}, {y}: {value:,.4g}"))
        axes.set_xlim(*bounds)
        axes.locator_params(axis="x", nbins=6)  # labels of small numbers are long
        axes.set_xlabel(x)
        axes.set_ylabel(y)

    return drawn_svg(draw, name, height_in=2.4)


_EDGE, _EDGE_SHARE = 1.5, 0.3
"""Width of the edge of an utterance in points, and the largest share of its width."""


def conversation(
    spans: Sequence[tuple[float, float, str, str]], curves: Mapping[str, Sequence[float | None]], *, name: str
) -> Markup:
    """Draw a lane for each speaker from 0 on, coloured by emotion, and below it dimensions over time.

    Args:
        spans: start and end in seconds, speaker and emotion of each utterance.
        curves: values of a dimension, one for each utterance; drawn at the middle of it, a line for each speaker.
    """
    lanes = list(dict.fromkeys(span[2] for span in spans))
    emotions = [each for each in (*EMOTIONS, *GREY) if any(span[3] == each for span in spans)]
    lane_in = max(1.0, 0.34 * len(lanes))
    points_per_s = 72 * LONG_IN / (max(span[1] for span in spans) or 1.0)

    def draw(axes: Axes) -> None:
        figure = axes.figure
        grid = figure.add_gridspec(1 + len(curves), 1, height_ratios=[lane_in, *[1.0] * len(curves)])
        axes.set_subplotspec(grid[0])
        # edges in the colour of the page separate marks that touch; they are thinner around marks that they would cover
        drawn = axes.barh(
            [lanes.index(lane) for _, _, lane, _ in spans],
            [end - start for start, end, _, _ in spans],
            left=[start for start, _, _, _ in spans],
            height=0.76,
            color=[COLOURS.get(emotion, NONE) for _, _, _, emotion in spans],
            edgecolor=CARD,
            linewidth=[min(_EDGE, _EDGE_SHARE * points_per_s * (end - start)) for start, end, _, _ in spans],
        )
        for number, (bar, (start, end, lane, emotion)) in enumerate(zip(drawn, spans, strict=True)):
            bar.set_url(link(f"r{number}", f"{start:,.1f} to {end:,.1f} s, {lane}: {emotion}"))
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
        handles: list[Artist] = [Patch(color=COLOURS.get(each, NONE), label=each) for each in emotions]
        styles = _styles(lanes) if curves and len(lanes) > 1 else {}
        handles += [Line2D([], [], color=ACCENT, linestyle=style, label=lane) for lane, style in styles.items()]
        figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False, fontsize=9, handlelength=1.6)

    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return drawn_svg(draw, name, height_in=0.9 + lane_in + 1.1 * len(curves), width_in=LONG_IN)


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
            color=ACCENT,
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
                cell = Rectangle(place, 0.96, 0.96, facecolor=ACCENT, alpha=round(0.04 + 0.6 * share, 3), linewidth=0)
                if number:
                    words = f"true {classes[row]}, predicted {classes[column]}: {number:,}"
                    cell.set_url(link(f"r{row * len(classes) + column}", words))
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

    return drawn_svg(draw, name, height_in=1.2 + 0.38 * len(classes))


def reliability(confidence: Sequence[float], accuracy: Sequence[float], rows: Sequence[int], *, name: str) -> Markup:
    """Draw a reliability diagram: accuracy over mean confidence. The dashed line is perfect calibration."""

    def draw(axes: Axes) -> None:
        largest = max(rows, default=1)
        axes.plot([0, 1], [0, 1], color=FAINT, linestyle="--", linewidth=1)
        axes.plot(confidence, accuracy, color=ACCENT, linewidth=1.5)
        drawn = axes.scatter(confidence, accuracy, color=ACCENT, s=[12 + 70 * number / largest for number in rows])
        points = enumerate(zip(confidence, accuracy, rows, strict=True))
        drawn.set_urls(
            [
                link(f"r{row}", f"mean confidence {mean:.3f}: share correct {right:.3f} of {number:,}")
                for row, (mean, right, number) in points
            ]
        )
        axes.set_xlim(0, 1)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel("mean confidence")
        axes.set_ylabel("share correct")

    return drawn_svg(draw, name, height_in=3.6)


def coverage(kept: Sequence[float], right: Sequence[float], *, name: str) -> Markup:
    """Draw the accuracy of the kept utterances over the share that is kept."""

    def draw(axes: Axes) -> None:
        axes.plot(kept, right, color=ACCENT, linewidth=1.5)
        drawn = axes.scatter(kept, right, color=ACCENT, s=[16.0] * len(kept))
        drawn.set_urls(
            [
                link(f"r{row}", f"share kept {part:.3f}: share correct {share:.3f}")
                for row, (part, share) in enumerate(zip(kept, right, strict=True))
            ]
        )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.03)
        axes.set_xlabel("share kept")
        axes.set_ylabel("share of these correct")

    return drawn_svg(draw, name, height_in=2.8)


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
            drawn = axes.barh(range(len(names)), part, left=left, color=COLOURS[emotion], height=0.76, label=emotion)
            for row, (bar, value) in enumerate(zip(drawn, part, strict=True)):
                if value:
                    bar.set_url(link(f"r{row}-c{first + number}", f"{names[row]}, {emotion}: {100 * value:.0f} %"))
            left = [before + more for before, more in zip(left, part, strict=True)]
        axes.set_yticks(range(len(names)), distinct(names))
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        axes.set_xlim(0, 1)
        axes.invert_yaxis()
        axes.set_xlabel("share of utterances")
        axes.figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=9, handlelength=1)

    return drawn_svg(draw, name, height_in=1.5 + 0.26 * len(names))
