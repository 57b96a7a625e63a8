"""Arousal, valence and dominance against labels: figures, intervals, scales, and the page, over made-up columns."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import bootstrap as scipy_bootstrap
from scipy.stats import pearsonr

from jobs.evaluate import main
from pipeline.analytics.evaluate import dimensions
from pipeline.analytics.evaluate.bootstrap import Bootstrap
from pipeline.analytics.evaluate.evaluation import Options, evaluate
from pipeline.analytics.evaluate.labelled import Labelled, label, rate
from pipeline.analytics.evaluate.lines import lines_of
from pipeline.analytics.evaluate.results import Evaluation
from pipeline.analytics.evaluate.tables import tables_of
from pipeline.analytics.report.evaluation import evaluation_page
from pipeline.analytics.report.page import render
from pipeline.dataset.reader import committed_rows
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store
from tests.analytics.test_evaluate import output_of, records


def ccc(x: np.ndarray, y: np.ndarray) -> float:
    """Lin's coefficient as the paper writes it."""
    return 2 * np.cov(x, y, bias=True)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def sample(rows: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.beta(2, 2, rows)
    return truth, np.clip(0.2 + 0.6 * truth + random.normal(0, 0.1, rows), 0, 1)


def test_a_vector_worked_by_hand():
    """Fails if CCC ignores a shift, which correlation does: variances 2, covariance 2, means 1 apart give 4 / 5."""
    truth, predicted = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 3, 4, 5, 6])
    found = dimensions.estimates(truth, predicted, np.arange(5), Bootstrap("speaker", 0))
    assert [figure.value for figure in found.values()] == pytest.approx([0.8, 1.0, 1.0])
    assert (found["rmse"].majority, found["rmse"].chance) == pytest.approx((np.sqrt(2), 2.0))
    assert (found["ccc"].chance, found["ccc"].majority, found["pearson"].majority) == (0, 0, None)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_figures_are_scipys(offset):
    """Fails if a figure differs from its definition, or sums of squares lose the digits of values far from 0."""
    truth, predicted = (values + offset for values in sample())
    found = dimensions.estimates(truth, predicted, np.arange(200), Bootstrap("speaker", 0))
    expected = [ccc(truth, predicted), pearsonr(truth, predicted).statistic, np.sqrt(np.mean((truth - predicted) ** 2))]
    assert [found[name].value for name in dimensions.METRICS] == pytest.approx(expected, abs=1e-9)


def test_intervals_are_scipys():
    """Fails if labels and predictions are resampled apart, which would hide that they belong together."""
    truth, predicted = sample()
    found = dimensions.estimates(truth, predicted, np.arange(200), Bootstrap("speaker", 4000, 1))
    for name, statistic in (("ccc", ccc), ("pearson", lambda x, y: pearsonr(x, y).statistic)):
        theirs = scipy_bootstrap((truth, predicted), statistic, paired=True, vectorized=False, method="percentile",
                                 n_resamples=1500, rng=0).confidence_interval  # fmt: skip
        assert (found[name].low, found[name].high) == pytest.approx(tuple(theirs), abs=0.008)


def test_rows_of_a_speaker_are_drawn_together():
    """Fails if ten copies of each row narrow the interval, or a single speaker has one."""
    truth, predicted = sample(40)
    alone = dimensions.estimates(truth, predicted, np.arange(40), Bootstrap("speaker", 3000, 1))["ccc"]
    copies = [np.repeat(each, 10) for each in (truth, predicted, np.arange(40))]
    copied = dimensions.estimates(*copies, Bootstrap("speaker", 3000, 1))["ccc"]
    assert (copied.low, copied.high) == pytest.approx((alone.low, alone.high), abs=0.02)
    one = dimensions.estimates(truth, predicted, np.zeros(40, np.int64), Bootstrap("speaker", 100))["ccc"]
    assert one.low is one.high is None


def test_constant_predictions_have_no_correlation():
    """Fails if a model that always predicts the mean has an undefined CCC, or a correlation, or warns."""
    truth, _ = sample(30)
    found = dimensions.estimates(truth, np.full(30, truth.mean()), np.arange(30), Bootstrap("speaker", 50))
    assert found["pearson"].value is None and found["ccc"].value == pytest.approx(0)
    assert found["rmse"].value == pytest.approx(found["rmse"].majority)


def test_differences_are_paired():
    """Fails if the draws of two models differ: equal errors on every row would then look like chance."""
    truth, predicted = sample()
    found = dimensions.differences(truth, (predicted, predicted + 0.2), np.arange(200), Bootstrap("speaker", 500))
    assert found["pearson"].low == pytest.approx(0) == pytest.approx(found["pearson"].high)
    assert found["ccc"].difference == pytest.approx(ccc(truth, predicted + 0.2) - ccc(truth, predicted))
    assert found["ccc"].high < 0


def ratings(values: list[object], **columns: object) -> pa.Table:
    return pa.table({"recording_id": [str(n) for n in range(len(values))], "act": values, **columns})


def test_labels_are_scaled_to_the_range_of_the_model():
    """Fails if a scale of 1 to 7 is compared as it is, or rows without a label or a prediction count."""
    table = ratings([1, 4, 7, None, 2], arousal=[0.1, 0.5, 0.9, 0.5, None])
    found = rate(table, "arousal", "act", (1.0, 7.0), "out")
    assert found.truth.tolist() == [0, 0.5, 1] and found.predicted.tolist() == [0.1, 0.5, 0.9]


@pytest.mark.parametrize(
    ("values", "dimension", "sentence"),
    [
        ([1, 4, 7], "arousal", "has values from 1 to 7; .*--label-range"),
        (["high", "low", "low"], "arousal", "is not numeric"),
        ([0.1, 0.2, 0.3], "valence", "has no column 'valence'"),
        ([None, None, None], "arousal", "has no row with both"),
    ],
)
def test_labels_that_cannot_be_compared_are_refused(values, dimension, sentence):
    """Fails if labels on another scale, or words, give a figure."""
    with pytest.raises(ConfigError, match=sentence):
        rate(ratings(values, arousal=[0.1, 0.2, 0.3]), dimension, "act", (0.0, 1.0), "out")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = records()
    for number, row in enumerate(rows):
        row["act"], row["arousal"] = 1 + number % 7, number / 100
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.support.outputs.VERSION", 2)
        return output_of(tmp_path_factory.mktemp("rated"), rows)


def rated(output: str, *, seed: int = 0, classes: bool = False) -> Labelled:
    """The rows of an output with arousal as a model would write it, which schema version 2 does not have."""
    rows = committed_rows(open_store(output))
    table = rows.utterances().to_table().drop_columns(["arousal"])
    noise = np.random.default_rng(seed).normal(0, 0.1, table.num_rows)
    arousal = (np.array(table["act"].to_pylist(), np.float64) - 1) / 6 * 0.8 + noise
    table = table.append_column("arousal", pa.array(arousal, pa.float32()))
    location = f"{output}-{seed}"
    return label(
        table,
        "manifest_label" if classes else None,
        rows,
        location,
        (rate(table, "arousal", "act", (1.0, 7.0), location),),
    )


@pytest.mark.parametrize("classes", [False, True])
def test_an_evaluation_of_dimensions_is_printed_written_and_drawn(output, tmp_path, classes):
    """Fails if figures of dimensions are missing from the text, the document, the tables or the page, or need classes."""
    outputs = [rated(output, seed=seed, classes=classes) for seed in (0, 1)]
    options = Options("label" if classes else None, {"arousal": "act"}, (1.0, 7.0), resamples=100)
    evaluation = evaluate(outputs, options)
    (found,) = evaluation.outputs[0].dimensions
    assert (evaluation.outputs[0].overall is not None) == classes
    figure = found.overall.metrics["ccc"]
    expected = ccc(outputs[0].rated[0].truth, outputs[0].rated[0].predicted)
    assert figure.value == pytest.approx(expected, abs=1e-6) and figure.low < figure.value < figure.high
    assert found.overall.speakers is not None and found.overall.speakers.count == 2
    assert {part.value for part in found.slices if part.column == "speaker"} == {"007", "anna"}
    (difference,) = evaluation.comparisons[0].dimensions
    assert difference.rows == found.overall.rows == 80
    printed = "\n".join(lines_of(evaluation))
    assert f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]" in printed and "mean label" in printed
    for name, content in tables_of(evaluation, outputs).items():
        (tmp_path / name).write_bytes(content)
    content = json.dumps(evaluation.document(), allow_nan=False).encode()
    (tmp_path / "metrics.json").write_bytes(content)
    assert Evaluation.of(content) == evaluation
    page = evaluation_page(str(tmp_path))
    sections = {section.name: section for section in page.sections}
    assert {"dimensions-1", "compared-dimensions-1", "speakers-2", "dimension-slices-1"} <= set(sections)
    assert ("confusion-1" in sections) == ("comparison-1" in sections) == classes
    assert dict(zip(sections["dimensions-1"].columns, sections["dimensions-1"].rows[0], strict=True)) == {
        "dimension": "arousal", "metric": "ccc", "rows": 80, "figure": figure.value, "low": figure.low,
        "high": figure.high, "chance": 0.0, "mean_label": 0.0,
    }  # fmt: skip
    assert b"CCC of arousal (guessing: 0)" in render(page)


def test_a_column_of_the_manifest_is_no_prediction(output, capsys):
    """Fails if arousal that the manifest brought to an older dataset is evaluated as the model's."""
    assert main([output, "--dimensions", "arousal=act", "--label-range", "1:7"]) == 2
    assert "'arousal' is a column of the manifest" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "--labels, --dimensions or both"),
        (["--dimensions", "anger=act"], "is not NAME=COLUMN"),
        (["--dimensions", "arousal"], "is not NAME=COLUMN"),
        (["--dimensions", "arousal=act", "--label-range", "7:1"], "must be below"),
        (["--dimensions", "arousal=act", "--fit-calibration", "c.json"], "needs --labels"),
        (["--dimensions", "valence=act"], "has no column 'valence'"),
        (["--labels", "label", "--model", "other"], "has no further model of this name"),
    ],
)
def test_options_that_do_not_fit_are_refused(output, capsys, arguments, sentence):
    """Fails if a slip in an option gives figures of something else."""
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main([output, *arguments]))
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err
