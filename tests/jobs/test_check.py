"""`jobs.check`: limits of rows, rejects, nulls and types, each of which can fail alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import check
from tests.support.outputs import FIRST, REJECTED, SECOND, finished_output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two published runs, with rejects of the run and of planning."""
    folder = tmp_path_factory.mktemp("check")
    finished_output(str(folder / "out"), folder)
    return str(folder / "out")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, object]]:
    status = check.main([*arguments, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_each_limit_passes_at_its_value_and_fails_beyond_it(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a limit is off by one, is taken from another run, or a failed test gives exit status 0."""
    planned = len(FIRST) + 1 + len(SECOND)
    rejected = len(REJECTED) + 1
    annotated = planned - rejected
    for arguments, passes in [
        (["--min-rows", str(annotated)], True),
        (["--min-rows", str(annotated + 1)], False),
        (["--max-reject-share", str(rejected / planned)], True),
        (["--max-reject-share", str((rejected - 0.5) / planned)], False),
        (["--max-null-share", "emotion=0"], True),
        (["--max-null-share", "channel=0.99"], False),
        (["--max-null-share", "emotion=0", "channel=0.5"], False),
    ]:
        status, document = run(capsys, output, *arguments)
        assert (status, document["passed"]) == ((0, True) if passes else (3, False)), arguments


def test_the_latest_run_is_tested_alone(output: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if --run latest counts the rows of earlier runs."""
    assert run(capsys, output, "--run", "latest", "--min-rows", str(len(SECOND)))[0] == 0
    status, document = run(capsys, output, "--run", "latest", "--min-rows", str(len(SECOND) + 1))
    assert (status, document["runs"]) == (3, ["000002"])
    assert check.main([output, "--run", "000009", "--min-rows", "1"]) == 2
    assert "no run 000009" in capsys.readouterr().err


def test_the_printed_schema_is_a_schema(output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if the schema of --json is refused by --schema, or if a missing column or another type passes."""
    _, document = run(capsys, output, "--min-rows", "0")
    file = tmp_path / "schema.json"
    schema: dict[str, str] = document["schema"]  # type: ignore[assignment]
    for change, passes in [({}, True), ({"emotion": "int64"}, False), ({"mood": "string"}, False)]:
        file.write_text(json.dumps({**schema, **change}))
        status, document = run(capsys, output, "--schema", str(file))
        assert status == (0 if passes else 3), change
        failed = [test["test"] for test in document["tests"] if not test["passed"]]  # type: ignore[index,attr-defined]
        assert failed == [f"schema {name}" for name in change]
    del schema["emotion"]  # further columns of the output are allowed
    file.write_text(json.dumps(schema))
    assert run(capsys, output, "--schema", str(file))[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to test"),
        (["--max-null-share", "emotion"], "COLUMN=SHARE"),
        (["--max-null-share", "emotion=2"], "between 0 and 1"),
        (["--max-null-share", "emotoin=0"], "did you mean 'emotion'"),
        (["--max-reject-share", "nan"], "between 0 and 1"),
        (["--min-rows", "-1"], "whole number"),
        (["--schema", "LIST"], "not a JSON object of columns"),
        (["--schema", "MISSING"], "MISSING cannot be read"),
    ],
)
def test_a_limit_that_means_nothing_is_refused(
    output: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    """Fails if a mistyped limit is taken for a test that passes."""
    (tmp_path / "LIST").write_text("[1]")
    given = [str(tmp_path / word) if word in ("LIST", "MISSING") else word for word in arguments]
    try:
        status = check.main([output, *given])
    except SystemExit as refused:
        status = int(str(refused.code))
    assert status == 2
    assert message in capsys.readouterr().err


def test_no_rows_prove_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fails if a share of no rows passes."""
    store = finished_output(str(tmp_path / "out"), tmp_path)
    for file in Path(store.root).glob("_runs/*/_SUCCESS"):
        file.unlink()
    status, document = run(capsys, store.root, "--max-null-share", "emotion=1", "--max-reject-share", "1")
    assert (status, len(document["tests"]), document["unfinished_runs"]) == (3, 2, ["000001", "000002"])  # type: ignore[arg-type]
