"""Text output of an evaluation, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from pipeline.analytics.evaluate.labelled import SMALL
from pipeline.analytics.evaluate.published import CARD_METRICS
from pipeline.analytics.evaluate.results import (
    Abstention,
    Comparison,
    Difference,
    Estimate,
    Evaluation,
    Fit,
    Kept,
    Measured,
    OutputResult,
    Spread,
    WordErrors,
)

_TITLES = {
    "accuracy": "accuracy",
    "weighted_precision": "w. precision",
    "weighted_f1": "w. F1",
    "macro_f1": "macro F1",
    "uar": "UAR",
    "kappa": "kappa",
}
_CLASS_FIGURES = ("precision", "recall", "f1")
_PRINTED_BOUNDS = (0.5, 0.7, 0.9)


def lines_of(evaluation: Evaluation) -> Iterator[str]:
    """Yield the most important results as lines; `metrics.json` has all of them."""
    for output in evaluation.outputs:
        yield from _output(output)
    for comparison in evaluation.comparisons:
        yield from _comparison(comparison)
    if evaluation.fitted_calibration:
        for model, fitted in evaluation.fitted_calibration.models.items():
            yield from _fitted(model, fitted)


def _output(output: OutputResult) -> Iterator[str]:
    counts = output.counts
    yield f"{output.output}  mode {output.mode}, {', '.join(output.models)}"
    if output.overall:
        yield f"{counts.compared:,} of {counts.utterances:,} utterances are compared, of {counts.recordings:,} recordings"
        yield ""
        yield from _overall(output.overall)
    yield from _dimensions(output)
    if output.abstention:
        yield from _abstention(output.abstention)
    if output.overall and output.overall.words:
        yield f"words: {_words(output.overall.words)}"
    yield from _slices(output)
    yield from _published(output)
    for warning in output.warnings:
        yield f"warning: {warning}"
    yield ""


def _overall(overall: Measured) -> Iterator[str]:
    figures = list(overall.metrics.items())
    rows = [
        ["percent", *(_figure(figure) for _, figure in figures)],
        ["chance", *(_percent(figure.chance) for _, figure in figures)],
        ["majority", *(_percent(figure.majority) for _, figure in figures)],
    ]
    if overall.speakers:
        spreads = overall.speakers.metrics
        rows.append(
            [f"{overall.speakers.count:,} speakers", *(_spread(spreads[name], _percent) for name, _ in figures)]
        )
    yield from _table(["", *(_TITLES[name] for name, _ in figures)], rows)
    yield ""
    yield "chance: guesses with equal probabilities; majority: the most frequent class in every row"
    if any(figure.low is not None for _, figure in figures):
        yield "In brackets: 95 % bootstrap intervals. An interval without width means that there are too few rows."
    if overall.speakers:
        yield "speakers: mean and standard deviation of the figures of each speaker"
    yield ""
    classes = [
        [
            row.name,
            *(_figure(row.estimates[name]) for name in _CLASS_FIGURES),
            f"{row.support:,}",
            _percent(row.estimates["f1"].chance),
        ]
        for row in overall.per_class
    ]
    yield from _table(["class", "precision", "recall", "F1", "rows", "F1 by chance"], classes)
    yield ""
    names = overall.confusion.classes
    matrix = [[name, *map(str, row)] for name, row in zip(names, overall.confusion.counts, strict=True)]
    yield from _table(["true \\ predicted", *names], matrix)
    yield ""
    calibration = overall.calibration
    chance = "" if calibration.log_loss_chance is None else f" (chance {calibration.log_loss_chance:.4f})"
    yield (
        f"calibration: expected error {_percent(calibration.expected_error)} %, largest "
        f"{_percent(calibration.largest_error)} %, log loss {calibration.log_loss:.4f}{chance}"
    )


def _dimensions(output: OutputResult) -> Iterator[str]:
    if not output.dimensions:
        return
    rows = []
    for each in output.dimensions:
        figures = each.overall.metrics
        rows.append([each.dimension, each.labels, f"{each.overall.rows:,}", *map(_decimal_figure, figures.values())])
        rows.append(["", "chance", "", *(_decimal(figure.chance) for figure in figures.values())])
        rows.append(["", "mean label", "", *(_decimal(figure.majority) for figure in figures.values())])
        if speakers := each.overall.speakers:
            spreads = [_spread(speakers.metrics[name], _decimal) for name in figures]
            rows.append(["", f"{speakers.count:,} speakers", "", *spreads])
    yield ""
    yield from _table(["dimension", "labels", "rows", "CCC", "Pearson", "RMSE"], rows)
    yield ""


def _abstention(abstention: Abstention) -> Iterator[str]:
    if kept := abstention.kept:
        yield f"abstained from {_percent(1 - kept.share)} % of utterances; {_percent(kept.accuracy)} % of the others are correct"
    yield "with --min-confidence " + "; ".join(
        f"{row.min_confidence:g}: {_kept(row)}"
        for row in abstention.thresholds
        if row.min_confidence in _PRINTED_BOUNDS
    )


def _slices(output: OutputResult) -> Iterator[str]:
    if not output.slices:
        return
    rows = [
        [
            part.column,
            part.value,
            f"{part.rows:,}",
            *(_figure(part.metrics[name]) for name in ("accuracy", "macro_f1", "uar")),
            _percent(part.metrics["accuracy"].majority),
            _percent(part.metrics["uar"].majority),
            _rate(part.words) if part.words else "",
        ]
        for part in output.slices
        if not part.small
    ]
    if rows:
        yield ""
        yield from _table(
            ["slice", "", "rows", "accuracy", "macro F1", "UAR", "majority: accuracy", "UAR", "WER"], rows
        )
    for name, count in Counter(part.column for part in output.slices if part.small).items():
        yield f"{name}: {count:,} values have fewer than {SMALL} rows, so their figures are mostly chance; see metrics.json"
    for name, count in output.slices_not_shown.items():
        yield f"{name}: {count:,} more values, the least frequent, are not evaluated"


def _published(output: OutputResult) -> Iterator[str]:
    for row in output.published:
        yield ""
        if row.ours is not None:
            lines = [
                [name, *(f"{100 * figures[metric]:.4f}" for metric in CARD_METRICS)]
                for name, figures in (("published", row.published), ("this output", row.ours))
            ]
            yield from _table([f"{row.language}, {row.mode}", *(_TITLES[metric] for metric in CARD_METRICS)], lines)
        else:
            yield (
                f"The published figures for {row.language} in mode {row.mode} are of another test set, and are not "
                f"compared: {'; '.join(row.why_not)}."
            )


def _comparison(comparison: Comparison) -> Iterator[str]:
    yield f"first:  {comparison.first}"
    yield f"second: {comparison.second}"
    unpaired = [
        f"{count:,} {kind}"
        for count, kind in (
            (comparison.only_in_first, "only in the first"),
            (comparison.only_in_second, "only in the second"),
            (comparison.labels_differ, "with different true labels"),
        )
        if count
    ]
    others = f"; no figure includes the others: {', '.join(unpaired)}" if unpaired else ", the same in both"
    if comparison.rows or not comparison.dimensions:
        yield f"paired on {comparison.rows:,} utterances{others}"
    test = comparison.test
    if comparison.metrics and test and comparison.agreement is not None:
        yield ""
        rows = [
            [_TITLES[name], *map(_percent, (row.chance, row.majority, row.first, row.second)), _difference(row)]
            for name, row in comparison.metrics.items()
        ]
        yield from _table(["percent", "chance", "majority", "first", "second", "difference"], rows)
        yield ""
        several = "" if test.p_value_holm in (None, test.p_value) else f", {test.p_value_holm:.3g} by Holm's correction"
        yield (
            f"only the first is correct in {test.only_first_right:,} utterances, only the second in "
            f"{test.only_second_right:,}: p = {test.p_value:.3g}{several} ({test.name}, of the accuracies)"
        )
        yield (
            f"the same label in {_percent(comparison.agreement)} % of utterances; the largest difference of a score is "
            f"{comparison.largest_score_difference:.2g}"
        )
    if comparison.dimensions:
        yield ""
        rows = [
            [each.dimension, name, f"{each.rows:,}", *map(_decimal, (row.first, row.second)), _decimal_difference(row)]
            for each in comparison.dimensions
            for name, row in each.metrics.items()
        ]
        yield from _table(["dimension", "", "rows", "first", "second", "difference"], rows)
    if words := comparison.words:
        yield (
            f"word error rate over the same {words.recordings:,} recordings: {_percent(words.first)} and "
            f"{_percent(words.second)} %, difference {_difference(words)}"
        )
    yield ""


def _fitted(model: str, fitted: Fit) -> Iterator[str]:
    held_out = fitted.cross_validated
    yield f"{model}: temperature {fitted.temperature:.4f} from {fitted.rows:,} rows"
    for name, stage in (
        ("before", fitted.before),
        ("after, on the same rows", fitted.after),
        ("after, on held-out rows", held_out),
    ):
        if stage is not None:
            yield f"  {name}: log loss {stage.log_loss:.4f}, expected error {_percent(stage.expected_error)} %"
    if held_out is None or held_out.log_loss >= fitted.before.log_loss:
        yield "  warning: on held-out rows this temperature is not better than none; label more rows"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _bounded(text: str, low: float | None, high: float | None, form: Callable[[float | None], str] = _percent) -> str:
    return text if low is None else f"{text} [{form(low)}, {form(high)}]"


def _figure(figure: Estimate) -> str:
    return _bounded(_percent(figure.value), figure.low, figure.high)


def _decimal_figure(figure: Estimate) -> str:
    return _bounded(_decimal(figure.value), figure.low, figure.high, _decimal)


def _difference(row: Difference) -> str:
    return "" if row.difference is None else _bounded(f"{100 * row.difference:+.2f}", row.low, row.high)


def _decimal_difference(row: Difference) -> str:
    return "" if row.difference is None else _bounded(f"{row.difference:+.3f}", row.low, row.high, _decimal)


def _spread(spread: Spread, form: Callable[[float | None], str]) -> str:
    return form(spread.mean) + ("" if spread.deviation is None else f" ± {form(spread.deviation)}")


def _kept(row: Kept) -> str:
    return f"{_percent(row.share)} % remain, {_percent(row.accuracy)} % correct" if row.rows else "none remain"


def _rate(words: WordErrors) -> str:
    return _bounded(_percent(words.word_error_rate), words.low, words.high)


def _words(words: WordErrors) -> str:
    return (
        f"error rate {_rate(words)} % over {words.words:,} words of {words.recordings:,} recordings "
        f"({words.substitutions:,} substituted, {words.deletions:,} deleted, {words.insertions:,} inserted)"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *others = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first, *others]).rstrip()
