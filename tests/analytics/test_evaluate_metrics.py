"""Figures of an evaluation against scikit-learn's, and against those that the models' authors published."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    classification_report,
    cohen_kappa_score,
    confusion_matrix,
    f1_score,
    precision_score,
    recall_score,
)

from pipeline.analytics.evaluate import metrics
from pipeline.analytics.evaluate.bootstrap import Bootstrap
from pipeline.analytics.evaluate.published import CARD_METRICS, PUBLISHED, TEST_SETS, beside_published
from pipeline.analytics.evaluate.results import ClassFigures, Estimate
from pipeline.analytics.evaluate.words import compare_rates, error_rate
from pipeline.schema import EMOTIONS

COUNTS = {
    "audio": [[62, 2, 0, 1, 0, 0, 0], [1, 63, 0, 0, 0, 1, 0], [0, 0, 63, 1, 1, 1, 0], [0, 0, 2, 62, 0, 0, 1],
              [0, 1, 0, 0, 61, 0, 0], [0, 0, 1, 3, 2, 59, 0], [0, 1, 0, 3, 0, 0, 61]],
    "concat": [[62, 2, 1, 0, 0, 0, 0], [0, 65, 0, 0, 0, 0, 0], [0, 0, 61, 1, 1, 3, 0], [0, 0, 1, 62, 0, 1, 1],
               [0, 0, 0, 0, 62, 0, 0], [0, 0, 1, 1, 1, 62, 0], [0, 0, 0, 3, 0, 1, 61]],
    "mean": [[61, 0, 1, 3, 0, 0, 0], [4, 59, 0, 0, 1, 1, 0], [1, 1, 62, 2, 0, 0, 0], [0, 0, 1, 60, 0, 1, 3],
             [0, 0, 1, 1, 58, 2, 0], [1, 4, 6, 1, 3, 50, 0], [0, 1, 3, 2, 0, 0, 59]],
    "multihead": [[62, 2, 1, 0, 0, 0, 0], [2, 62, 0, 0, 1, 0, 0], [0, 0, 61, 4, 0, 1, 0], [0, 0, 3, 58, 0, 2, 2],
                  [0, 1, 1, 0, 60, 0, 0], [0, 0, 1, 3, 2, 59, 0], [0, 0, 0, 4, 0, 1, 60]],
}  # fmt: skip
"""Clips of true class (row) and predicted class: the only whole numbers whose shares round to those of
analysis/figures/confusion_matrices.png and whose F1 of each class to those of analysis/README.md, both of
NLP-UMUTeam/umuteam-speech-emotion at 3859029."""
PUBLISHED_F1 = {
    "audio": (0.9688, 0.9545, 0.9545, 0.9185, 0.9683, 0.9365, 0.9606),
    "concat": (0.9764, 0.9848, 0.9385, 0.9394, 0.9841, 0.9394, 0.9606),
    "mean": (0.9242, 0.9077, 0.8857, 0.8955, 0.9355, 0.8403, 0.9291),
    "multihead": (0.9612, 0.9538, 0.9173, 0.8657, 0.9600, 0.9219, 0.9449),
}


def estimates(truth: np.ndarray, predicted: np.ndarray, groups: np.ndarray, *, resamples: int) -> dict[str, Estimate]:
    return metrics.estimates(truth, predicted, groups, EMOTIONS, Bootstrap("speaker", resamples, seed=1))[0]


def per_class(truth: np.ndarray, predicted: np.ndarray) -> tuple[ClassFigures, ...]:
    groups = np.arange(len(truth))
    return metrics.estimates(truth, predicted, groups, EMOTIONS, Bootstrap("speaker", 0))[1]


def labels_of(counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    cells = [(t, p) for t, row in enumerate(counts) for p, count in enumerate(row) for _ in range(count)]
    truth, predicted = np.array(cells, np.int64).T
    return truth, predicted


def random_labels(seed: int, rows: int = 200, classes: int = 7) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.choice(classes, rows, p=random.dirichlet(np.ones(classes)))
    return truth, np.where(random.random(rows) < 0.6, truth, random.integers(0, 7, rows))


@pytest.mark.parametrize("mode", list(COUNTS))
def test_the_published_figures_come_out_of_the_published_confusions(mode):
    """Fails if a figure is another than the card's of that name: macro for weighted, or classes left out."""
    truth, predicted = labels_of(COUNTS[mode])
    ours = metrics.summary(truth, predicted)
    published = dict(zip(CARD_METRICS, PUBLISHED["en", mode], strict=True))
    if mode == "concat":  # a slip in the card: no number of 453 clips is 96.0462 %, and its macro F1 is
        assert published["accuracy"] == published["macro_f1"] == 96.0462 and len(truth) == 453
        published["accuracy"] = round(100 * 435 / 453, 4)
    for name, figure in published.items():
        assert 100 * ours[name] == pytest.approx(figure, abs=5.1e-5), name
    for row, f1 in zip(per_class(truth, predicted), PUBLISHED_F1[mode], strict=True):
        assert row.f1 == pytest.approx(f1, abs=5.1e-5)
        assert row.support == TEST_SETS["en", mode][row.name]


@pytest.mark.parametrize("seed", range(5))
def test_figures_are_scikit_learns(seed):
    """Fails if a figure is computed otherwise than by the library that the published ones come from."""
    truth, predicted = random_labels(seed)
    with np.errstate(all="raise"):
        ours = metrics.summary(truth, predicted)
    assert ours == {
        "accuracy": accuracy_score(truth, predicted),
        "weighted_precision": precision_score(truth, predicted, average="weighted", zero_division=0),
        "weighted_f1": f1_score(truth, predicted, average="weighted", zero_division=0),
        "macro_f1": f1_score(truth, predicted, average="macro", zero_division=0),
        "uar": pytest.approx(recall_score(truth, predicted, labels=np.unique(truth), average="macro"), abs=1e-12),
        "kappa": pytest.approx(cohen_kappa_score(truth, predicted), abs=1e-12),
    }
    if set(predicted) <= set(truth):
        assert ours["uar"] == pytest.approx(balanced_accuracy_score(truth, predicted))
    names = [EMOTIONS[n] for n in np.union1d(truth, predicted)]
    report = classification_report(truth, predicted, target_names=names, output_dict=True, zero_division=0)
    for row in per_class(truth, predicted):
        theirs = report[row.name]
        assert (row.precision, row.recall, row.f1, row.support) == pytest.approx(
            (theirs["precision"], theirs["recall"], theirs["f1-score"], theirs["support"])
        )
    found = metrics.confusion(truth, predicted, EMOTIONS)
    assert found.classes == tuple(names) and np.array_equal(found.counts, confusion_matrix(truth, predicted))
    assert np.allclose(found.shares, confusion_matrix(truth, predicted, normalize="true"), atol=1e-6)


def test_the_figures_of_resamples_are_scikit_learns():
    """Fails if intervals are of other figures than those they stand beside, also where a class was not drawn."""
    matrices, expected = [], []
    for seed in range(40):
        truth, predicted = random_labels(seed, rows=12, classes=5)
        matrices.append(confusion_matrix(truth, predicted, labels=range(7)))
        expected.append(list(metrics.summary(truth, predicted).values()))
    np.testing.assert_allclose(metrics.scores_of(np.array(matrices)), expected, atol=1e-12, equal_nan=True)


def test_an_interval_is_as_wide_as_the_binomial_says():
    """Fails if the bootstrap draws too few rows, without replacement, or the same every time."""
    truth = np.zeros(400, np.int64)
    predicted = (np.arange(400) < 80).astype(np.int64)
    found = estimates(truth, predicted, np.arange(400), resamples=4000)["accuracy"]
    assert found.value == 0.8
    half = 1.96 * np.sqrt(0.8 * 0.2 / 400)
    assert (found.low, found.high) == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)


def test_rows_of_one_group_are_drawn_together():
    """Fails if ten copies of a row narrow its interval, as ten segments of one recording would."""
    truth, once = np.zeros(40, np.int64), (np.arange(40) < 10).astype(np.int64)
    alone, copied, apart = (
        estimates(np.repeat(truth, times), np.repeat(once, times), groups, resamples=3000)["accuracy"]
        for times, groups in ((1, np.arange(40)), (10, np.repeat(np.arange(40), 10)), (10, np.arange(400)))
    )
    width = [each.high - each.low for each in (alone, copied, apart)]
    assert width[1] == pytest.approx(width[0], abs=0.03) and width[2] < width[0] / 2


def test_one_class_alone(recwarn):
    """Fails if a slice of one class, all right or all wrong, gives no figures or warns."""
    truth = np.full(3, 2)
    for predicted, accuracy in ((truth, 1.0), (np.full(3, 4), 0.0)):
        found = estimates(truth, predicted, np.arange(3), resamples=20)
        assert found["accuracy"] == Estimate(accuracy, accuracy, accuracy, 1.0, 1.0) and found["uar"].value == accuracy
        assert sum(map(sum, metrics.confusion(truth, predicted, EMOTIONS).counts)) == 3
        assert len(per_class(truth, predicted)) == len({2, predicted[0]})
    assert not recwarn.list


def names_of(truth: np.ndarray) -> list[str]:
    return [EMOTIONS[number] for number in truth]


def test_published_figures_stand_beside_the_same_test_set_alone():
    """Fails if ours are set beside the card's for another set: undeclared, of other class sizes, or of other corpora."""
    truth, predicted = labels_of(COUNTS["mean"])
    ours = metrics.summary(truth, predicted)
    same = beside_published("en", "mean", names_of(truth), ours, {"ravdess", "tess"}, declared=True)
    assert same is not None and same.same_test_set and same.ours["accuracy"] == ours["accuracy"]
    assert same.published["accuracy"] == pytest.approx(0.902870)
    others = [
        (truth, {"ravdess"}, False, "not declared"),
        (truth[1:], {"ravdess"}, True, "anger 64 (65)"),
        (truth, {"ravdess", "crema-d"}, True, "other corpora: crema-d"),
    ]
    for rows, datasets, declared, why in others:
        row = beside_published("en", "mean", names_of(rows), ours, datasets, declared=declared)
        assert row is not None and not row.same_test_set and row.ours is None and why in "; ".join(row.why_not)
    assert beside_published("de", "mean", names_of(truth), ours, set(), declared=True) is None
    texts = beside_published("en", "text", names_of(truth), ours, set(), declared=True)
    assert texts is not None and "453 texts, the published one 11,691" in texts.why_not[0]


def errors_of(wrong: np.ndarray, words: int = 5) -> dict[str, dict[str, int]]:
    """Recordings of `words` words, in each of which so many were heard as others."""
    none = {"deletions": 0, "insertions": 0, "utterances": 1}
    return {f"r{n}": {"words": words, "substitutions": int(count), **none} for n, count in enumerate(wrong)}


def test_the_interval_of_a_word_error_rate_is_as_wide_as_its_recordings_vary():
    """Fails if words are drawn instead of recordings, copies that are drawn together narrow it, or it leaves out the rate."""
    wrong = np.random.default_rng(0).integers(0, 5, 400)
    names = list(errors_of(wrong))
    found = error_rate(errors_of(wrong), names, np.arange(400), Bootstrap("speaker", 3000, 1))
    half = 1.96 * (wrong / 5).std() / 20
    assert found is not None and found.word_error_rate == wrong.sum() / 2000
    assert (found.low, found.high) == pytest.approx((wrong.mean() / 5 - half, wrong.mean() / 5 + half), abs=0.003)
    by_speaker = error_rate(
        errors_of(np.repeat(wrong[:40], 10)), names, np.repeat(np.arange(40), 10), Bootstrap("speaker", 3000, 1)
    )
    alone = error_rate(errors_of(wrong[:40]), names[:40], np.arange(40), Bootstrap("speaker", 3000, 1))
    assert by_speaker is not None and alone is not None
    assert (by_speaker.low, by_speaker.high) == pytest.approx((alone.low, alone.high), abs=0.01)
    bare = error_rate(errors_of(wrong), names, np.arange(400), Bootstrap("speaker", 0, 1))
    assert bare is not None and bare.low is bare.high is None
    assert error_rate(errors_of(wrong), ["another"], np.arange(1), Bootstrap("speaker", 10, 1)) is None


def test_word_error_rates_are_compared_recording_by_recording():
    """Fails if two transcriptions that differ a little on every recording are told apart no better than two corpora."""
    wrong = np.random.default_rng(0).integers(0, 4, 300)
    one, other = errors_of(wrong), errors_of(wrong + (np.arange(300) % 10 == 0))
    other["r7"]["words"] = 6  # another reference: in neither figure
    names = list(one)
    found = compare_rates([one, other], [names, names[:-1]], np.arange(300), Bootstrap("speaker", 1000, 0))
    counted = [n for n in range(299) if n != 7]
    more = sum(n % 10 == 0 for n in counted) / (5 * len(counted))
    assert found is not None and found.recordings == 298
    assert found.first == pytest.approx(wrong[counted].mean() / 5) and found.difference == pytest.approx(more)
    assert 0.01 < found.low < more < found.high < 0.03
    assert compare_rates([one, {}], [names, names], np.arange(300), Bootstrap("speaker", 10, 0)) is None
