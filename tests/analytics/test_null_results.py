"""Utterances without results, as every program that reads an output shows them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import deltalake
import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from demo.run import _utterance_cells
from jobs import evaluate, report, summarize
from pipeline.analytics.compact import compact
from pipeline.analytics.drift import Window, compare
from pipeline.analytics.nearest import nearest
from pipeline.analytics.publish import publish as publish_rows
from pipeline.analytics.search import query_by_utterance
from pipeline.analytics.summarize import merged, parse_groups
from pipeline.analytics.summarize import summarize as summarize_rows
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.invariants import Invariant
from pipeline.errors import ConfigError
from pipeline.storage.store import LocalStore
from tests.support.corpus import utterances
from tests.support.damages import rewrite
from tests.support.detecting import ENGLISH, SPANISH, Detecting, auto, pieces
from tests.support.shards import by_hand, published


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, checkpoints) -> LocalStore:
    """A finished run of four utterances, one of which has no results, and one of which abstains."""
    folder = tmp_path_factory.mktemp("mixed")
    audio = pieces(folder / "a.wav", 7, 8, 7)
    records = [{"id": "r", "audio": audio, "speaker": "a", "label": "joy"},
               {"id": "s", "audio": pieces(folder / "b.wav", 3), "speaker": "b", "label": "anger"}]  # fmt: skip
    work = auto(folder, checkpoints, records, min_confidence=0.0)
    by_hand(work, Detecting(ENGLISH, SPANISH, ENGLISH, ENGLISH))
    return published(work)


def test_an_audit_of_null_results(mixed, tmp_path):
    """Fails if a row without results is called broken, or one that should have some is called sound."""
    assert (audit(mixed, deep=True).status, audit(mixed, deep=True).violations) == ("sound", ())
    damages = {
        "label": "joy", "confidence": 0.5, "audio_embedding": [0.0] * 768, "model": "m", "emotion_null_reason": None,
        "language": "en", "language_prob": 0.5, "abstained": True,
    }  # fmt: skip
    for name, value in damages.items():
        out = tmp_path / name
        shutil.copytree(mixed.root, out)

        def change(rows, name=name, value=value):
            values = [value if row["language"] == "es" else row[name] for row in rows.to_pylist()]
            field = rows.schema.field(name)
            return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))

        rewrite(next(out.glob("utterances/*.parquet")), change)
        found = {violation.invariant for violation in audit(LocalStore(out), deep=True).violations}
        assert Invariant.LANGUAGE in found, name


def test_sums_leave_out_null_results(mixed, capsys):
    """Fails if a mean counts an utterance that has no confidence as one with 0."""
    assert summarize.main([mixed.root, "--by", "speaker"]) == 0
    table = {row["speaker"]: row for row in merged(mixed, parse_groups(["speaker"], ["speaker"])).to_pylist()}
    rows = [row for row in utterances(mixed.root).to_pylist() if row["speaker"] == "a"]
    known = [row["confidence"] for row in rows if row["confidence"] is not None]
    assert (len(rows), len(known)) == (3, 2)
    assert table["a"]["confidence"] == pytest.approx(np.mean(known)) and table["a"]["utterances"] == 3
    assert sum(table["a"]["share"].values()) == pytest.approx(2 / 3)
    assert table["b"]["confidence"] == pytest.approx(table["b"]["confidence_max"])


def test_sums_of_an_older_version_are_read(mixed, tmp_path):
    """Fails if summaries written before there was a count of confidences can no longer be added up."""
    store, groups = LocalStore(tmp_path / "out"), parse_groups(["speaker"], ["speaker"])
    shutil.copytree(mixed.root, store.root)
    for _ in range(2):
        for _plan in summarize_rows(finished_rows(store), groups):
            (file,) = Path(store.root).glob("summaries/speaker/*.parquet")
            pq.write_table(pq.read_table(file).drop_columns(["confidence_count"]), file)
    found = {row["speaker"]: row["confidence"] for row in merged(store, groups).to_pylist()}
    assert found["b"] == pytest.approx(utterances(store.root).to_pylist()[-1]["confidence"])


def test_an_evaluation_leaves_out_null_results(mixed, tmp_path, capsys):
    """Fails if an utterance without a prediction crashes the evaluation, counts as wrong, or goes without a word."""
    assert evaluate.main([mixed.root, "--labels", "label", "--resamples", "0", "--write", str(tmp_path / "ev")]) == 0
    counts = json.loads((tmp_path / "ev" / "metrics.json").read_text())["outputs"][0]["counts"]
    assert (counts["utterances"], counts["compared"], counts["without_prediction"]) == (4, 3, 1)
    assert "1 labelled utterances have no label by a model" in capsys.readouterr().out


def test_a_report_shows_null_results(mixed, tmp_path):
    """Fails if a page cannot be drawn of rows without results, or shows them as abstained."""
    assert report.main([mixed.root, "--to", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "(no model) 25 %" in page and "(abstained) " not in page


def test_drift_counts_null_results_apart(mixed):
    """Fails if an emotion or a confidence that is null is left out of a distribution, or crashes it."""
    rows = finished_rows(mixed)
    measures = {
        m.column: m for m in compare(Window(rows), Window(rows, "language = 'es'")).measures if m.measure == "psi"
    }
    assert measures["emotion"].change == "(language): 25.0% -> 100.0%"
    assert measures["confidence"].change == "none: 25.0% -> 100.0%"
    assert measures["language"].change == "es: 25.0% -> 100.0%"


def test_null_results_are_no_neighbours(mixed):
    """Fails if an utterance without an embedding is found, or asking for its neighbours gives an accident."""
    rows = finished_rows(mixed)
    for where in (None, "true"):
        found = nearest(rows, query_by_utterance(rows, "r#0000", None), top=9, where=where)["utterance_id"].to_pylist()
        assert sorted(found) == ["r#0002", "s#0000"]
    with pytest.raises(ConfigError, match="'r#0001' has no audio_embedding"):
        query_by_utterance(rows, "r#0001", None)


def test_large_files_and_tables_hold_null_results(mixed, tmp_path):
    """Fails if a compacted file or a lakehouse table lacks the new columns, or cannot hold a null in the old ones."""
    expected = utterances(mixed.root).to_pylist()
    list(compact(finished_rows(mixed), target_bytes=2**20))
    large = pq.read_table(next(Path(mixed.root).glob("compacted/*.parquet"))).sort_by("utterance_id")
    assert large.to_pylist() == expected
    for form in ("delta", "lance"):
        assert len(list(publish_rows(finished_rows(mixed), form, str(tmp_path / form)))) == 1
    for table in (
        deltalake.DeltaTable(str(tmp_path / "delta")).to_pyarrow_table(),
        lance.dataset(tmp_path / "lance").to_table(),
    ):
        rows = table.sort_by("utterance_id").to_pylist()
        assert [row["emotion_null_reason"] for row in rows] == [None, "language", None, None]
        assert [row["label"] for row in rows] == [row["label"] for row in expected]
        assert rows[1]["audio_embedding"] is rows[1]["confidence"] is None


def test_the_demo_shows_null_results():
    """Fails if the demo's table cannot show an utterance without a confidence."""
    row = {"audio": "/a/b.wav", "channel": None, "start_s": 0.0, "speaker": "x", "text": "hola", "text_source": "asr",
           "emotion": None, "confidence": None, "manifest_label": None}  # fmt: skip
    assert _utterance_cells(row, several=False)[-2:] == ["–", "–"]
