"""The explanation of one recording: every try with its outcome, and no transcript."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import explain as job
from pipeline.dataset.explain import explain
from pipeline.errors import ConfigError, Reason
from pipeline.storage.store import open_store
from tests.dataset.test_retries import TRANSIENT, Outcomes, outcomes
from tests.support.manifests import jsonl
from tests.support.nights import quick
from tests.support.noop_driver import Killed

__all__ = ["outcomes", "quick"]


def row(name: str, **more: object) -> dict[str, object]:
    return {
        "id": name,
        "audio": f"https://h/a/{name}.wav?sig=SECRET",
        "text": f"WORDS of {name}",
        "role": "agent",
        **more,
    }


def test_every_try_of_a_recording_is_explained(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a try is missing, or its manifest line, columns, models, settings, reason or segments are not its own."""
    one = jsonl(tmp_path / "one.jsonl", row("a"), row("b", take=7))
    two = jsonl(tmp_path / "two.jsonl", row("new"), row("c"), row("b", take=8))
    outcomes.causes = {"b": Reason.FETCH_FAILED}
    outcomes.job(one, audio_root="https://h/a")
    outcomes.causes = {}
    outcomes.job(two, audio_root="https://h/a", exclude="id = 'new'", **TRANSIENT)
    found = explain(open_store(str(outcomes.output)), "b")
    first, second = found["tries"]
    assert (first["run"], first["outcome"], first["reason"], first["retries"]) == (
        "000001",
        "rejected",
        "FETCH_FAILED",
        [],
    )
    assert (first["manifest"], first["line"], first["columns"]["take"]) == (str(one), 2, 7)
    assert (second["run"], second["outcome"], second["retries"], second["columns"]["take"]) == (
        "000003",
        "annotated",
        ["000001"],
        8,
    )
    assert (second["manifest"], second["line"], second["published"]) == (str(two), 3, True)
    assert [each["segment_index"] for each in second["utterances"]] == [0]
    plan = outcomes.plans[2]
    assert second["config_hash"] == plan.config_hash and second["settings"] == plan.settings.document()
    assert {role: pin["sha256"] for role, pin in second["models"].items()} == {
        str(role): pin.sha256 for role, pin in plan.models.items()
    }
    assert (outcomes.output / second["part"]).exists()
    assert [(each["run"], each["excluded"]) for each in found["policies"]] == [
        ("000002", {"exclude": 1}),
        ("000003", {}),
    ]
    text = json.dumps(found)
    assert "SECRET" not in text and "WORDS" not in text and second["audio"] == "https://h/a/b.wav"


def test_a_recording_without_a_part_is_pending(outcomes: Outcomes, tmp_path: Path) -> None:
    """Fails if a row of an unfinished run is called annotated or unknown."""
    outcomes.kill_after = 0
    with pytest.raises(Killed):
        outcomes.job(jsonl(tmp_path / "m.jsonl", {"id": "a", "audio": "/a/a.wav"}))
    (only,) = explain(open_store(str(outcomes.output)), "a")["tries"]
    assert (only["outcome"], only["part"], only["published"]) == ("pending", None, False)


def test_the_command_prints_the_outcome_and_its_status(outcomes: Outcomes, tmp_path: Path, capsys) -> None:
    """Fails if a refused row is unknown, an unknown id has status 0, or a folder without an output is explained."""
    manifest = jsonl(tmp_path / "m.jsonl", row("a"), row("odd", language="tlh"), row("gone"))
    outcomes.job(manifest, audio_root="https://h/a", exclude="id = 'gone'")
    output = str(outcomes.output)
    assert job.main([output, "--recording", "a"]) == 0
    printed = capsys.readouterr().out
    assert "annotated, 1 utterances" in printed and "sha256" in printed and f"{manifest}, line 1" in printed
    assert "WORDS" not in printed and "SECRET" not in printed
    assert job.main([output, "--recording", "odd"]) == 0
    assert "refused while planning, UNSUPPORTED_LANGUAGE" in capsys.readouterr().out
    assert job.main([output, "--recording", "gone"]) == 3
    printed = capsys.readouterr().out
    assert "No run has planned" in printed and "run 000001 excluded 1 rows by --exclude id = 'gone'" in printed
    with pytest.raises(ConfigError, match="no output"):
        explain(open_store(str(tmp_path / "nothing")), "a")
