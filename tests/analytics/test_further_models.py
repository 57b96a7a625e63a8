"""Results of further models (`--also`) in summaries, drift, pages, search and large files."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import check, drift, evaluate, report, search, summarize
from pipeline.analytics.compact import compact
from pipeline.analytics.drift import Window, compare
from pipeline.analytics.summarize import merged, parse_groups
from pipeline.analytics.summary_columns import MERGED_COLUMNS, SUMMARY_COLUMNS
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.schema import EMOTIONS
from pipeline.storage.store import LocalStore
from tests.support.corpus import utterances
from tests.support.damages import rewrite
from tests.support.further import LABELS, further_output

NAMES = ["Select", "dims", "words"]


def mixed(rows: pa.Table) -> pa.Table:
    """The rows with other emotions of the further model `words`: one as the main model's, one another, others null."""
    values = rows.to_pylist()
    emotions = [values[0]["emotion"], "fear", None, values[3]["emotion"], None, values[5]["emotion"]]
    for value, emotion in zip(values, emotions, strict=True):
        why = None if emotion else "unmapped"
        value["by_model"]["words"] |= {"emotion": emotion, "emotion_null_reason": why}
    return pa.Table.from_pylist(values, schema=rows.schema)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> LocalStore:
    """An output as the models wrote it."""
    return further_output(tmp_path_factory.mktemp("further"))


@pytest.fixture(scope="module")
def made(plain, tmp_path_factory) -> LocalStore:
    """The same output with the emotions of `mixed`."""
    store = LocalStore(tmp_path_factory.mktemp("mixed") / "out")
    shutil.copytree(plain.root, store.root)
    rewrite(next(Path(store.root).glob("utterances/*.parquet")), mixed)
    return store


@pytest.fixture
def output(made, tmp_path) -> str:
    """A copy of the output, for programs that write into it."""
    shutil.copytree(made.root, tmp_path / "out")
    return str(tmp_path / "out")


def test_sums_of_further_models_are_those_of_a_loop(output, tmp_path, capsys):
    """Fails if a share, a label, a mean or the agreement of a further model is of other rows, or two runs do not add up."""
    assert summarize.main([output, "--by", "speaker", "--to", str(tmp_path / "t.parquet")]) == 0
    printed = capsys.readouterr().out
    assert all(f"further model {name};" in printed for name in NAMES)
    rows = utterances(output).to_pylist()
    groups = parse_groups(["speaker"], ["speaker"])
    (file,) = Path(output).glob("summaries/speaker/000001.parquet")
    for runs in (1, 2):
        table = merged(LocalStore(Path(output)), groups)
        for group in table.to_pylist():
            mine = [row for row in rows if row["speaker"] == group["speaker"]]
            assert list(group["by_model"]) == NAMES
            for name, sums in group["by_model"].items():
                of_model = [row["by_model"][name] for row in mine]
                emotions = Counter(each["emotion"] for each in of_model)
                assert sums["share"] == pytest.approx({each: emotions[each] / len(mine) for each in EMOTIONS})
                reasons = Counter(each["emotion_null_reason"] for each in of_model)
                assert sums["null_share"] == pytest.approx({each: reasons[each] / 3 for each in sums["null_share"]})
                both = [(row["emotion"], row["by_model"][name]["emotion"]) for row in mine]
                both = [pair for pair in both if None not in pair]
                agreed = sum(one == other for one, other in both)
                assert sums["compared"] == runs * len(both)
                assert sums["agreement"] == (pytest.approx(agreed / len(both)) if both else None)
            labels = Counter(row["by_model"]["words"]["label"] for row in mine)
            assert dict(group["by_model"]["words"]["by_label"]) == {each: runs * n for each, n in labels.items()}
            arousal = np.mean([row["by_model"]["dims"]["arousal"] for row in mine])
            assert group["by_model"]["dims"]["mean_arousal"] == pytest.approx(arousal)
            assert group["by_model"]["dims"]["confidence"] is None
        shutil.copy(file, file.with_name("000002.parquet"))
    for schema, columns in ((pq.read_schema(file), SUMMARY_COLUMNS), (table.schema, MERGED_COLUMNS)):
        assert schema.field("by_model").metadata[b"description"].decode() == columns["by_model"].description
    with pytest.raises(ConfigError, match="column of every summary"):
        parse_groups(["by_model=1"], ["speaker"])
    assert report.main(["--summary", str(tmp_path / "t.parquet"), "--to", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    assert (
        all(f'id="groups-{name}-title"' in page for name in NAMES) and "dims: emotions by group: a no emotion" in page
    )


def test_json_of_a_further_model_has_no_pairs(output, capsys):
    """Fails if a program gets labels and their counts inside a struct as a list of pairs."""
    assert summarize.main([output, "--by", "speaker", "--json"]) == 0
    for group in json.loads(capsys.readouterr().out)["groups"]:
        assert set(group["by_model"]["words"]["by_label"]) <= set(LABELS)


def test_drift_of_further_models(made, capsys):
    """Fails if the emotions, labels, dimensions or the agreement of a further model change unnoticed, or only one of two
    outputs has the model and the comparison does not say so."""
    rows = finished_rows(made)
    windows = Window(rows), Window(rows, "by_model.words.emotion = emotion")
    measures = compare(*windows, embeddings=False).measures
    changes = {measure.column: measure.change for measure in measures if measure.measure == "psi"}
    assert changes["by_model.words.agreement"] == "same: 50.0% -> 100.0%"
    assert changes["by_model.words.emotion"].startswith(("(unmapped): 33.3% -> 0.0%", "joy: "))
    assert {"by_model.words.label", "by_model.words.confidence", "by_model.dims.arousal"} <= changes.keys()
    assert {"by_model.dims.confidence", "by_model.dims.agreement", "by_model.Select.label"}.isdisjoint(changes)
    assert changes["by_model.dims.emotion"] == "(regression): 100.0% -> 100.0%"
    assert " to " in changes["by_model.dims.arousal"].partition(":")[0]
    assert drift.main([str(made.root), "--reference", "true", "--current", "speaker = 'a'"]) == 0
    printed = capsys.readouterr().out
    assert "by_model.words.agreement" in printed and "further model" not in printed


def test_a_model_that_one_window_has_is_left_out(made, tmp_path):
    """Fails if the absence of a further model from the reference passes for no drift, or stops the comparison."""
    other = tmp_path / "other"
    shutil.copytree(made.root, other)
    document = json.loads((other / "_dataset.json").read_text())
    plan = other / "_runs" / "000001" / "plan.json"
    for file, settings in ((other / "_dataset.json", document), (plan, json.loads(plan.read_text()))):
        text = json.dumps(settings).replace('"also": ["Select", "dims", "words"]', '"also": ["Select", "dims"]')
        file.write_text(text)
    windows = Window(finished_rows(LocalStore(other))), Window(finished_rows(made))
    compared = compare(*windows, embeddings=False)
    assert compared.left_out == ("further model words: one window has it",)
    assert not any(measure.column.startswith("by_model.words") for measure in compared.measures)


def test_the_page_of_a_run_has_a_block_for_each_further_model(made, tmp_path):
    """Fails if a further model has no section, or the agreement is not that of the rows."""
    assert report.main([str(made.root), "--to", str(tmp_path / "p.html")]) == 0
    page = (tmp_path / "p.html").read_text()
    sections = ["words-emotion", "words-label", "Select-emotion", "Select-label", "dims-emotion", "dims-arousal"]
    assert all(f'<section id="{name}"' in page for name in sections) and 'id="dims-label"' not in page
    assert "the emotion of the main model to 75 % of the 4 utterances" in page
    assert "It and the main model give an emotion to no utterance in common." in page
    assert "words: labels: " in page and 'id="label-title"' not in page


@pytest.mark.parametrize("where", [[], ["--where", "by_model.words.emotion = 'fear' OR by_model.Select.margin < 2"]])
def test_search_by_a_further_model(made, where, capsys):
    """Fails if fields of a further model cannot be printed, or are those of other rows, with a condition or without."""
    columns = "utterance_id,by_model.words.emotion,by_model.Select.labels"
    assert search.main([str(made.root), "--like", "r0#0000", "--columns", columns, "--json", *where]) == 0
    rows = {row["utterance_id"]: row["by_model"] for row in utterances(made.root).to_pylist()}
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(results) == 5
    for result in results:
        mine = rows[result["utterance_id"]]
        assert result["by_model.words.emotion"] == mine["words"]["emotion"]
        assert result["by_model.Select.labels"] == mine["Select"]["labels"]


def test_search_for_an_emotion_of_a_further_model(made, capsys):
    """Fails if the condition is on the main model's emotion."""
    only = ["--where", "by_model.words.emotion = 'fear'"]
    assert search.main([str(made.root), "--like", "r0#0000", *only, "--json"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["utterance_id"] == "r1#0000"


@pytest.mark.parametrize(
    ("column", "hint"),
    [
        ("by_model.wrods.emotion", "; did you mean 'by_model.words'?"),
        ("by_model.words.emotoin", "; did you mean 'by_model.words.emotion'?"),
        ("emotion.x", ""),
    ],
)
def test_a_field_that_does_not_exist_is_named(made, column, hint, capsys):
    """Fails with a traceback, or with a message that does not name the column."""
    assert search.main([str(made.root), "--like", "r0#0000", "--columns", column]) == 2
    assert f"no column {column!r}{hint}" in capsys.readouterr().err


@pytest.mark.parametrize(("share", "status"), [("0.34", 0), ("0.33", 3)])
def test_a_check_of_a_further_model(made, share, status, capsys):
    """Fails if nulls of a further model cannot be tested, or the nulls of another column are counted."""
    assert check.main([str(made.root), "--max-null-share", f"by_model.words.emotion={share}"]) == status
    assert "2 of 6 nulls in by_model.words.emotion" in capsys.readouterr().out


def test_large_files_keep_the_scale_of_a_further_model(output):
    """Fails if a compacted file loses the scale of a further model's dimension, or gives it to another model's."""

    def scaled(rows: pa.Table) -> pa.Table:
        def described(kind: pa.DataType, *path: str) -> pa.DataType:
            if not path:
                return kind
            fields = [
                each.with_type(described(each.type, *path[1:])).with_metadata(
                    {"scale": "1 to 7"} if not path[1:] else None
                )
                if each.name == path[0]
                else each
                for each in kind
            ]
            return pa.struct(fields)

        place = rows.schema.get_field_index("by_model")
        field = rows.schema.field(place)
        return rows.cast(rows.schema.set(place, field.with_type(described(field.type, "dims", "arousal"))))

    rewrite(next(Path(output).glob("utterances/*.parquet")), scaled)
    list(compact(finished_rows(LocalStore(Path(output))), target_bytes=2**20))
    (large,) = Path(output).glob("compacted/*.parquet")
    further = pq.read_schema(large).field("by_model").type
    assert further.field("dims").type.field("arousal").metadata[b"scale"] == b"1 to 7"
    assert not further.field("dims").type.field("valence").metadata
    assert not further.field("words").type.field("arousal").metadata
    assert pq.read_table(large).sort_by("utterance_id").to_pylist() == utterances(output).to_pylist()


def figures_of(output: str, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, dict]:
    """The figures of each model, by the name at the end of its output."""
    assert evaluate.main([output, "--resamples", "0", "--json", *options]) == 0
    document = json.loads(capsys.readouterr().out)
    return {each["output"].partition(", model ")[2]: each for each in document["outputs"]}


def test_an_evaluation_of_models_that_predict_different_things(plain, capsys):
    """Fails if a model of dimensions cannot be evaluated beside one of classes, its figures are of other rows, or what a model
    does not predict is passed over in silence."""
    output, rows = str(plain.root), utterances(plain.root).to_pylist()
    figures = figures_of(output, capsys, "--dimensions", "arousal=act", "--model", "dims")
    assert list(figures) == ["dims"]
    errors = [row["by_model"]["dims"]["arousal"] - row["act"] for row in rows]
    (arousal,) = figures["dims"]["dimensions"]
    assert arousal["overall"]["metrics"]["rmse"]["value"] == pytest.approx(
        np.sqrt(np.mean(np.square(errors))), abs=1e-6
    )
    assert any("predicts no arousal" in sentence for sentence in figures["dims"]["warnings"])
    both = ["--labels", "gold", "--dimensions", "arousal=act", "--model", "dims", "--model", "words"]
    figures = figures_of(output, capsys, *both)
    assert [len(figures[name]["dimensions"]) for name in ("", "dims", "words")] == [0, 1, 0]
    assert [figures[name]["counts"]["compared"] for name in ("", "dims", "words")] == [6, 0, 6]
    right = [row["by_model"]["words"]["label"] == "joyful" for row in rows if row["gold"] == "happy"]
    recall = {each["class"]: each["recall"] for each in figures["words"]["overall"]["per_class"]}["joy"]
    assert recall == pytest.approx(np.mean(right))
    assert any("is a regression and predicts no label" in sentence for sentence in figures["dims"]["warnings"])


def test_an_evaluation_of_nothing_is_refused(made, capsys):
    """Fails if an evaluation without a single figure passes for one."""
    assert evaluate.main([str(made.root), "--dimensions", "arousal=act", "--model", "words"]) == 2
    assert "predicts no arousal" in capsys.readouterr().err
