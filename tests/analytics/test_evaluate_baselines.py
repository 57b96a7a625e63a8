"""Figures beside the metrics: baselines, intervals of classes, spread over speakers, correction for several comparisons."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.metrics import f1_score, recall_score

from jobs.evaluate import main
from pipeline.analytics.evaluate import metrics
from pipeline.analytics.evaluate.bootstrap import Bootstrap, groups_of
from pipeline.analytics.evaluate.compare import corrected_by_holm
from pipeline.schema import EMOTIONS
from tests.analytics.test_evaluate import output_of, records
from tests.analytics.test_evaluate_metrics import random_labels

NONE = Bootstrap("speaker", 0)


@pytest.mark.parametrize("seed", range(3))
def test_the_majority_baseline_is_scikit_learns(seed):
    """Fails if a majority figure is not that of predicting the most frequent true class in every row."""
    truth, predicted = random_labels(seed)
    dummy = DummyClassifier(strategy="most_frequent").fit(truth[:, None], truth).predict(truth[:, None])
    figures, classes = metrics.estimates(truth, predicted, np.arange(len(truth)), EMOTIONS, NONE)
    for name, expected in metrics.summary(truth, dummy).items():
        assert figures[name].majority == pytest.approx(expected), name
    expected = recall_score(truth, dummy, labels=range(7), average=None, zero_division=0)
    for row in classes:
        assert row.estimates["recall"].majority == expected[EMOTIONS.index(row.name)]


def test_the_chance_baseline_is_the_mean_of_guesses():
    """Fails if a chance figure is not what guesses with equal probabilities of the true classes give on average."""
    truth, predicted = random_labels(1, rows=600, classes=4)
    figures, classes = metrics.estimates(truth, predicted, np.arange(len(truth)), EMOTIONS, NONE)
    random = np.random.default_rng(0)
    guesses = random.choice(np.unique(truth), (2000, len(truth)))
    matrices = np.array([metrics.matrices_of(truth, guess, np.zeros_like(truth), 7)[0] for guess in guesses])
    expected = metrics.scores_of(matrices).mean(axis=0)
    assert [figure.chance for figure in figures.values()] == pytest.approx(expected, abs=0.004)
    by_class = metrics.class_scores_of(matrices).mean(axis=1)
    for row in classes:
        if row.support:
            expected = by_class[:, EMOTIONS.index(row.name)]
            assert [row.estimates[name].chance for name in metrics.CLASS_METRICS] == pytest.approx(expected, abs=0.004)


def test_the_interval_of_a_class_is_that_of_its_own_rows():
    """Fails if the interval of a recall is of all rows, of another class, or as wide as that of many more rows."""
    truth = np.repeat([0, 1, 2], [400, 100, 1])
    predicted = truth.copy()
    predicted[:80], predicted[400:450] = 1, 0
    bootstrap = Bootstrap("speaker", 4000, 1)
    rows = {row.name: row for row in metrics.estimates(truth, predicted, np.arange(501), EMOTIONS, bootstrap)[1]}
    for name, recall, count in (("anger", 0.8, 400), ("disgust", 0.5, 100)):
        figure, half = rows[name].estimates["recall"], 1.96 * np.sqrt(recall * (1 - recall) / count)
        assert figure.value == recall and (figure.low, figure.high) == pytest.approx(
            (recall - half, recall + half), abs=0.015
        )
        f1 = rows[name].estimates["f1"]
        assert (
            f1.value == f1_score(truth, predicted, labels=[EMOTIONS.index(name)], average="macro")
            and f1.low < f1.value < f1.high
        )
    rare = rows["fear"].estimates["recall"]
    assert (rare.low, rare.value, rare.high) == (1, 1, 1)  # resamples without its only row do not count as 0


def test_kappa_of_one_class_is_undefined():
    """Fails if kappa of rows of one class is given as 0 or 1, or NaN reaches the document."""
    truth = np.zeros(5, np.int64)
    figures, _ = metrics.estimates(truth, truth, np.arange(5), EMOTIONS, Bootstrap("speaker", 20))
    assert figures["kappa"].value is figures["kappa"].low is figures["kappa"].majority is None
    assert figures["accuracy"].value == figures["accuracy"].chance == 1.0


def test_one_group_has_no_interval():
    """Fails if the rows of a single speaker get an interval, which would say nothing about other speakers."""
    truth, predicted = random_labels(0)
    figures, _ = metrics.estimates(truth, predicted, np.zeros(len(truth), np.int64), EMOTIONS, Bootstrap("speaker", 50))
    assert all(figure.low is figure.high is None and figure.value is not None for figure in figures.values())


def test_rows_without_a_speaker_are_not_one_speaker():
    """Fails if all rows whose speaker is unknown are drawn together."""
    table = pa.table({"speaker": ["a", None, None, "a", None], "recording_id": ["1", "2", "3", "4", "2"]})
    assert groups_of(table, "speaker").tolist() == [0, 1, 2, 0, 1]


def test_the_spread_over_speakers_is_that_of_their_figures():
    """Fails if rows of speakers are mixed, or the deviation is not that of a sample."""
    truth, predicted = random_labels(3)
    speakers = np.arange(len(truth)) % 4
    found = metrics.spreads(truth, predicted, speakers, 7)
    for name in metrics.METRICS:
        values = [
            metrics.summary(truth[speakers == number], predicted[speakers == number])[name] for number in range(4)
        ]
        assert (found[name].mean, found[name].deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_holms_correction():
    """Fails if p-values are not corrected as in R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm")."""
    assert corrected_by_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert corrected_by_holm([0.6, 0.7]) == [1.0, 1.0]
    assert corrected_by_holm([0.2]) == [0.2] and corrected_by_holm([]) == []


def test_several_comparisons_are_corrected(tmp_path, capsys):
    """Fails if the p-values of several comparisons are given as if each were the only one."""
    outputs = [output_of(tmp_path / str(seed), records(), seed=seed) for seed in (0, 100, 200)]
    assert main([*outputs, "--labels", "label", "--resamples", "0", "--json"]) == 0
    tests = [each["test"] for each in json.loads(capsys.readouterr().out)["comparisons"]]
    p_values = [each["p_value"] for each in tests]
    assert len(p_values) == 2 and [each["p_value_holm"] for each in tests] == corrected_by_holm(p_values)
    assert min(each["p_value_holm"] for each in tests) == min(1, 2 * min(p_values))
