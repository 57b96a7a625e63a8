"""Text output of an evaluation, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.analytics.evaluate.labelled import SMALL
from pipeline.analytics.evaluate.published import CARD_METRICS

_TITLES = {
    "accuracy": "accuracy", "weighted_precision": "w. precision", "weighted_f1": "w. F1", "macro_f1": "macro F1", "uar": "UAR",
}  # fmt: skip
_SHOWN_BOUNDS = (0.5, 0.7, 0.9)


def lines_of(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Yield the most important results as lines; `metrics.json` has all of them."""
    for output in evaluation["outputs"]:
        yield from _output(output)
    for comparison in evaluation["comparisons"]:
        yield from _comparison(comparison)
    for model, found in (evaluation["fitted_calibration"] or {"models": {}})["models"].items():
        yield from _fitted(model, found)


def _output(output: Mapping[str, Any]) -> Iterator[str]:
    overall, counts = output["overall"], output["counts"]
    yield f"{output['output']}  mode {output['mode']}, {', '.join(output['models'])}"
    yield f"{counts['compared']:,} of {counts['utterances']:,} utterances have a label; {counts['recordings']:,} recordings"
    yield ""
    yield from _table(["", *_TITLES.values()], [["percent", *map(_figure, overall["metrics"].values())]])
    if any(figure["low"] is not None for figure in overall["metrics"].values()):
        yield from (
            "",
            "In brackets: 95 % bootstrap intervals. One without width says that the rows are too few to differ.",
        )
    yield ""
    classes = [[row["class"], *(_percent(row[name]) for name in ("precision", "recall", "f1")), f"{row['support']:,}"]
               for row in overall["per_class"]]  # fmt: skip
    yield from _table(["class", "precision", "recall", "F1", "rows"], classes)
    yield ""
    names = overall["confusion"]["classes"]
    matrix = [[name, *map(str, counts_)] for name, counts_ in zip(names, overall["confusion"]["counts"], strict=True)]
    yield from _table(["true \\ said", *names], matrix)
    yield ""
    calibration = overall["calibration"]
    yield (f"calibration: expected error {_percent(calibration['expected_error'])} %, largest "
           f"{_percent(calibration['largest_error'])} %, log loss {calibration['log_loss']:.4f}")  # fmt: skip
    if output["abstention"]["kept"]:
        kept = output["abstention"]["kept"]
        yield f"abstained from {_percent(1 - kept['share'])} %; {_percent(kept['accuracy'])} % of the others are right"
    yield "if less sure ones abstained: " + "; ".join(_kept(row) for row in output["abstention"]["thresholds"]
                                                            if row["min_confidence"] in _SHOWN_BOUNDS)  # fmt: skip
    if overall["words"]:
        yield f"words: {_words(overall['words'])}"
    yield from _slices(output)
    yield from _published(output)
    for warning in output["warnings"]:
        yield f"warning: {warning}"
    yield ""


def _slices(output: Mapping[str, Any]) -> Iterator[str]:
    if not output["slices"]:
        return
    rows = [
        [part["column"], part["value"], f"{part['rows']:,}",
         *(_figure(part["metrics"][name]) for name in ("accuracy", "macro_f1", "uar")),
         _rate(part["words"]) if part["words"] else ""]
        for part in output["slices"]
        if not part["small"]
    ]  # fmt: skip
    if rows:
        yield ""
        yield from _table(["slice", "", "rows", "accuracy", "macro F1", "UAR", "WER"], rows)
    for name, count in Counter(part["column"] for part in output["slices"] if part["small"]).items():
        yield f"{name}: values with fewer than {SMALL} rows, each by itself mostly chance: {count:,}; metrics.json has them"
    for name, count in output["slices_not_shown"].items():
        yield f"{name}: values with fewer rows still, not looked at apart: {count:,}"


def _published(output: Mapping[str, Any]) -> Iterator[str]:
    for row in output["published"]:
        yield ""
        if row["same_test_set"]:
            lines = [[name, *(f"{100 * row[who][metric]:.4f}" for metric in CARD_METRICS)]
                     for name, who in (("published", "published"), ("this output", "ours"))]  # fmt: skip
            header = [f"{row['language']}, {row['mode']}", *(_TITLES[metric] for metric in CARD_METRICS)]
            yield from _table(header, lines)
        else:
            yield (f"The published figures for {row['language']} in mode {row['mode']} are of another test set, and are not "
                   f"compared: {'; '.join(row['why_not'])}.")  # fmt: skip


def _comparison(comparison: Mapping[str, Any]) -> Iterator[str]:
    yield f"first:  {comparison['first']}"
    yield f"second: {comparison['second']}"
    apart = [f"{comparison[name]:,} {what}" for name, what in (
        ("only_in_first", "only in the first"), ("only_in_second", "only in the second"),
        ("labels_differ", "with another true label")) if comparison[name]]  # fmt: skip
    others = f"; the sets differ, and these are in no figure: {', '.join(apart)}" if apart else ", the same in both"
    yield f"paired on {comparison['rows']:,} utterances{others}"
    if comparison["metrics"] is None:
        yield from _words_compared(comparison)
        yield ""
        return
    yield ""
    rows = [[_TITLES[name], _percent(row["first"]), _percent(row["second"]),
             _figure({**row, "value": row["difference"]}, signed=True)]
            for name, row in comparison["metrics"].items()]  # fmt: skip
    yield from _table(["percent", "first", "second", "difference"], rows)
    test = comparison["test"]
    yield ""
    yield (f"right in the first alone {test['only_first_right']:,}, in the second alone {test['only_second_right']:,}: "
           f"p = {test['p_value']:.3g} ({test['name']}, of the accuracies)")  # fmt: skip
    yield (f"same label in {_percent(comparison['agreement'])} % of utterances, scores at most "
           f"{comparison['largest_score_difference']:.2g} apart")  # fmt: skip
    yield from _words_compared(comparison)
    yield ""


def _fitted(model: str, found: Mapping[str, Any]) -> Iterator[str]:
    held = found["cross_validated"]
    yield f"{model}: temperature {found['temperature']:.4f} from {found['rows']:,} rows"
    for name, stage in (("before", found["before"]), ("after, on the same rows", found["after"]),
                        ("after, on rows it was not fitted on", held)):  # fmt: skip
        if stage is not None:
            yield f"  {name}: log loss {stage['log_loss']:.4f}, expected error {_percent(stage['expected_error'])} %"
    if held is None or held["log_loss"] >= found["before"]["log_loss"]:
        yield "  warning: on rows it was not fitted on this temperature is not shown to help; label more rows"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f}"


def _figure(figure: Mapping[str, Any], *, signed: bool = False) -> str:
    value = f"{100 * figure['value']:+.2f}" if signed else _percent(figure["value"])
    return value if figure["low"] is None else f"{value} [{_percent(figure['low'])}, {_percent(figure['high'])}]"


def _kept(row: Mapping[str, Any]) -> str:
    stay = f"{_percent(row['share'])} % stay, {_percent(row['accuracy'])} % right" if row["rows"] else "none"
    return f"from {row['min_confidence']:g} on {stay}"


def _rate(words: Mapping[str, Any]) -> str:
    return _figure({**words, "value": words["word_error_rate"]})


def _words_compared(comparison: Mapping[str, Any]) -> Iterator[str]:
    words = comparison["words"]
    if words:
        difference = _figure({**words, "value": words["difference"]}, signed=True)
        yield (f"words wrong in the same {words['recordings']:,} recordings: {_percent(words['first'])} and "
               f"{_percent(words['second'])} %, difference {difference}")  # fmt: skip


def _words(words: Mapping[str, Any]) -> str:
    return (
        f"{_rate(words)} % of {words['words']:,} wrong in {words['recordings']:,} recordings "
        f"({words['substitutions']:,} others, {words['deletions']:,} missed, {words['insertions']:,} added)"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *others = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first, *others]).rstrip()
