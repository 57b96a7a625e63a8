"""The main result of an evaluation: each figure beside guessing and, where comparable, beside the published one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.analytics.report import plots
from pipeline.analytics.report.page import Section, listed

DIGITS = 3
"""Digits of the figures of an evaluation, all of which are fractions of 1."""

FIGURES = """SELECT metric, figure, low, high, chance, majority,
    (SELECT any_value(published.published) FROM published
    WHERE published.output = metrics.output AND ours IS NOT NULL AND published.metric = metrics.metric
    HAVING count(*) = 1) AS published
FROM metrics WHERE output = {output} AND slice = 'all' AND class IS NULL"""

_WORSE_IF_LARGER = (
    "calibration_expected_error",
    "calibration_largest_error",
    "calibration_log_loss",
    "word_error_rate",
)
_MAIN = ("uar", "accuracy")


def title_of(metric: str) -> str:
    """Return the name of a metric for a reader."""
    return metric.replace("_", " ").replace("f1", "F1").replace("uar", "UAR")


def fraction(value: float | None) -> str:
    """Format a figure."""
    return "–" if value is None else f"{value:.{DIGITS}f}"


def result_section(
    names: Sequence[str], rows: Sequence[Sequence[Any]], query: str, *, name: str, where: str, published: bool
) -> Section:
    """Return the section.

    Args:
        rows: the answer to `FIGURES`.
        published: there are published figures of these models, comparable or not.
    """
    drawn = [(place, row) for place, row in enumerate(rows) if row[0] not in _WORSE_IF_LARGER and row[1] is not None]
    guesses = [max((each for each in row[4:6] if each is not None), default=None) for _, row in drawn]
    svg = plots.results(
        [title_of(row[0]) for _, row in drawn],
        [(row[1], row[2], row[3]) for _, row in drawn],
        guesses,
        [row[6] for _, row in drawn],
        places=[place for place, _ in drawn],
        name=name,
    )
    alt = listed([title_of(row[0]) for _, row in drawn], [fraction(row[1]) for _, row in drawn])
    guess_of = {row[0]: (row, guess) for (_, row), guess in zip(drawn, guesses, strict=True)}
    note = " ".join(_against(*guess_of[metric]) for metric in _MAIN if metric in guess_of)
    note += _beside([row for _, row in drawn], published=published)
    return Section(name, f"Result{where}", names, rows, query, note, svg, alt)


def _against(row: Sequence[Any], guess: float | None) -> str:
    """Return a sentence on a figure against guessing, the better of chance and the most frequent class."""
    metric, figure, low, high = row[:4]
    interval = "" if low is None else f" (interval {fraction(low)} to {fraction(high)})"
    sentence = f"{title_of(metric)[:1].upper()}{title_of(metric)[1:]} {fraction(figure)}{interval}"
    if figure is None or guess is None:
        return f"{sentence}."
    if figure <= guess:
        return f"{sentence}, not better than guessing, {fraction(guess)}."
    if low is not None and low <= guess:
        return f"{sentence}; guessing, {fraction(guess)}, is within the interval."
    return f"{sentence}, guessing {fraction(guess)}."


def _beside(rows: Sequence[Sequence[Any]], *, published: bool) -> str:
    """Return sentences on the published figures."""
    beside = [
        f"{title_of(row[0])} {fraction(row[6])} (here {row[1] - row[6]:+.{DIGITS}f})"
        for row in rows
        if row[6] is not None and row[1] is not None
    ]
    if beside:
        return f" Published for the same test set: {', '.join(beside)}."
    return " The published figures are of another test set; the warnings say why." if published else ""
