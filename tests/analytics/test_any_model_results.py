"""Results of models of any kind, as every program that reads an output shows them: labels without an emotion, independent
classes and dimensions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import deltalake
import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from jobs import evaluate, report, search, summarize
from pipeline.analytics.compact import compact
from pipeline.analytics.drift import Window, compare
from pipeline.analytics.publish import publish as publish_rows
from pipeline.analytics.summarize import merged, parse_groups
from pipeline.dataset.reader import finished_rows
from pipeline.storage.store import LocalStore
from tests.support.corpus import utterances
from tests.support.damages import rewrite
from tests.support.shards import by_hand, published, row, work_of
from tests.support.tiny_models import audio_checkpoint, text_checkpoint

TEXTS = ("a sad day", "so happy", "why", "no", "we won two prizes", "the bus leaves at seven")
MULTI = "multi_label_classification"


def output(folder: Path, model: Path, mode: str, **flags: object) -> LocalStore:
    """A finished output of six rows of two speakers, with labels and ratings in the manifest."""
    records = [
        row(number, text=text, speaker="ab"[number % 2], gold="happy" if number % 2 else "calm", act=0.1 * number)
        | ({"audio": None} if mode == "text" else {"offset": 0.2 * number})
        for number, text in enumerate(TEXTS)
    ]
    work = work_of(folder, records, {"fusion/en": str(model)}, mode, segmentation="none", **flags)
    by_hand(work)
    return published(work)


@pytest.fixture(scope="module")
def unmapped(tmp_path_factory) -> LocalStore:
    """An output of a softmax, one of whose labels is mapped to nothing."""
    folder = tmp_path_factory.mktemp("unmapped")
    text_checkpoint(folder / "m", "roberta")
    return output(folder, folder / "m", "text", label_map=["neutral="])


@pytest.fixture(scope="module")
def independent(tmp_path_factory) -> LocalStore:
    """An output of a model with sigmoids."""
    folder = tmp_path_factory.mktemp("independent")
    text_checkpoint(folder / "m", "roberta", problem_type=MULTI)
    return output(folder, folder / "m", "text")


@pytest.fixture(scope="module")
def rated(tmp_path_factory) -> LocalStore:
    """An output of a regression; its arousal is written over, so that it is spread over 0 to 1."""
    folder = tmp_path_factory.mktemp("rated")
    names = ("arousal", "dominance", "valence")
    audio_checkpoint(folder / "m", "wav2vec2", feat_extract_norm="layer", names=names, problem_type="regression")
    store = output(folder, folder / "m", "audio")

    def spread(rows: pa.Table) -> pa.Table:
        numbers = [0.05 + 0.15 * number for number in range(rows.num_rows)]
        place = rows.schema.get_field_index("arousal")
        field = rows.schema.field("arousal").with_metadata({"scale": "1 to 7"})
        return rows.set_column(place, field, pa.array(numbers, pa.float32()))

    rewrite(next(Path(store.root).glob("utterances/*.parquet")), spread)
    return store


def copy(store: LocalStore, folder: Path) -> LocalStore:
    shutil.copytree(store.root, folder / "out")
    return LocalStore(folder / "out")


def test_sums_of_labels_and_reasons(unmapped, tmp_path):
    """Fails if labels or reasons of an absent emotion are not counted, or the counts of two runs are not added up."""
    store, groups = copy(unmapped, tmp_path), parse_groups(["speaker"], ["speaker"])
    assert summarize.main([str(store.root), "--by", "speaker"]) == 0
    rows = utterances(store.root).to_pylist()
    for runs in (1, 2):
        for group in merged(store, groups).to_pylist():
            mine = [each for each in rows if each["speaker"] == group["speaker"]]
            labels = [each["label"] for each in mine]
            assert dict(group["by_label"]) == {label: runs * labels.count(label) for label in sorted(set(labels))}
            without = [each["emotion_null_reason"] for each in mine].count("unmapped")
            assert group["null_share"]["unmapped"] == pytest.approx(without / len(mine))
            assert sum(group["share"].values()) + group["null_share"]["unmapped"] == pytest.approx(1)
        (file,) = Path(store.root).glob("summaries/speaker/000001.parquet")
        shutil.copy(file, file.with_name("000002.parquet"))
    assert {each["label"] for each in rows} == {"happy", "neutral"}


def test_means_of_dimensions(rated, tmp_path, capsys):
    """Fails if the mean of a dimension is of other rows, or is missing from the table that is printed."""
    store = copy(rated, tmp_path)
    file = tmp_path / "t.parquet"
    assert summarize.main([str(store.root), "--by", "speaker", "--to", str(file)]) == 0
    expected = utterances(store.root).group_by("speaker").aggregate([("arousal", "mean"), ("valence", "mean")])
    means = {each["speaker"]: each for each in pq.read_table(file).to_pylist()}
    for each in expected.to_pylist():
        assert means[each["speaker"]]["mean_arousal"] == pytest.approx(each["arousal_mean"])
        assert means[each["speaker"]]["mean_valence"] == pytest.approx(each["valence_mean"])
        assert (means[each["speaker"]]["null_share"]["regression"], means[each["speaker"]]["by_label"]) == (1, None)
    printed = capsys.readouterr().out
    assert "arousal" in printed and "regression" in printed
    assert report.main(["--summary", str(file), "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "mean_arousal" in page and "no emotion" in page and "mostly anger" not in page


def test_json_of_label_scores(unmapped, tmp_path, capsys):
    """Fails if a program gets the scores of labels as pairs, or a person as Python's notation of them."""
    store = copy(unmapped, tmp_path)
    assert summarize.main([str(store.root), "--by", "speaker", "--json"]) == 0
    assert {type(group["by_label"]) for group in json.loads(capsys.readouterr().out)["groups"]} == {dict}
    like = [
        str(store.root),
        "--like",
        "r0#0000",
        "--top",
        "1",
        "--columns",
        "label_scores",
        "--where",
        "label = 'happy'",
    ]
    assert search.main([*like, "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)["label_scores"]
    assert list(scores) == ["angry", "happy", "neutral", "sad"] and sum(scores.values()) == pytest.approx(1, abs=1e-5)
    assert search.main(like) == 0
    assert f"angry {scores['angry']:.3g}, happy {scores['happy']:.3g}" in capsys.readouterr().out


def test_drift_of_labels_and_reasons(unmapped):
    """Fails if a label that has no emotion is one with every other absent emotion, or its share may change unseen."""
    rows = finished_rows(unmapped)
    windows = Window(rows, "label = 'happy'"), Window(rows)
    before = {
        each.column: each.change for each in compare(*windows, embeddings=False).measures if each.measure == "psi"
    }
    assert before["emotion"] == "(unmapped): 0.0% -> 33.3%"
    found = compare(Window(rows), Window(rows, "label = 'neutral'"), embeddings=False).measures
    changes = {each.column: each.change for each in found if each.measure == "psi"}
    assert changes["emotion"] == "joy: 66.7% -> 0.0%"
    assert changes["label"] == "happy: 66.7% -> 0.0%" and "arousal" not in changes
    same = compare(Window(rows, "label = 'happy'"), Window(rows, "label = 'happy'"), embeddings=False).measures
    assert "label" not in {each.column for each in same}


def test_drift_of_dimensions(rated):
    """Fails if a dimension is not compared, or not in deciles of the reference."""
    rows = finished_rows(rated)
    found = {
        each.column: each for each in compare(Window(rows), Window(rows, "arousal > 0.4"), embeddings=False).measures
    }
    assert {"arousal", "valence", "dominance"} <= set(found) and "label" not in found
    assert found["arousal"].value > found["language"].value == 0
    assert found["emotion"].change == "(regression): 100.0% -> 100.0%"


def test_pages_of_every_kind_of_model(unmapped, independent, rated, tmp_path):
    """Fails if the page of a run hides a model's labels or dimensions, or draws them as something else."""
    pages = {}
    for name, store in {"unmapped": unmapped, "independent": independent, "rated": rated}.items():
        assert report.main([str(store.root), "--to", str(tmp_path / f"{name}.html")]) == 0
        pages[name] = (tmp_path / f"{name}.html").read_text()
    assert "(unmapped) 33 %" in pages["unmapped"] and 'id="label-title"' in pages["unmapped"]
    assert 'id="label-title"' in pages["independent"] and 'id="arousal-title"' not in pages["independent"]
    assert "Predictions from 0.05 to 0.8." in pages["rated"] and 'id="label-title"' not in pages["rated"]
    assert "mostly anger" not in pages["rated"] and "(regression) 100 %" in pages["rated"]


def test_an_evaluation_reads_labels_and_dimensions(unmapped, rated, tmp_path):
    """Fails if a label without an emotion has no class of its own, or predictions come from elsewhere than the columns."""
    options = ["--resamples", "0", "--write"]
    assert evaluate.main([str(unmapped.root), "--labels", "gold", *options, str(tmp_path / "labels")]) == 0
    (figures,) = json.loads((tmp_path / "labels" / "metrics.json").read_text())["outputs"]
    rows = utterances(unmapped.root).to_pylist()
    assert figures["counts"]["compared"] == 3 and figures["counts"]["other_labels"] == {"calm": 3}
    right = [each["label"] == "happy" for each in rows if each["gold"] == "happy"]
    assert figures["overall"]["metrics"]["accuracy"]["value"] == pytest.approx(np.mean(right)) == pytest.approx(2 / 3)
    confusion = figures["overall"]["confusion"]
    assert (confusion["classes"], confusion["counts"]) == (["joy", "neutral"], [[2, 1], [0, 0]])
    assert evaluate.main([str(rated.root), "--dimensions", "arousal=act", *options, str(tmp_path / "ratings")]) == 0
    (figures,) = json.loads((tmp_path / "ratings" / "metrics.json").read_text())["outputs"]
    rows = utterances(rated.root)
    error = pc.subtract(rows["arousal"].cast(pa.float64()), rows["act"]).to_numpy()
    (arousal,) = figures["dimensions"]
    assert arousal["overall"]["metrics"]["rmse"]["value"] == pytest.approx(np.sqrt((error**2).mean()), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "message"),
    [("independent", "are independent (sigmoid)"), ("rated", "is a regression and predicts no label")],
)
def test_a_calibration_is_for_softmax(name, message, request, tmp_path, capsys):
    """Fails if a temperature is fitted to the scores of independent classes, or a regression's refusal does not say why."""
    store, file = request.getfixturevalue(name), tmp_path / "calibration.json"
    fit = ["--labels", "gold", "--resamples", "0", "--fit-calibration", str(file)]
    assert evaluate.main([str(store.root), *fit]) == 2
    assert message in capsys.readouterr().err and not file.exists()


def test_large_files_and_tables_hold_every_kind_of_result(unmapped, independent, rated, tmp_path):
    """Fails if a compacted file or a lakehouse table loses label scores, labels, dimensions or the scale of one."""
    for store in (unmapped, independent, rated):
        name, expected = Path(store.root).parent.name, utterances(store.root).to_pylist()
        mine = copy(store, tmp_path / name)
        list(compact(finished_rows(mine), target_bytes=2**20))
        (large,) = Path(mine.root).glob("compacted/*.parquet")
        assert pq.read_table(large).sort_by("utterance_id").to_pylist() == expected
        assert (b"scale" in pq.read_schema(large).field("arousal").metadata) == (store is rated)
        for form in ("delta", "lance"):
            assert len(list(publish_rows(finished_rows(mine), form, str(tmp_path / name / form)))) == 1
        for table in (
            deltalake.DeltaTable(str(tmp_path / name / "delta")).to_pyarrow_table(),
            lance.dataset(tmp_path / name / "lance").to_table(),
        ):
            rows = table.sort_by("utterance_id").to_pylist()
            for column in ("label", "label_scores", "labels", "emotion", "emotion_null_reason", "arousal"):
                assert [each[column] for each in rows] == [each[column] for each in expected], column
