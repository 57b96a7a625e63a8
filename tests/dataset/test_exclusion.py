"""Excluded rows: nothing of them is fetched or written, all are counted, and a later night may annotate them."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import annotate
from pipeline.analytics.report.run import run_page
from pipeline.dataset.plan import load_plans, plan_of
from pipeline.dataset.reader import finished_rows
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store
from tests.support.manifests import jsonl
from tests.support.nights import driver_of, night, quick, rejected, status, written
from tests.support.noop_driver import Killed, without_ray

__all__ = ["quick"]

AGENTS = "role = 'agent'"


def call(name: str, role: str | None, **more: object) -> dict[str, object]:
    return {"id": name, "audio": f"/a/{name}.wav", "text": f"words of {name}", "role": role, **more}


def everything(output: Path) -> str:
    """Return all that the output's files contain, decoded."""
    pieces = []
    for path in sorted(output.rglob("*")):
        if path.suffix == ".parquet":
            file = pq.ParquetFile(path)
            pieces.append(repr(file.read().to_pylist()) + repr(file.metadata.metadata) + repr(path))
        elif path.is_file():
            pieces.append(path.read_text(encoding="utf-8") + str(path))
    return "\n".join(pieces)


def test_nothing_of_an_excluded_row_is_in_the_output(quick, tmp_path: Path) -> None:
    """Fails if an id, a URI, a text or a column of an excluded row is in a plan, a part, the rejects or a report."""
    rows = [call("kept", "customer"), call("SECRET-1", "agent"), call("SECRET-2", "agent", language="tlh")]
    manifest = jsonl(tmp_path / "m.jsonl", *rows, call("refused", "customer", language="tlh"))
    output = tmp_path / "out"
    (report,) = night(output, manifest, exclude=AGENTS)
    assert (report["rows"], report["rejected"], report["excluded"]) == (2, 1, {"exclude": 2})
    assert report["policy"] == {"exclude": AGENTS}
    assert "kept" in everything(output) and "SECRET" not in everything(output)
    assert set(rejected(output)) == {"refused"}
    assert status(output) == ("sound", [])
    assert audit(open_store(str(output))).plans[0].line().endswith("published; 2 rows excluded")


def test_excluded_audio_is_not_fetched(tmp_path: Path, monkeypatch) -> None:
    """Fails if the audio of an excluded row is opened: it does not exist, which would be a reject."""
    noop = without_ray(tmp_path, monkeypatch)
    rows = [{**row, "channel": 0} for row in noop.clips("c", 3)]
    gone = [{"id": f"gone{n}", "audio": str(tmp_path / "c" / f"gone{n}.wav"), "channel": channel}
            for n, channel in enumerate([1, None, 1])]  # fmt: skip
    manifest = noop.manifest("m.jsonl", [*gone, *rows])
    assert noop.job(manifest, exclude_channel="1") == [("000001", 3, {})]
    assert "3 rows of the manifests are excluded" in noop.printed
    assert noop.job(manifest) == [("000002", 0, {"NOT_FOUND": 3})]


def test_excluded_rows_may_be_annotated_by_a_later_night(quick, tmp_path: Path, capsys) -> None:
    """Fails if an excluded id is owned, or a night with the same policy plans it, or its count is lost when nothing is new."""
    manifest = jsonl(tmp_path / "m.jsonl", call("a", "agent"), call("b", "customer"), call("c", None))
    output = tmp_path / "out"
    night(output, manifest, exclude=AGENTS)
    driver = driver_of(output, manifest, exclude=AGENTS)
    assert driver.run() == [] and driver.excluded == {"exclude": 1}
    assert driver_of(output, manifest, exclude=AGENTS).describe()["rows_excluded"] == {"exclude": 1}
    night(output, manifest)
    assert set(written(output, "role")) == {"a", "b", "c"}
    plans = load_plans(open_store(str(output)))
    assert [plan.excluded for plan in plans] == [{"exclude": 1}, {}]
    assert status(output) == ("sound", [])
    later = driver_of(output, manifest, exclude=AGENTS)
    assert later.run() == [] and later.excluded == {}
    assert "1 rows that the options exclude are in earlier runs, and stay there" in later.out.getvalue()


def test_a_plan_without_a_policy_is_written_as_before(quick, tmp_path: Path) -> None:
    """Fails if the fields of a policy appear in a plan without one, or a plan with one is not read back as it was."""
    rows = [call("a", "agent", channel=0), call("b", "customer", channel=0), call("c", "customer")]
    manifest = jsonl(tmp_path / "m.jsonl", *rows)
    night(tmp_path / "plain", manifest)
    night(tmp_path / "other", manifest, only="role <> 'agent'", exclude_channel=[7])
    documents = [
        json.loads((tmp_path / name / "_runs" / "000001" / "plan.json").read_text()) for name in ("plain", "other")
    ]
    assert set(documents[1]) - set(documents[0]) == {"policy", "excluded"}
    assert documents[1]["policy"] == {"only": "role <> 'agent'", "exclude_channel": [7]}
    assert documents[1]["excluded"] == {"exclude_channel": 1, "only": 1}
    for document in documents:
        assert json.dumps(plan_of(document).document()) == json.dumps(document)
    settings = [json.loads((tmp_path / name / "_dataset.json").read_text())["settings"] for name in ("plain", "other")]
    assert settings[0] == settings[1]


@pytest.mark.parametrize("sql", ["role =", "rolle = 'agent'", "count(*) > 1", "EXISTS (FROM '/etc/passwd')", "role"])
@pytest.mark.parametrize("option", ["exclude", "only"])
def test_bad_sql_is_an_error_before_anything_is_written(quick, tmp_path: Path, option: str, sql: str) -> None:
    """Fails if a condition that cannot be evaluated leaves a file behind, or counts as a condition that excludes nothing."""
    manifest = jsonl(tmp_path / "m.jsonl", call("a", "agent"))
    with pytest.raises(ConfigError, match=f"^--{option} "):
        night(tmp_path / "out", manifest, **{option: sql})
    assert not list((tmp_path / "out").rglob("*"))


def test_a_condition_on_a_column_that_went_missing_is_an_error(quick, tmp_path: Path) -> None:
    """Fails if a manifest that lost its column lets every row through --exclude."""
    night(tmp_path / "out", jsonl(tmp_path / "one.jsonl", call("a", "agent"), call("b", "customer")), exclude=AGENTS)
    two = jsonl(tmp_path / "two.jsonl", {"id": "c", "audio": "/a/c.wav", "text": "t"})
    with pytest.raises(ConfigError, match="role"):
        night(tmp_path / "out", two, exclude=AGENTS)
    assert night(tmp_path / "out", jsonl(tmp_path / "none.jsonl"), exclude=AGENTS) == []


def test_an_unfinished_run_with_excluded_rows_is_not_continued(tmp_path: Path, monkeypatch) -> None:
    """Fails if rows that the command excludes are fetched because an earlier run had planned them."""
    noop = without_ray(tmp_path, monkeypatch)
    rows = [{**row, "role": "agent" if n == 9 else "customer"} for n, row in enumerate(noop.clips("c", 12))]
    manifest = noop.manifest("m.jsonl", rows)
    noop.kill_after = 0
    with pytest.raises(Killed):
        noop.job(manifest, exclude="role = 'nobody'")
    noop.kill_after = None
    with pytest.raises(ConfigError, match="run 000001 is unfinished, and 1 of its remaining rows"):
        noop.job(manifest, exclude=AGENTS)
    assert not (noop.output / "utterances").exists() or not list((noop.output / "utterances").rglob("*.parquet"))
    assert noop.job(manifest, exclude="id = 'elsewhere'") == [("000001", 12, {})], "no remaining row is excluded"


def test_remaining_rows_that_are_given_up_are_not_fetched(tmp_path: Path, monkeypatch) -> None:
    """Fails if --give-up does not let a stricter policy continue."""
    noop = without_ray(tmp_path, monkeypatch)
    manifest = noop.manifest("m.jsonl", [{**row, "role": "agent"} for row in noop.clips("c", 3)])
    noop.kill_after = 0
    with pytest.raises(Killed):
        noop.job(manifest)
    noop.kill_after = None
    assert noop.job(manifest, exclude=AGENTS, give_up=["000001"]) == [("000001", 0, {"GIVEN_UP": 3})]


def test_the_page_has_the_policy_and_its_counts(quick, tmp_path: Path) -> None:
    """Fails if a reader of the page cannot see that rows were excluded, how many and why, or it shows a query string."""
    sql = "role = 'agent' OR audio = 'https://h/a.wav?sig=SECRET'"
    night(tmp_path / "out", jsonl(tmp_path / "m.jsonl", call("a", "agent"), call("b", None)), exclude=sql)
    night(tmp_path / "plain", jsonl(tmp_path / "m.jsonl", call("a", "agent"), call("b", None)))
    page, plain = (run_page(finished_rows(open_store(str(tmp_path / name)))) for name in ("out", "plain"))
    assert page.facts["rows excluded"] == "1" and page.details["rows excluded by"] == "exclude 1"
    assert page.details["--exclude"].startswith("role = 'agent' OR audio = 'https://h/a.wav")
    assert "SECRET" not in str(page)
    assert not {"rows excluded", "rows excluded by", "--exclude"} & {*plain.facts, *plain.details}


def messy(folder: Path, seed: int) -> tuple[Path, int]:
    """A manifest with equal rows, rows of one id that differ, refused rows and lines that cannot be read, in any order."""
    chance = random.Random(seed)
    roles = ["agent", "customer", None]
    rows: list[Any] = [call(f"one{n}", chance.choice(roles), channel=chance.choice([0, 1, None])) for n in range(12)]
    rows += [call(f"tlh{n}", chance.choice(roles), channel=0, language="tlh") for n in range(4)]
    rows += [call(f"twice{n}", role, channel=0) for n, role in enumerate(roles) for _ in range(2)]
    rows += [call(f"clash{n}", chance.choice(roles), channel=0, take=take) for n in range(3) for take in (1, 2)]
    rows += ["not json", {"id": "bad", "audio": 5, "role": "agent"}]
    chance.shuffle(rows)
    return jsonl(folder / "m.jsonl", *rows), 12 + 4 + 3 + 6 + 2


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("limit", [None, 9])
def test_every_row_is_an_utterance_a_reject_or_excluded(quick, tmp_path: Path, seed: int, limit: int | None) -> None:
    """Fails if a row is lost, counted in two places, or treated otherwise because another row is excluded."""
    manifest, whole = messy(tmp_path, seed)
    plain, output = tmp_path / "plain", tmp_path / "out"
    (reference,) = night(plain, manifest)
    assert reference["rows"] == whole
    policy = {"exclude": AGENTS, "exclude_channel": [1]}
    reports = night(output, manifest, **policy, **({} if limit is None else {"limit": limit}))
    if limit is None:
        (report,) = reports
        assert report["rows"] + sum(report["excluded"].values()) == whole
    assert "agent" not in written(output, "role").values()
    assert all(row["role"] != "agent" for row in rejected_rows(output))
    night(output, manifest, **policy)
    night(output, manifest)  # without the policy, the others
    assert status(output) == ("sound", [])
    assert written(output, "role") == written(plain, "role")
    assert Counter(map(str, places(output))) == Counter(map(str, places(plain)))


def rejected_rows(output: Path) -> list[dict[str, Any]]:
    return [row for path in sorted((output / "rejects").glob("*")) for row in pq.ParquetFile(path).read().to_pylist()]


def places(output: Path) -> list[tuple[object, ...]]:
    return [(row["reason"], row["line"], row["recording_id"]) for row in rejected_rows(output)]


def test_the_command_prints_the_counts(quick, tmp_path: Path, capsys) -> None:
    """Fails if the number of excluded rows is not printed, in a run and when nothing is new."""
    manifest = jsonl(tmp_path / "m.jsonl", call("a", "agent"), call("b", "customer", channel=0))
    words = ["--manifest", str(manifest), "--output", str(tmp_path / "out"), "--audio-root", "/a", "--no-page"]
    words += ["--exclude-channel", "1,2", "--only", "role IS NOT NULL"]
    assert annotate.main(words) == 0
    assert "1 annotated + 0 rejected; 1 rows excluded (--exclude-channel 1)" in capsys.readouterr().out
    assert annotate.main(words) == 0
    out = capsys.readouterr().out
    assert "Nothing new" in out and "1 rows excluded (--exclude-channel 1)" in out


@pytest.mark.parametrize("value", ["-1", "one", "1.5", "", "0,,1"])
def test_a_channel_that_is_no_number_is_a_usage_error(tmp_path: Path, value: str, capsys) -> None:
    """Fails if a mistyped channel excludes nothing."""
    words = ["--manifest", "m.jsonl", "--output", str(tmp_path / "out"), f"--exclude-channel={value}"]
    assert annotate.main(words) == 2
    assert "is not a channel number" in capsys.readouterr().err
