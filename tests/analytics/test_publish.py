from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog import load_catalog
from pyiceberg.utils.config import Config

from jobs.compact import main
from jobs.search import main as search
from pipeline.analytics.indexed import bring_up_to_date, nearest_in_lance
from pipeline.analytics.nearest import nearest
from pipeline.analytics.publish import FORMATS, catalog_properties, publish, storage_options
from pipeline.analytics.search import query_by_utterance
from pipeline.dataset.reader import Rows, asking, finished_rows
from pipeline.errors import ConfigError
from tests.support import outputs
from tests.support.corpus import ROOT
from tests.support.further import further_output
from tests.support.outputs import finished_output
from tests.support.processes import started
from tests.support.rest_catalog import rest_catalog

PACKAGE = {"delta": "deltalake", "iceberg": "pyiceberg", "lance": "lance"}
PLACES = ("disk", "s3")


def partitions_of(form, table):
    """The partition columns that the format's own library tells."""
    if form == "delta":
        from deltalake import DeltaTable

        return DeltaTable(table, storage_options=storage_options(table)).metadata().partition_columns
    return [field.name for field in load_catalog(**catalog_properties()).load_table(table).spec().fields]


def rows_in(form, table):
    """What the format's own library reads."""
    if form == "delta":
        from deltalake import DeltaTable

        return DeltaTable(table, storage_options=storage_options(table)).to_pyarrow_table()
    if form == "lance":
        import lance

        return lance.dataset(table, storage_options=storage_options(table)).to_table()
    return load_catalog(**catalog_properties()).load_table(table).scan().to_arrow()


@pytest.fixture
def table_of(tmp_path, monkeypatch, request):
    """Where a table of a format may lie; on S3 with nothing but the environment to say where that is and who asks."""

    def make(form, place="disk"):
        root = str(tmp_path)
        if place == "s3":
            root = f"s3://{request.getfixturevalue('s3').bucket}/{tmp_path.name}"
        if form != "iceberg":
            return f"{root}/{form}"
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", f"sqlite:///{tmp_path}/catalog.db")
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__WAREHOUSE", root if place == "s3" else f"file://{root}")
        from pyiceberg import catalog
        from pyiceberg.utils.config import Config

        monkeypatch.setattr(catalog, "_ENV_CONFIG", Config())  # which it reads once a process
        return "speech.utterances"

    return make


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMATS)
def test_each_run_is_committed_once(tmp_path, table_of, form, place, capsys):
    """Fails if a run is doubled by publishing again, a row is changed, the second run goes missing, or a bucket elsewhere than
    at Amazon is not found."""
    table = table_of(form, place)
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    assert [plan.plan for plan in publish(rows.of(["000001"]), form, table)] == ["000001"]
    assert [plan.plan for plan in publish(rows, form, table)] == ["000002"]
    assert main([str(tmp_path / "out"), "--publish", form, "--table", table]) == 0
    assert "nothing new" in capsys.readouterr().out
    assert form == "lance" or partitions_of(form, table) == ["speaker"]
    there, ours = rows_in(form, table), rows.utterances().to_table()
    names = sorted(ours.column_names)
    assert sorted(there.column_names) == names
    assert (
        there.sort_by("utterance_id").select(names).to_pylist()
        == ours.sort_by("utterance_id").select(names).to_pylist()
    )


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_holds_label_scores_and_further_models(tmp_path, table_of, form):
    """Fails if a format, DuckDB or pandas reads the map of scores or the structs of further models otherwise than they are."""
    rows, table = finished_rows(further_output(tmp_path)), table_of(form)
    assert [plan.plan for plan in publish(rows, form, table)] == ["000001"]
    published = rows_in(form, table).sort_by("utterance_id")
    ours = rows.utterances().to_table().sort_by("utterance_id").to_pylist()
    assert published.select(list(ours[0])).to_pylist() == ours
    query = """SELECT label_scores['happy'], by_model.words.label_scores['ang'], by_model.Select.labels, by_model.dims.arousal
        FROM published WHERE by_model.words.label IS NOT NULL ORDER BY utterance_id"""
    with asking(published=published) as connection:
        answers = connection.sql(query).fetchall()
    frame = published.to_pandas()
    for number, row in enumerate(ours):
        words, select, dims = (row["by_model"][name] for name in ("words", "Select", "dims"))
        scores = dict(row["label_scores"])
        assert answers[number] == (
            scores["happy"],
            dict(words["label_scores"])["ang"],
            select["labels"],
            dims["arousal"],
        )
        assert dict(frame["label_scores"][number]) == scores
        assert frame["by_model"][number]["words"]["label"] == words["label"]


DIES_IN_THE_SECOND_RUN = """
import os, signal, sys
import pyarrow as pa
from jobs.compact import main
from pipeline.analytics import publish
real, runs = publish._stream, []
def dying(rows, plan):
    runs.append(plan)
    whole = real(rows, plan).read_all()
    def batches():
        for number, batch in enumerate(whole.to_batches(max_chunksize=1)):
            if len(runs) == 2 and number == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    return pa.RecordBatchReader.from_batches(whole.schema, batches())
publish._stream = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("form", FORMATS)
def test_killed_in_the_middle_of_a_run_the_next_one_finishes(tmp_path, table_of, form):
    """Fails if a reader sees part of a run whose publisher was killed, or the next publisher doubles or misses a row."""
    table, output = table_of(form), str(tmp_path / "out")
    rows = finished_rows(finished_output(output, tmp_path / "m"))
    command = [output, "--publish", form, "--table", table]
    dying = [sys.executable, "-c", DIES_IN_THE_SECOND_RUN, *command]
    with started(dying, tmp_path / "log", {"PYTHONPATH": str(ROOT)}) as process:
        assert process.wait(120) == -9, (tmp_path / "log").read_text()
    assert set(rows_in(form, table)["run_id"].to_pylist()) == {"000001"}
    assert main(command) == 0
    whole = sorted(rows.utterances().to_table()["utterance_id"].to_pylist())
    assert sorted(rows_in(form, table)["utterance_id"].to_pylist()) == whole


@pytest.mark.parametrize("place", PLACES)
def test_two_publishers_at_once_commit_a_run_to_delta_once(tmp_path, table_of, place, monkeypatch):
    """Fails if a publisher that looked before another committed commits the same run again."""
    table = table_of("delta", place)
    import deltalake

    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    real, beaten = deltalake.write_deltalake, []

    def beaten_to_it(opened, stream, **options):
        if not beaten:
            beaten.append(True)
            assert [plan.plan for plan in publish(rows, "delta", table)] == ["000001", "000002"]
        real(opened, stream, **options)

    monkeypatch.setattr(deltalake, "write_deltalake", beaten_to_it)
    assert list(publish(rows, "delta", table)) == []
    assert rows_in("delta", table).num_rows == 15


def test_lance_finds_what_the_exact_search_finds(tmp_path, table_of, capsys):
    """Fails if the table is asked for another column, metric, model or condition than the files are."""
    table = table_of("lance")
    output = str(tmp_path / "out")
    rows = finished_rows(finished_output(output, tmp_path / "m"))
    assert len(list(publish(rows, "lance", table))) == 2
    asked = [
        output,
        "--like",
        "r0#0000",
        "--top",
        "4",
        "--where",
        "speaker <> 'a'",
        "--columns",
        "utterance_id",
        "--json",
    ]
    assert search(asked) == 0
    exact = capsys.readouterr().out
    assert search([*asked, "--lance", table]) == 0
    told = [
        [line.split('"utterance_id"')[1] for line in said.splitlines()] for said in (exact, capsys.readouterr().out)
    ]
    assert told[0] == told[1] and len(told[0]) == 4
    assert search([*asked, "--lance", str(tmp_path / "none")]) == 2


@pytest.mark.parametrize("form", FORMATS)
def test_a_table_of_an_earlier_version_takes_described_columns(tmp_path, table_of, form, monkeypatch):
    """Fails if a table whose columns have no descriptions refuses a run whose columns have them, or changes its rows."""
    table, rows = table_of(form), finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    real = Rows.schema
    with monkeypatch.context() as earlier:
        earlier.setattr(Rows, "schema", lambda self: pa.schema([field.remove_metadata() for field in real(self)]))
        assert len(list(publish(rows.of(["000001"]), form, table))) == 1
    assert any(field.metadata for field in rows.schema())
    assert [plan.plan for plan in publish(rows, form, table)] == ["000002"]
    published = rows_in(form, table).sort_by("utterance_id")["utterance_id"].to_pylist()
    assert published == rows.utterances().to_table().sort_by("utterance_id")["utterance_id"].to_pylist()


def clustered_output(folder, monkeypatch, *, runs):
    """Runs of 1,500 utterances each, whose embeddings lie around 40 centres, as voices do."""
    width = 32
    monkeypatch.setattr(outputs, "WIDTH", width)
    monkeypatch.setattr(outputs, "FLAGS", {"partition_by": ""})
    real, centres = outputs.recognised, np.random.default_rng(0).normal(size=(40, width))

    def around_centres(rows, seed):
        table = real(rows, seed)
        random = np.random.default_rng([*rows["recording_id"][0].as_py().encode()])
        vectors = centres[random.integers(0, 40, table.num_rows)] + random.normal(size=(table.num_rows, width))
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float32).reshape(-1)), width)
        return table.set_column(table.schema.get_field_index("audio_embedding"), "audio_embedding", column)

    monkeypatch.setattr(outputs, "recognised", around_centres)
    store = outputs.open_store(str(folder / "out"))
    for run in range(runs):
        records = [{"id": f"v{run}-{n}", "audio": f"/a/{run}/{n}.wav", "text": "t"} for n in range(1500)]
        plan = outputs.plan_rows(store, folder / str(run), records, shard_rows=500)
        outputs.annotate(store.root, plan)
        outputs.publish_plan(store, plan)
    return store.root


def test_an_index_misses_little_and_takes_in_what_came_later(tmp_path, table_of, monkeypatch, capsys):
    """Fails if the index is of another metric, its answers are not looked at again, or rows of a later run are not found."""
    import lance

    table, output = table_of("lance"), clustered_output(tmp_path, monkeypatch, runs=2)
    rows = finished_rows(outputs.open_store(output))
    assert list(publish(rows.of(["000001"]), "lance", table)) and list(bring_up_to_date(table)) == [
        "audio_embedding: created an index of 1,500 rows"
    ]
    command = [output, "--publish", "lance", "--table", table, "--index"]
    assert main(command) == 0 and "the index of audio_embedding has all 3,000 rows" in capsys.readouterr().out
    plan = lance.dataset(table).scanner(nearest={"column": "audio_embedding", "q": np.zeros(32, np.float32), "k": 1})
    assert "ANN" in plan.explain_plan()
    found = right = 0
    for number in range(0, 1500, 75):
        query = query_by_utterance(rows, f"v{number % 2}-{number}#0000", None)
        exact, told = (
            ask(source, query, top=10, columns=["utterance_id"])
            for ask, source in ((nearest, rows), (nearest_in_lance, table))
        )
        right += len({*exact["utterance_id"].to_pylist()} & {*told["utterance_id"].to_pylist()})
        found += 10
        np.testing.assert_allclose(told["similarity"][0].as_py(), exact["similarity"][0].as_py(), atol=1e-5)
    assert right / found >= 0.95


def test_an_index_is_not_made_of_a_few_rows_or_of_another_format(tmp_path, table_of, capsys):
    """Fails if a table too small for an index cannot be published with --index, or the flag is passed over elsewhere."""
    output, table = str(tmp_path / "out"), table_of("lance")
    finished_output(output, tmp_path / "m")
    assert main([output, "--publish", "lance", "--table", table, "--index"]) == 0
    assert "15 rows need no index" in capsys.readouterr().out
    assert main([output, "--publish", "delta", "--table", str(tmp_path / "d"), "--index"]) == 2
    assert "--index goes with --publish lance" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="cannot be indexed"):
        list(bring_up_to_date(str(tmp_path / "none")))


def test_a_rest_catalog_is_used_by_configuration_alone(tmp_path, monkeypatch):
    """Fails if the environment's REST catalog is not asked, its table has no partitions, or a run is committed twice there."""
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    with rest_catalog(tmp_path) as served:
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__URI", served.url)
        monkeypatch.setenv("PYICEBERG_CATALOG__DEFAULT__TOKEN", "canary")
        monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())  # which it reads once a process
        for expected in (["000001", "000002"], []):
            assert [plan.plan for plan in publish(rows, "iceberg", "speech.utterances")] == expected
        assert partitions_of("iceberg", "speech.utterances") == ["speaker"]
        assert rows_in("iceberg", "speech.utterances").num_rows == 15
    commits = [path for method, path in served.requests if method == "POST" and path.endswith("/tables/utterances")]
    assert len(commits) == 3  # one creates the table, and one is of each run
    assert served.tokens == {"Bearer canary"}


def test_a_large_run_is_appended_in_groups_and_seen_at_once(tmp_path, table_of, monkeypatch):
    """Fails if a run is held in memory as one table, a row is lost between two groups, or readers see half a run."""
    monkeypatch.setattr("pipeline.analytics.publish._GROUP_BYTES", 1)
    table, rows = table_of("iceberg"), finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    catalog = load_catalog()
    seen = []
    for plan in publish(rows, "iceberg", table):
        opened = catalog.load_table(table)
        seen.append((plan.plan, opened.scan().to_arrow().num_rows, len(opened.metadata.metadata_log)))
    assert seen == [("000001", 12, 1), ("000002", 15, 2)]  # one version of the table for each run


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    """Fails if a missing extra ends in a traceback instead of how to install it."""
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    for form, package in PACKAGE.items():
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ConfigError, match=rf"needs {package}.*'\.\[{form}\]'"):
            list(publish(rows, form, str(tmp_path / form)))
    assert main([str(tmp_path / "out"), "--publish", "delta"]) == 2
