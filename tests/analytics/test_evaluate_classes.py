"""Classes beyond the built-in emotions, and further models of a dataset, over made-up columns."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.analytics.evaluate.bootstrap import Bootstrap
from pipeline.analytics.evaluate.classes import Classes
from pipeline.analytics.evaluate.compare import compare
from pipeline.analytics.evaluate.evaluation import Options, evaluate
from pipeline.analytics.evaluate.fitted import fit_outputs
from pipeline.analytics.evaluate.labelled import Labelled, label, with_model
from pipeline.dataset.reader import committed_rows
from pipeline.errors import ConfigError
from pipeline.schema import EMOTIONS
from pipeline.storage.store import open_store
from tests.analytics.test_evaluate import output_of, records

LABELS = ("hap", "ang", "calm", "boredom")


def predictions(labels: list[str], emotions: list[str | None], reasons: list[str | None], *, rows: int = 1) -> pa.Table:
    """Predictions of a model with the labels `LABELS`; its scores are 0.7 for the predicted one and 0.1 for the others."""
    scores = [[(name, 0.7 if name == each else 0.1) for name in LABELS] for each in labels * rows]
    return pa.table(
        {
            "label": labels * rows, "emotion": pa.array(emotions * rows, pa.string()),
            "emotion_null_reason": pa.array(reasons * rows, pa.string()),
            "label_scores": pa.array(scores, pa.map_(pa.string(), pa.float32())),
        }
    )  # fmt: skip


MAPPED = predictions(["hap", "ang", "calm", "ang"], ["joy", "anger", None, None], [None, None, "unmapped", "abstained"])


def test_a_label_belongs_to_the_class_of_its_emotion():
    """Fails if labels are compared by their spelling alone, or those outside the vocabulary have no class."""
    classes = Classes.of(MAPPED)
    assert classes.names == (*EMOTIONS, "boredom", "calm")
    assert {name: classes.names[number] for name, number in classes.of_label.items()} == {
        "hap": "joy", "ang": "anger", "calm": "calm", "boredom": "boredom",
    }  # fmt: skip
    truth, unknown = classes.truth(pa.chunked_array([["Happy", "hap", "CALM", "boredom", "sad", "tired", None]]))
    assert [classes.names[number] if number >= 0 else None for number in truth] == [
        "joy", "joy", "calm", "boredom", "sadness", None, None,
    ]  # fmt: skip
    assert unknown == {"tired": 1}


def test_scores_of_a_class_are_the_sum_of_its_labels():
    """Fails if two labels of one emotion are not added up, or scores of other rows are."""
    table = predictions(["hap", "calm"], ["joy", "joy"], [None, None])
    scores = Classes.of(table).scores(table.slice(1))
    names = Classes.of(table).names
    assert scores.shape == (1, len(names))
    assert scores[0, names.index("joy")] == pytest.approx(0.8) and scores.sum() == pytest.approx(1.0)
    assert scores[0, names.index("fear")] == 0


def test_a_label_mapped_to_no_emotion_is_not_an_emotion():
    """Fails if a label that the dataset's map leaves out, as in `angry=`, counts as the emotion of that name."""
    classes = Classes.of(predictions(["angry", "hap"], [None, "joy"], ["unmapped", None]))
    assert classes.names[classes.of_label["angry"]] == "angry"


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    rows = records()
    for number, row in enumerate(rows):
        row["label"] = ("happy", "anger", "calm", "bored")[number % 4]
    return output_of(tmp_path_factory.mktemp("other labels"), rows)


def labelled(output: str, *, shift: int = 0) -> Labelled:
    """The rows of an output as annotated by a model with the labels `LABELS`, `shift` places from the true ones."""
    rows = committed_rows(open_store(output))
    table = (
        rows.utterances().to_table().drop_columns(["label", "emotion", "emotion_null_reason", "scores", "label_scores"])
    )
    places = {"happy": 0, "anger": 1, "calm": 2, "bored": 3}
    predicted = [LABELS[(places[word] + shift) % 4] for word in table["manifest_label"].to_pylist()]
    made = predictions(
        predicted,
        [{"hap": "joy", "ang": "anger"}.get(each) for each in predicted],
        [None if each in ("hap", "ang") else "unmapped" for each in predicted],
    )
    for name in made.column_names:
        table = table.append_column(name, made[name])
    return label(table, "manifest_label", rows, f"out-{shift}")


def test_a_model_with_other_labels_is_evaluated(output):
    """Fails if only emotions are compared, or the rows of a class that the model does not name count."""
    evaluation = evaluate([labelled(output)], Options("label", resamples=50))
    (found,) = evaluation.outputs
    assert found.overall is not None and found.overall.confusion.classes == ("anger", "joy", "calm")
    assert found.overall.metrics["accuracy"].value == found.overall.metrics["kappa"].value == 1.0
    assert found.overall.metrics["uar"].chance == pytest.approx(1 / 3)
    assert found.counts.other_labels == {"bored": found.counts.utterances - found.counts.compared}
    assert found.overall.calibration.log_loss == pytest.approx(-np.log(0.7))


def test_outputs_with_different_classes_are_compared(output):
    """Fails if class numbers of one output are read as those of another with more classes."""
    rows = committed_rows(open_store(output))
    emotions = label(rows.utterances().to_table(), "manifest_label", rows, "emotions")
    others = labelled(output)
    assert len(emotions.classes) < len(others.classes)
    for pair in ([emotions, others], [others, emotions]):
        found = compare(*pair, [{}, {}], Bootstrap("speaker", 20))
        assert found.labels_differ == 0 and found.metrics is not None
        accuracy = found.metrics["accuracy"]
        figures = {pair[0].output: accuracy.first, pair[1].output: accuracy.second}
        assert figures["out-0"] == 1.0 and figures["emotions"] < 0.5


def test_scores_that_are_no_distribution_get_no_temperature(output):
    """Fails if a temperature is fitted to the scores of a sigmoid, of which no softmax is the inverse."""
    rows = labelled(output)
    rows.scores[:] *= 2
    with pytest.raises(ConfigError, match="do not add up to 1"):
        fit_outputs([rows])


def test_a_further_model_is_read_from_its_struct():
    """Fails if a further model is evaluated with a prediction of the main one, or by a name that the dataset lacks."""
    struct = pa.array([{"label": "calm", "confidence": 0.4}, {"label": "hap", "confidence": 0.6}])
    table = pa.table({"utterance_id": ["a", "b"], "by_model": pa.StructArray.from_arrays([struct], names=["other"])})
    found = with_model(table, "other", "out")
    assert found.to_pylist() == [
        {"utterance_id": "a", "label": "calm", "confidence": 0.4, "abstained": False, "model": "other"},
        {"utterance_id": "b", "label": "hap", "confidence": 0.6, "abstained": False, "model": "other"},
    ]
    with pytest.raises(ConfigError, match="--model missing: out has no further model of this name; it has other"):
        with_model(table, "missing", "out")
