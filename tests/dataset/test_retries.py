"""Retried rejects: which rows a later plan takes over, that no row is annotated twice, and what the audit refuses."""

from __future__ import annotations

import json
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline.engine.run as driver_module
from jobs import annotate as annotate_job
from jobs import verify
from pipeline.analytics.check import Limits, check
from pipeline.analytics.report.run import run_page
from pipeline.config import load_config
from pipeline.dataset.history import History
from pipeline.dataset.plan import Plan, load_plans, plan_of, read_shard, read_shards
from pipeline.dataset.reader import current_rejects, finished_rows
from pipeline.dataset.retries import find_retriable
from pipeline.dataset.verify import outline as outline_module
from pipeline.dataset.verify.audit import audit
from pipeline.errors import TRANSIENT_REASONS, ConfigError, Reason, Reject, Stage
from pipeline.shard.commit import finish
from pipeline.storage.store import open_store
from tests.support.manifests import jsonl
from tests.support.nights import driver_of, quick, status
from tests.support.noop_driver import Killed, without_ray
from tests.support.outputs import recognised

__all__ = ["quick"]

TRANSIENT = {"retry_rejects": "transient"}


class Outcomes:
    """Jobs whose rows are rejected as `causes` says; every other row is annotated.

    Attributes:
        causes: recording id to the reason of its next try.
        tried: the ids of each shard that was run.
        kill_after: number of shards after which the next job dies.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.output = folder / "out"
        self.causes: dict[str, Reason] = {}
        self.tried: list[str] = []
        self.kill_after: int | None = None
        monkeypatch.setattr(driver_module, "run_shards", self.run_shards)

    def run_shards(self, work: Any, shards: Any, _pools: Any, config: Any, on_finished: Any) -> None:
        for number, shard in enumerate(shards):
            if number == self.kill_after:
                raise Killed
            rows = read_shard(work.store, shard)
            ids = rows["recording_id"].to_pylist()
            self.tried += ids
            table = recognised(rows, shard.number)
            rejects = [
                Reject(self.causes[ids[row]], "as told", Stage.FETCH).document() if ids[row] in self.causes else None
                for row in table["row"].to_pylist()
            ]
            at = table.schema.get_field_index("reject")
            table = table.set_column(at, table.schema.field(at), pa.array(rejects, table.schema.field(at).type))
            finished = finish(work, shard, table, {}, max_denied=1.0)
            on_finished(finished)

    def job(self, manifest: Path, **options: object) -> list[tuple[str, int, dict[str, int]]]:
        """Run one job. Returns: for each finished run its number, recordings annotated, and rejects by reason."""
        reports = driver_of(self.output, manifest, **{"max_reject_rate": 1.0, **options}).run()
        return [(r["run_id"], r["recordings_annotated"], r["rejects_by_reason"]) for r in reports]

    @property
    def plans(self) -> list[Plan]:
        return load_plans(open_store(str(self.output)))

    def annotated(self) -> list[str]:
        files = sorted((self.output / "utterances").rglob("*.parquet"))
        return [name for path in files for name in set(pq.ParquetFile(path).read()["recording_id"].to_pylist())]

    def current(self) -> dict[str, str]:
        table = current_rejects(finished_rows(open_store(str(self.output))))
        return dict(zip(table["recording_id"].to_pylist(), table["reason"].to_pylist(), strict=True))


@pytest.fixture
def outcomes(quick, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    return Outcomes(tmp_path, monkeypatch)


def rows(*names: str) -> list[dict[str, object]]:
    return [{"id": name, "audio": f"/a/{name}.wav", "text": "t"} for name in names]


def test_a_new_plan_takes_over_transient_rejects(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a row that may succeed now stays rejected, another is tried again, or the log loses the first reject."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b", "c", "d"))
    outcomes.causes = {"b": Reason.FETCH_FAILED, "c": Reason.NOT_AUDIO}
    assert outcomes.job(manifest) == [("000001", 2, {"FETCH_FAILED": 1, "NOT_AUDIO": 1})]
    assert outcomes.job(manifest) == [], "without the option, rejects stay"
    outcomes.causes, outcomes.tried = {}, []
    assert outcomes.job(manifest, **TRANSIENT) == [("000002", 1, {})]
    assert outcomes.tried == ["b"]
    assert outcomes.plans[1].retries == {"000001": 1}
    assert outcomes.job(manifest, **TRANSIENT) == []
    assert sorted(outcomes.annotated()) == ["a", "b", "d"]
    assert outcomes.current() == {"c": "NOT_AUDIO"}
    assert finished_rows(open_store(str(outcomes.output))).rejects().count_rows() == 2
    assert status(outcomes.output) == ("sound", [])
    assert outcomes.job(manifest, retry_rejects="not_audio") == [("000003", 1, {})]
    assert outcomes.current() == {} and status(outcomes.output) == ("sound", [])


def test_a_row_is_tried_by_at_most_max_attempts_runs(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a row that never succeeds is retried for ever, or one try too few or too many."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "gone"))
    outcomes.causes = {"gone": Reason.NOT_FOUND}
    runs = [outcomes.job(manifest, **TRANSIENT, max_attempts=3) for _ in range(5)]
    assert [len(reports) for reports in runs] == [1, 1, 1, 0, 0]
    assert [plan.retries for plan in outcomes.plans] == [{}, {"000001": 1}, {"000002": 1}]
    assert Counter(outcomes.tried) == {"a": 1, "gone": 3}
    assert outcomes.current() == {"gone": "NOT_FOUND"}
    assert status(outcomes.output) == ("sound", [])
    assert len(outcomes.job(manifest, **TRANSIENT, max_attempts=4)) == 1


def test_new_rows_and_retried_rows_are_separate_plans(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if rows that are expected to fail again count in the limits on rejects of the new ones."""
    outcomes.causes = {f"q{n}": Reason.NOT_FOUND for n in range(30)}
    outcomes.job(jsonl(tmp_path / "one.jsonl", *rows(*(f"q{n}" for n in range(30)), *(f"s{n}" for n in range(10)))))
    grown = jsonl(tmp_path / "two.jsonl", *rows(*(f"q{n}" for n in range(30)), "new"))
    driver = driver_of(outcomes.output, grown, **TRANSIENT, max_reject_rate=0.01)
    assert driver.describe()["rows_retried"] == 30 and driver.describe()["rows_new"] == 31
    assert [(report["run_id"], report["rows"], report.get("retried")) for report in driver.run()] == [
        ("000002", 1, None), ("000003", 30, {"000001": 30}),
    ]  # fmt: skip
    assert status(outcomes.output) == ("sound", [])


def test_a_row_of_an_unfinished_run_is_not_taken_over(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a row is planned again while its run, or the run that retries it, may still annotate it."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b", "c", "d"))
    outcomes.causes = {"b": Reason.TIMEOUT}
    outcomes.kill_after = 1
    with pytest.raises(Killed):
        outcomes.job(manifest, **TRANSIENT)
    store = open_store(str(outcomes.output))
    assert not len(find_retriable(History(store), outcomes.plans, TRANSIENT_REASONS, 5).keys)
    outcomes.kill_after = None
    outcomes.job(manifest, **TRANSIENT)
    assert len(find_retriable(History(store), outcomes.plans, TRANSIENT_REASONS, 5).keys) == 1
    outcomes.kill_after = 0
    with pytest.raises(Killed):
        outcomes.job(manifest, **TRANSIENT)
    assert not len(find_retriable(History(store), outcomes.plans, TRANSIENT_REASONS, 5).keys)
    outcomes.kill_after, outcomes.causes = None, {}
    assert outcomes.job(manifest, **TRANSIENT) == [("000002", 1, {})]
    assert status(outcomes.output) == ("sound", [])


def test_stale_rejects_do_not_prove_a_rejection(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a row is taken over because a rejects file names it, although a part that was made again annotated it."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b"))
    outcomes.causes = {"b": Reason.FETCH_FAILED}
    outcomes.job(manifest)
    (part,) = (outcomes.output / "utterances").rglob("*.parquet")
    part.unlink()
    store = open_store(str(outcomes.output))
    assert not len(find_retriable(History(store), outcomes.plans, TRANSIENT_REASONS, 5).keys), "the receipt is missing"
    outcomes.causes = {}
    with pytest.raises(Exception, match="describe other parts"):
        outcomes.job(manifest, **TRANSIENT)
    assert not len(find_retriable(History(store), outcomes.plans, TRANSIENT_REASONS, 5).keys), (
        "the receipt says annotated"
    )
    assert Counter(outcomes.annotated()) == {"a": 1, "b": 1}


def test_a_part_whose_row_was_taken_over_is_not_made_again(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if deleting a part by hand lets its run annotate a row that a later run has annotated."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b"))
    outcomes.causes = {"b": Reason.FETCH_FAILED}
    outcomes.job(manifest)
    outcomes.causes = {}
    outcomes.job(manifest, **TRANSIENT)
    next((outcomes.output / "utterances").rglob("000001-*.parquet")).unlink()
    outcomes.tried = []
    with pytest.raises(Exception, match="--give-up 000001"):
        outcomes.job(manifest)
    assert outcomes.tried == [] and outcomes.annotated() == ["b"]


def test_an_excluded_reject_is_not_retried(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if the audio of a row that the policy excludes is fetched because an earlier run rejected it."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b", "c"))
    outcomes.causes = {"b": Reason.FETCH_FAILED, "c": Reason.FETCH_FAILED}
    outcomes.job(manifest)
    outcomes.causes, outcomes.tried = {}, []
    assert outcomes.job(manifest, **TRANSIENT, exclude="id = 'b'") == [("000002", 1, {})]
    assert outcomes.tried == ["c"] and outcomes.plans[1].excluded == {"exclude": 1}
    assert status(outcomes.output) == ("sound", [])


def test_only_rows_of_the_manifest_are_retried(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a row that was removed from the corpus is tried again, or a renewed URL of a retried row is ignored."""
    outcomes.causes = {"a": Reason.NOT_FOUND, "b": Reason.NOT_FOUND}
    outcomes.job(jsonl(tmp_path / "m.jsonl", *rows("a", "b")))
    outcomes.causes, outcomes.tried = {}, []
    (moved,) = rows("b")
    manifest = jsonl(tmp_path / "m.jsonl", {**moved, "audio": "/a/elsewhere.wav"})
    assert outcomes.job(manifest, **TRANSIENT) == [("000002", 1, {})]
    (planned,) = read_shards(open_store(str(outcomes.output)), outcomes.plans[1].shards())
    assert planned["audio"].to_pylist() == ["/a/elsewhere.wav"]
    assert outcomes.current() == {"a": "NOT_FOUND"} and status(outcomes.output) == ("sound", [])


def test_a_plan_without_retries_is_written_as_before(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if the field appears in other plans, or a plan that has it is not read back as it was."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b"))
    outcomes.causes = {"b": Reason.TIMEOUT}
    for _ in range(2):
        outcomes.job(manifest, **TRANSIENT)
    one, two = (json.loads(path.read_text()) for path in sorted((outcomes.output / "_runs").glob("*/plan.json")))
    assert set(two) - set(one) == {"retries"}
    assert all(json.dumps(plan_of(document).document()) == json.dumps(document) for document in (one, two))


def test_the_page_and_the_audit_count_a_retried_row_once(outcomes: Outcomes, tmp_path: Path, capsys) -> None:
    """Fails if a retried row counts as two rows or two rejects, or a page does not say that its rows were retried."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b", "c"))
    outcomes.causes = {"b": Reason.FETCH_FAILED, "c": Reason.FETCH_FAILED}
    outcomes.job(manifest)
    outcomes.causes = {"c": Reason.FETCH_FAILED}
    outcomes.job(manifest, **TRANSIENT)
    store = open_store(str(outcomes.output))
    found = audit(store)
    assert (found.status, found.rows, found.rejects, found.retried) == ("sound", 3, 1, 2)
    assert found.plans[1].line().endswith("published; 2 rows retried from plan 000001")
    assert verify.main([str(outcomes.output)]) == 0
    assert "of 3 rows, 1 are rejected now" in capsys.readouterr().out
    limits = Limits(min_rows=2, max_reject_share=0.34, max_null_share={}, types={})
    assert [each.passed for each in check(finished_rows(store), limits)] == [True, True]
    page = run_page(finished_rows(store).of(["000002"]))
    assert page.facts["rows retried"] == "2" and page.details["rows retried, by run"] == "000001 2"


# -- what the audit refuses


def edited(output: Path, run: str, **fields: object) -> None:
    path = output / "_runs" / run / "plan.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("retries", "code"),
    [({}, "ID_TWICE"), ({"000001": 2}, "RETRY"), ({"000001": 1, "000002": 1}, "RETRY"), ({"000007": 1}, "RETRY")],
    ids=["not stated", "other number", "itself", "no such plan"],
)
def test_a_wrong_statement_is_a_violation(
    outcomes: Outcomes, tmp_path: Path, retries: dict[str, int], code: str
) -> None:
    """Fails if a plan may have an id of another plan without stating so, or state what is not so."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b"))
    outcomes.causes = {"b": Reason.TIMEOUT}
    for _ in range(2):
        outcomes.job(manifest, **TRANSIENT)
    edited(outcomes.output, "000002", retries=retries)
    assert code in {violation.invariant for violation in audit(open_store(str(outcomes.output))).violations}


def test_taking_over_an_annotated_row_is_a_violation(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if stating a retry excuses a row that both plans annotated."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b"))
    outcomes.causes = {"b": Reason.TIMEOUT}
    for _ in range(2):
        outcomes.job(manifest, **TRANSIENT)
    (part,) = (outcomes.output / "utterances").rglob("000001-*.parquet")
    part.unlink()
    for name in ("_SUCCESS", "report.json"):
        (outcomes.output / "_runs" / "000001" / name).unlink()
    (outcomes.output / "rejects" / "000001.parquet").unlink()
    edited(outcomes.output, "000002", retries={})  # so that the part may be made again
    outcomes.causes = {}
    outcomes.job(manifest)
    edited(outcomes.output, "000002", retries={"000001": 1})
    codes = {violation.invariant for violation in audit(open_store(str(outcomes.output))).violations}
    assert codes >= {"ID_TWICE", "RETRY"}


def test_taking_over_a_row_of_an_unpublished_plan_is_a_violation(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if the audit accepts a retry of a row whose run has not ended."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b"))
    outcomes.causes = {"b": Reason.TIMEOUT}
    for _ in range(2):
        outcomes.job(manifest, **TRANSIENT)
    (outcomes.output / "_runs" / "000001" / "_SUCCESS").unlink()
    assert "RETRY" in {violation.invariant for violation in audit(open_store(str(outcomes.output))).violations}


@pytest.mark.parametrize("walks", [0, 1, 2, 3])
def test_a_running_job_that_retries_is_not_accused(
    outcomes: Outcomes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, walks: int
) -> None:
    """Fails if a run that ends, and a retry of its rejects, between two listings look like a wrong retry."""
    manifest = jsonl(tmp_path / "m.jsonl", *rows("a", "b", "c", "d"))
    outcomes.causes, outcomes.kill_after = dict.fromkeys("abcd", Reason.TIMEOUT), 1
    with pytest.raises(Killed):
        outcomes.job(manifest)
    outcomes.kill_after = None
    real, listed = outline_module.walk, []

    def meanwhile(*arguments: object) -> list[Any]:
        if len(listed) == walks:
            outcomes.job(manifest)
            outcomes.causes = {"a": Reason.TIMEOUT}
            outcomes.job(manifest, **TRANSIENT)
            outcomes.job(manifest, **TRANSIENT)
        listed.append(1)
        return list(real(*arguments))

    monkeypatch.setattr(outline_module, "walk", meanwhile)
    store = open_store(str(outcomes.output))
    assert audit(store).violations == ()
    assert len(listed) > walks and [plan.retries for plan in outcomes.plans] == [{}, {"000001": 4}, {"000002": 1}]
    assert audit(store).violations == ()


# -- generated nights


@pytest.mark.parametrize("seed", range(8))
def test_generated_nights_with_kills_annotate_each_row_once(outcomes: Outcomes, tmp_path: Path, seed: int) -> None:
    """Fails if in some sequence of nights a row is annotated twice, lost, or tried too often."""
    chance = random.Random(seed)
    names = [f"n{n}" for n in range(12)]
    most = chance.choice([2, 3])
    for night in range(6):
        known = names[: 4 + 2 * night]
        manifest = jsonl(tmp_path / f"{night}.jsonl", *rows(*chance.sample(known, len(known))))
        outcomes.causes = {
            name: chance.choice([*TRANSIENT_REASONS, Reason.DAMAGED]) for name in known if chance.random() < 0.5
        }
        outcomes.kill_after = chance.choice([None, 0, 1])
        with suppress(Killed):
            outcomes.job(manifest, **TRANSIENT, max_attempts=most)
        assert audit(open_store(str(outcomes.output))).violations == ()
    outcomes.kill_after = None
    manifest = jsonl(tmp_path / "last.jsonl", *rows(*names))
    outcomes.job(manifest, **TRANSIENT, max_attempts=most)
    assert status(outcomes.output) == ("sound", [])
    annotated = outcomes.annotated()
    assert len(set(annotated)) == len(annotated)
    assert sorted([*annotated, *outcomes.current()]) == sorted(names)
    assert max(Counter(outcomes.tried).values()) <= most


# -- the option


@pytest.mark.parametrize(
    ("value", "reasons"),
    [("transient", list(map(str, TRANSIENT_REASONS))), ("none", []), ("NOT_AUDIO", ["NOT_AUDIO"]),
     ("not_found, truncated", ["NOT_FOUND", "TRUNCATED"]), (["GIVEN_UP"], ["GIVEN_UP"]),
     ("transient,FORBIDDEN", [*map(str, TRANSIENT_REASONS), "FORBIDDEN"])],
)  # fmt: skip
def test_the_option_names_reasons(value: object, reasons: list[str]) -> None:
    """Fails if a list of reasons is read otherwise than it was written."""
    config = load_config(None, {"manifest": ["m"], "output": "o", "retry_rejects": value})
    assert list(config.retry_rejects) == reasons


@pytest.mark.parametrize("value", ["transcient", "MALFORMED", "DUPLICATE_ID", "bad_field", "NOT_FOUND,,x"])
def test_other_reasons_are_a_usage_error(value: str, tmp_path: Path, capsys) -> None:
    """Fails if a mistyped reason retries nothing without a word."""
    with pytest.raises(ConfigError, match="retry"):
        load_config(None, {"manifest": ["m"], "output": "o", "retry_rejects": value})
    words = ["--manifest", "m.jsonl", "--output", str(tmp_path / "out"), "--retry-rejects", value]
    assert annotate_job.main(words) == 2


def test_a_store_that_stays_out_of_reach_does_not_stop_the_retries(tmp_path: Path, monkeypatch) -> None:
    """Fails if a plan of rows that all fail again cannot be finished, so that every later night would fail too."""
    noop = without_ray(tmp_path, monkeypatch)
    good = noop.clips("c", 30)
    gone = [{"id": f"gone{n}", "audio": str(tmp_path / "nowhere" / f"{n}.wav")} for n in range(6)]
    manifest = noop.manifest("m.jsonl", [*good, *gone])
    assert noop.job(manifest) == [("000001", 30, {"NOT_FOUND": 6})]
    assert noop.job(manifest, retry_rejects="transient") == [("000002", 0, {"NOT_FOUND": 6})]
    (tmp_path / "nowhere").mkdir()
    for row, name in zip(good, gone, strict=False):
        Path(str(name["audio"])).write_bytes(Path(str(row["audio"])).read_bytes())
    assert noop.job(manifest, retry_rejects="transient") == [("000003", 6, {})]
    assert status(noop.output) == ("sound", [])
