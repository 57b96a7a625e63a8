from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from jobs.search import main
from pipeline.analytics.nearest import nearest
from pipeline.analytics.search import heard, like, read
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store
from tests.support.outputs import finished_output, publish_plan
from tests.support.shards import CLIP, annotate_shard, models_of, row, work_of

TEXTS = ("We won two prizes!", "Leave me alone.", "The bus leaves at nine.")


@pytest.fixture(scope="module")
def output(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    return finished_output(str(folder / "out"), folder / "m")


def embedded(output):
    """Ids and embeddings [N, 4] as plain numpy has them."""
    table = ds.dataset(f"{output.root}/utterances", partitioning="hive").to_table()
    return table, table["audio_embedding"].combine_chunks().flatten().to_numpy().reshape(-1, 4)


def test_the_nearest_are_those_of_a_full_sort(output):
    """Fails if an utterance that is nearer is missed, one is its own neighbour, or the similarity is no cosine."""
    table, matrix = embedded(output)
    rows = finished_rows(output)
    for number, utterance in enumerate(table["utterance_id"].to_pylist()):
        cosine = matrix @ matrix[number] / np.linalg.norm(matrix, axis=1) / np.linalg.norm(matrix[number])
        order = [other for other in np.argsort(-cosine) if other != number][:5]
        found = nearest(rows, like(rows, utterance, None), top=5)
        np.testing.assert_allclose(found["similarity"].to_numpy(), cosine[order], atol=1e-6)
        assert utterance not in found["utterance_id"].to_pylist() and found.num_rows == 5


def test_with_and_without_a_condition_the_same_are_found(output):
    """Fails if numpy's way and DuckDB's give other neighbours, similarities or columns, whatever the number asked for."""
    rows = finished_rows(output)
    query = like(rows, "r1#0001", None)
    for top in (1, 2, 14, 50):
        plain = nearest(rows, query, top=top, columns=["utterance_id", "speaker", "take"])
        asked = nearest(rows, query, top=top, columns=["utterance_id", "speaker", "take"], where="true")
        assert plain.num_rows == asked.num_rows == min(top, 14) and plain.column_names == asked.column_names
        assert plain.drop_columns("similarity").to_pylist() == asked.drop_columns("similarity").to_pylist()
        np.testing.assert_allclose(plain["similarity"].to_numpy(), asked["similarity"].to_numpy(), atol=1e-6)


def test_a_bucket_is_searched_as_a_folder_is(output, s3, tmp_path):
    """Fails if the files that hold an utterance or an answer are not found again by what the store calls them."""
    rows = [finished_rows(store) for store in (output, finished_output(f"s3://{s3.bucket}/search", tmp_path / "m"))]
    here, there = (nearest(each, like(each, "s1#0000", None), top=4, columns=["utterance_id", "text"]) for each in rows)
    assert there.num_rows == 4 and here.equals(there)


def test_rows_of_other_models_are_no_neighbours(output, monkeypatch):
    """Fails if a query is compared with embeddings of another model, whose space is another one."""
    rows = finished_rows(output)
    query = replace(like(rows, "r0#0000", None), model="another")
    for where in (None, "true"):
        assert nearest(rows, query, top=5, where=where).num_rows == 0


def test_rows_without_an_embedding_do_not_shift_those_with_one(tmp_path, monkeypatch):
    """Fails if the vector of one row is taken for that of another where some have none."""
    from tests.support import outputs

    real = outputs.recognised

    def some_missing(rows, seed):
        table = real(rows, seed)
        column = table["audio_embedding"].to_pylist()
        kept = pa.array([vector if n else None for n, vector in enumerate(column)], pa.list_(pa.float32(), 4))
        return table.set_column(table.schema.get_field_index("audio_embedding"), "audio_embedding", kept)

    monkeypatch.setattr(outputs, "recognised", some_missing)
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    query = like(rows, "r1#0001", None)
    plain, asked = (nearest(rows, query, top=50, where=where) for where in (None, "true"))
    assert 0 < plain.num_rows < 14 and plain["utterance_id"].to_pylist() == asked["utterance_id"].to_pylist()
    with pytest.raises(ConfigError, match="has no audio_embedding"):
        like(rows, "r0#0000", None)


def test_a_condition_holds_before_the_best_are_taken(output):
    """Fails if the filter is applied to the best of all, which leaves too few, or a partition column cannot be asked."""
    rows = finished_rows(output)
    found = nearest(
        rows, like(rows, "r0#0000", None), top=3, where="speaker = 'c' OR take = 1", columns=["speaker", "take"]
    )
    assert found.num_rows == 3 and all(r["speaker"] == "c" or r["take"] == 1 for r in found.to_pylist())


def test_vectors_without_a_direction_are_no_neighbours(tmp_path, monkeypatch):
    """Fails if a NaN similarity, which sorts above all numbers, is called the nearest."""
    from tests.support import outputs

    real = outputs.recognised

    def some_zero(rows, seed):
        table = real(rows, seed)
        zero = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4 * table.num_rows, np.float32)), 4)
        return (
            table.set_column(table.schema.get_field_index("audio_embedding"), "audio_embedding", zero)
            if seed
            else table
        )

    monkeypatch.setattr(outputs, "recognised", some_zero)
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    for where in (None, "true"):
        found = nearest(rows, like(rows, "r0#0000", None), top=50, where=where)
        assert 0 < found.num_rows < 14 and np.isfinite(found["similarity"].to_numpy()).all()


def test_half_precision_is_searched_as_well(tmp_path, monkeypatch):
    """Fails if an output written with --embedding-dtype float16, which DuckDB does not read, cannot be searched."""
    from tests.support import outputs

    monkeypatch.setattr(outputs, "FLAGS", {"embedding_dtype": "float16"})
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    assert nearest(rows, like(rows, "r0#0000", "audio_embedding"), top=3).num_rows == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [(["--like", "nobody"], "no finished run has an utterance"), (["--like", "r0#0000", "--where", "nope"], "nope"),
     (["--like", "r0#0000", "--columns", "utterance_id,speeker"], "did you mean 'speaker'"),
     (["--text", "words"], "has no text_embedding: it has audio_embedding"),
     (["--like", "r0#0000", "--embedding", "fused_embedding"], "has no fused_embedding"),
     (["--audio", "a.wav", "--embedding", "fused_embedding"], "ask with --like"),
     (["--audio", "a.wav", "--language", "xx"], "has a model for language 'xx'"), (["--like", "r0#0000", "--top", "0"], "--top")],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused(output, capsys, words, sentence):
    """Fails if a question without an answer gets one, or the refusal does not say why."""
    assert main([output.root, *words]) == 2
    assert sentence in capsys.readouterr().err


def test_the_command_prints_rows(output, capsys):
    """Fails if the table or the JSON lines do not hold the rows."""
    assert main([output.root, "--like", "r1#0001", "--top", "2"]) == 0
    assert "nearest by audio_embedding" in capsys.readouterr().out
    assert main([output.root, "--like", "r1#0001", "--top", "2", "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == 2 and lines[0]["similarity"] >= lines[1]["similarity"]


@pytest.mark.parametrize("mode", ["mean", "audio", "text"])
def test_the_same_recording_and_the_same_words_find_themselves(checkpoints, tmp_path, mode):
    """Fails if a query is embedded by another model, path or language than the rows were: it would not find itself at 1."""
    records = [
        row(n, text=text, language=code)
        for code in ("en", "es")
        for n, text in enumerate(TEXTS)
        if (code == "en") == (n < 2)
    ]
    work = work_of(tmp_path, records, models_of(checkpoints, mode, ["en", "es"]), mode)
    for shard in work.plan.shards():
        annotate_shard(work, shard)
    publish_plan(work.store, work.plan)
    rows = finished_rows(open_store(work.output))
    if mode != "text":
        found = nearest(rows, heard(rows, CLIP, "en", None), top=5, columns=["language"])
        assert found["similarity"][0].as_py() == pytest.approx(1, abs=1e-5) and set(found["language"].to_pylist()) == {
            "en"
        }
        (tmp_path / "s.wav").write_bytes(b"no audio")
        with pytest.raises(ConfigError, match="--audio"):
            heard(rows, str(tmp_path / "s.wav"), "en", None)
        assert main([work.output, "--audio", CLIP, "--language", "en", "--top", "1"]) == 0
    if mode != "audio":
        assert main([work.output, "--text", TEXTS[1], "--language", "en", "--top", "1"]) == 0
        found = nearest(rows, read(rows, TEXTS[1], "en", None), top=5, columns=["text"])
        assert found["text"][0].as_py() == TEXTS[1] and found["similarity"][0].as_py() == pytest.approx(1, abs=1e-5)
        with pytest.raises(ConfigError, match="which of en, es"):
            read(rows, "words", None, None)
