"""`--json` of every command: one document on standard output and nothing else."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.__main__ import COMMANDS
from jobs.printer import Printer
from pipeline.schema import EMOTIONS
from pipeline.storage.store import open_store
from tests.jobs.test_submit import Stub
from tests.support.corpus import ROOT
from tests.support.noop_driver import NoOpDriver, without_ray
from tests.support.outputs import annotate, plan_rows, publish_plan

MODELS = ROOT / "demo" / "models"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of two finished runs, whose column `truth` holds labels, with a leftover."""
    folder = tmp_path_factory.mktemp("finished")
    output, store = folder / "out", open_store(str(folder / "out"))
    for run in range(2):
        rows = [
            {"id": f"{run}-{n}", "audio": f"/a/{run}/{n}.wav", "text": "t", "speaker": "ab"[n % 2], "truth": EMOTIONS[n % 7]}
            for n in range(14)
        ]  # fmt: skip
        plan = plan_rows(store, folder / str(run), rows)
        annotate(str(output), plan)
        publish_plan(store, plan)
    (output / "_runs" / "_probe").write_text("left behind")
    return output


class Words:
    """The command line of each command, and what its document contains."""

    def __init__(self, finished: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.finished, self.folder, self.monkeypatch = str(finished), folder, monkeypatch

    def job(self) -> NoOpDriver:
        """Replace Ray and the models."""
        self.monkeypatch.setattr("jobs.annotate.signal.signal", lambda *_: None)
        return without_ray(self.folder, self.monkeypatch)

    def copy(self) -> str:
        return str(shutil.copytree(self.finished, self.folder / "copy"))

    def annotate(self) -> tuple[list[str], dict[str, object]]:
        job = self.job()
        manifest = job.manifest("m.jsonl", job.clips("a", 3))
        words = ["--manifest", str(manifest), "--output", str(self.folder / "out"), "--mode", "audio"]
        return [*words, "--embeddings", "audio", "--no-page"], {"output": str(self.folder / "out"), "pages": []}

    def nightly(self) -> tuple[list[str], dict[str, object]]:
        self.job().clips("corpus", 3)
        words = [str(self.folder / "corpus"), "--manifest", str(self.folder / "tonight.jsonl"), "--by", "emotion", "--"]
        options = ["--output", str(self.folder / "out"), "--audio-root", str(self.folder), "--mode", "audio"]
        return [*words, *options, "--embeddings", "audio", "--no-page"], {"exit_status": 0}

    def submit(self) -> tuple[list[str], dict[str, object]]:
        expected = {"submissions": ["r-1"], "exit_status": 0, "address": "http://head:8265"}
        return ["--address", "http://head:8265", "--run-id", "r", "--", "true"], expected

    def verify(self) -> tuple[list[str], dict[str, object]]:
        return [self.finished], {"exit_status": 0, "status": "sound", "violations": []}

    def check(self) -> tuple[list[str], dict[str, object]]:
        return [self.finished, "--min-rows", "1", "--max-null-share", "label=0"], {
            "passed": True,
            "unfinished_runs": [],
        }

    def explain(self) -> tuple[list[str], dict[str, object]]:
        return [self.finished, "--recording", "0-3"], {"recording_id": "0-3", "refused": [], "policies": []}

    def make_manifest(self) -> tuple[list[str], dict[str, object]]:
        NoOpDriver(self.folder).clips("corpus", 2)
        words = [str(self.folder / "corpus"), "--output", str(self.folder / "made.jsonl"), "--language", "en"]
        return words, {"rows": 2, "rows_without_label": 2, "left_out": {}, "output": words[2]}

    def prepare_models(self) -> tuple[list[str], dict[str, object]]:
        words = ["--output", str(self.folder / "models"), "--mode", "audio", "--language", "en"]
        return [*words, "--emotion-model", str(MODELS / "audio-en")], {"lock": 1, "new": True}

    def report(self) -> tuple[list[str], dict[str, object]]:
        page = str(self.folder / "page.html")
        return [self.finished, "000002", "--to", page], {"page": page, "written": True}

    def summarize(self) -> tuple[list[str], dict[str, object]]:
        words = [self.copy(), "--by", "speaker", "--rows", "1"]
        return words, {"new_runs": {"000001": 2, "000002": 2}, "finished_runs": 2, "num_groups": 2, "written_to": None}

    def calls(self) -> tuple[list[str], dict[str, object]]:
        return [self.copy(), "--rows", "0"], {"new_runs": {"000001": 14, "000002": 14}, "finished_runs": 2, "calls": []}

    def review(self) -> tuple[list[str], dict[str, object]]:
        words = [self.finished, "--random", "3", "--to", str(self.folder / "review.csv")]
        return words, {"written_to": words[-1], "utterances": 3, "order": "random"}

    def evaluate(self) -> tuple[list[str], dict[str, object]]:
        return [self.finished, "--labels", "truth", "--resamples", "0"], {"fitted_calibration": None}

    def stress(self) -> tuple[list[str], dict[str, object]]:
        job = self.job()
        self.monkeypatch.setenv("NOOP_EMBEDDING_WIDTHS", "{}")
        manifest = job.manifest("clips.jsonl", job.clips("clips", 2))
        words = [str(manifest), "--output", str(self.folder / "stress"), "--conditions", "gain", "--resamples", "0"]
        return [*words, "--mode", "audio"], {"clips": 2, "seed": 0}

    def drift(self) -> tuple[list[str], dict[str, object]]:
        return [self.finished, "--no-embeddings"], {"recordings": [14, 14]}

    def search(self) -> tuple[list[str], dict[str, object]]:
        return [self.finished, "--like", "0-0#0000", "--top", "1"], {"similarity": 1.0}

    def compact(self) -> tuple[list[str], dict[str, object]]:
        return [self.copy()], {"finished_runs": 2, "unfinished_runs": []}

    def erase(self) -> tuple[list[str], dict[str, object]]:
        expected = {"erased": True, "finished": None, "erasure": "000003", "recordings": 2, "utterances": 2}
        return [self.copy(), "--recording", "0-3", "1-5", "--yes"], expected

    def prune(self) -> tuple[list[str], dict[str, object]]:
        expected = {"deleted": False, "size_bytes": 11, "kept_younger": 0, "kept_in_a_plan": 0}
        return [self.finished, "--older-than", "0s"], expected

    def completion(self) -> tuple[list[str], dict[str, object]]:
        return ["bash"], {"shell": "bash"}


class Head(Stub):
    """A cluster on which the job prints a line and succeeds."""

    async def tail_job_logs(self, _: str):
        yield "a line of the job\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_prints_one_document(
    command: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """Fails if a command, also one that is added later, has no --json, prints text beside the document, or no document."""
    monkeypatch.setattr("jobs.submit._connect", lambda _: Head({}, [0]))
    words, expected = getattr(Words(finished, tmp_path, monkeypatch), command)()
    main: Callable[[list[str]], int] = importlib.import_module(f"jobs.{command}").main
    words.insert(words.index("--") if "--" in words else len(words), "--json")
    status = main(words)
    output = capsys.readouterr()
    assert status in (0, 3), output.err  # 3: drift, by chance
    document = json.loads(output.out)
    assert {key: document.get(key) for key in expected} == expected


def test_without_json_a_command_prints_no_document(finished: Path, capsys) -> None:
    """Fails if the document is printed to people, too, or its lines are lost."""
    main = importlib.import_module("jobs.verify").main
    assert main([str(finished)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("sound: each of 28 rows")


def test_a_night_reports_every_step(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Fails if the document of a step is lost, or a step after a failed one runs."""
    words, _ = Words(finished, tmp_path, monkeypatch).nightly()
    main = importlib.import_module("jobs.nightly").main
    assert main([*words[:3], "--json", *words[3:]]) == 0
    steps = json.loads(capsys.readouterr().out)["steps"]
    assert list(steps) == ["make_manifest", "annotate", "summarize"]
    assert steps["make_manifest"]["rows"] == 3
    assert [run["rows"] for run in steps["annotate"]["runs"]] == [3]
    assert steps["summarize"]["new_runs"].keys() == {"000001"}
    shutil.rmtree(tmp_path / "corpus")
    assert main([*words[:3], "--json", *words[3:]]) == 2
    output = capsys.readouterr()
    assert json.loads(output.out) == {"exit_status": 2, "steps": {"make_manifest": None}}
    assert str(tmp_path / "corpus") in output.err


def test_errors_go_to_standard_error(tmp_path: Path, capsys) -> None:
    """Fails if a failure prints on standard output, where a program expects a document or nothing."""
    main = importlib.import_module("jobs.verify").main
    assert main([str(tmp_path / "nothing"), "--json"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and str(tmp_path / "nothing") in output.err


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_any_text_and_number_can_be_printed(encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails if a letter, the byte of a file name or a NaN breaks the document or the command."""
    value = {"text": "¡qué día!", "file": "a\udcff.wav", "share": float("nan"), "none": [float("inf"), 1.5]}
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr("sys.stdout", out)
        Printer(json=True).document(value)
    document = json.loads((tmp_path / "out").read_text(encoding=encoding))
    assert document == {**value, "share": None, "none": [None, 1.5]}


def test_the_dry_run_is_a_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Fails if a dry run prints text with --json, or its counts are texts."""
    monkeypatch.setattr("jobs.annotate.signal.signal", lambda *_: None)
    job = NoOpDriver(tmp_path)
    manifest = job.manifest("m.jsonl", job.clips("a", 3))
    main = importlib.import_module("jobs.annotate").main
    words = ["--manifest", str(manifest), "--output", str(tmp_path / "o"), "--mode", "audio", "--dry-run", "--json"]
    assert main(words) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["rows_new"], document["rows_rejected_while_planning"]) == (3, {})
