from __future__ import annotations

import os

import pytest

from jobs.compact import main
from jobs.search import main as search
from pipeline.analytics.publish import FORMATS, publish, storage_options
from pipeline.analytics.tables import finished_rows
from pipeline.errors import ConfigError
from tests.outputs import finished_output

PACKAGE = {"delta": "deltalake", "iceberg": "pyiceberg", "lance": "lance"}
PLACES = ("disk", "s3")


def rows_in(form, table):
    """What the format's own library reads."""
    if form == "delta":
        from deltalake import DeltaTable

        return DeltaTable(table, storage_options=storage_options(table)).to_pyarrow_table()
    if form == "lance":
        import lance

        return lance.dataset(table, storage_options=storage_options(table)).to_table()
    from pyiceberg.catalog import load_catalog

    url = os.environ.get("AWS_ENDPOINT_URL")
    s3 = {"s3.endpoint": url, "s3.region": "us-east-1"} if url else {}
    return load_catalog(**s3).load_table(table).scan().to_arrow()


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
    there, ours = rows_in(form, table), rows.utterances().to_table()
    names = sorted(ours.column_names)
    assert sorted(there.column_names) == names
    assert (
        there.sort_by("utterance_id").select(names).to_pylist()
        == ours.sort_by("utterance_id").select(names).to_pylist()
    )


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


def test_a_package_that_is_not_there_is_named(tmp_path, monkeypatch):
    """Fails if a missing extra ends in a traceback instead of how to install it."""
    rows = finished_rows(finished_output(str(tmp_path / "out"), tmp_path / "m"))
    for form, package in PACKAGE.items():
        monkeypatch.setitem(__import__("sys").modules, package, None)
        with pytest.raises(ConfigError, match=rf"needs {package}.*'\.\[{form}\]'"):
            list(publish(rows, form, str(tmp_path / form)))
    assert main([str(tmp_path / "out"), "--publish", "delta"]) == 2
