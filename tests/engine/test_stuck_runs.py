"""Unfinished plans: what decides their rows, what may hold them up, and that they hold up nobody else."""

from __future__ import annotations

import io
import json
import random
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.annotate import main
from jobs.report import Drawn
from pipeline.dataset.history import History
from pipeline.dataset.plan import load_plan, plan_of
from pipeline.dataset.prune import find_leftovers
from pipeline.dataset.survey import survey
from pipeline.dataset.verify.audit import audit
from pipeline.errors import ConfigError, JobError, NoWorkersError, StuckPlansError
from pipeline.storage.store import open_store
from tests.support.noop_driver import Killed, NoOpDriver, without_ray
from tests.support.outputs import finished_output


@pytest.fixture
def noop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NoOpDriver:
    return without_ray(tmp_path, monkeypatch)


def sound(noop: NoOpDriver) -> None:
    found = audit(open_store(str(noop.output)), deep=True)
    assert not found.violations and found.status == "sound", found.violations


def killed_after(noop: NoOpDriver, shards: int, manifest: Path, **options: object) -> None:
    noop.kill_after = shards
    with pytest.raises(Killed):
        noop.job(manifest, **options)
    noop.kill_after = None


# -- audio roots


@pytest.mark.parametrize("kind", ["absolute", "relative", "link", "none"])
def test_an_unfinished_plan_keeps_its_own_audio_roots(noop, monkeypatch, kind):
    """Fails if the rows of one corpus are held against the --audio-root of the job that happens to finish its plan."""
    calls, meetings = (
        noop.manifest("c.jsonl", noop.clips("calls", 20)),
        noop.manifest("m.jsonl", noop.clips("meetings", 5)),
    )
    roots = {"absolute": [str(noop.folder / "calls")], "relative": ["calls"], "link": ["current"], "none": []}[kind]
    (noop.folder / "current").symlink_to(noop.folder / "calls")
    monkeypatch.chdir(noop.folder)
    killed_after(noop, random.choice([0, 1, 2]), calls, audio_root=roots)
    (noop.folder / "current").unlink()
    (noop.folder / "current").symlink_to(noop.folder / "meetings")
    monkeypatch.chdir("/")
    assert noop.job(meetings, audio_root=[str(noop.folder / "meetings")]) == [("000001", 20, {}), ("000002", 5, {})]
    assert noop.job(calls, audio_root=[str(noop.folder / "calls")]) == []
    sound(noop)


def test_a_narrow_root_stays_narrow(noop):
    """Fails if a wider --audio-root of a later job opens files that the plan's own job did not allow."""
    rows = noop.clips("calls", 8)
    killed_after(noop, 0, noop.manifest("c.jsonl", rows), audio_root=[str(noop.folder / "calls")])
    shutil.move(noop.folder / "calls" / "3.wav", noop.folder / "elsewhere.wav")
    (noop.folder / "calls" / "3.wav").symlink_to(noop.folder / "elsewhere.wav")
    (run,) = noop.job(noop.manifest("c.jsonl", rows), audio_root=["/"])
    assert run == ("000001", 7, {"NOT_ALLOWED": 1})


def test_a_plan_without_recorded_roots_is_as_it_was(noop):
    """Fails if plans written before roots were recorded change when they are read and written, or are refused."""
    manifest = noop.manifest("c.jsonl", noop.clips("calls", 8))
    killed_after(noop, 0, manifest, audio_root=[str(noop.folder / "calls")])
    path = noop.output / "_runs/000001/plan.json"
    document = json.loads(path.read_text())
    assert document["audio_roots"] == [str(noop.folder / "calls")]
    assert load_plan(open_store(str(noop.output)), "000001").document()["audio_roots"] == (str(noop.folder / "calls"),)
    del document["audio_roots"]
    path.write_text(json.dumps(document))
    assert json.loads(json.dumps(plan_of(document).document())) == document
    assert noop.job(manifest, audio_root=[str(noop.folder / "calls")]) == [("000001", 8, {})]


# -- a plan that cannot be finished

WRONG = [
    JobError("the audio's store has failed 5 objects in succession"), ConfigError("other weights"), OSError(5, "no"),
    OverflowError("date value out of range"), ValueError("a shard that does not decode"), KeyError("a column"),
]  # fmt: skip


def stop(noop: NoOpDriver, plan: str, error: Exception) -> None:
    def before(shard):
        if shard.plan == plan:
            raise error

    noop.before = before


@pytest.mark.parametrize("error", WRONG, ids=lambda error: type(error).__name__)
def test_a_plan_that_cannot_be_finished_stops_no_other(noop, error):
    """Fails if new rows wait for an old run that fails, whatever it fails with, or nobody hears of that run."""
    old, new = noop.manifest("o.jsonl", noop.clips("old", 20)), noop.manifest("n.jsonl", noop.clips("new", 5))
    killed_after(noop, 1, old)
    stop(noop, "000001", error)
    for tries in (1, 2):
        with pytest.raises(StuckPlansError, match=r"(?s)run 000001 cannot be finished.*--give-up 000001") as stuck:
            noop.job(new)
        assert str(error) in str(stuck.value) and "the rows of the 2 remaining shards" in str(stuck.value)
        assert [report["run_id"] for report in stuck.value.reports] == (["000002"] if tries == 1 else [])
        assert (f"try {tries}, the first at" in str(stuck.value)) == (tries > 1)
        notes = sorted((noop.output / "_runs/000001/attempts").iterdir())
        assert [note.name for note in notes] == [f"{n:06d}.json" for n in range(1, tries + 1)]
        assert str(error) in json.loads(notes[-1].read_text())["error"]
    found = audit(open_store(str(noop.output)))
    assert found.status == "unfinished" and "2 failed tries" in found.plans[0].line()
    assert not [
        leftover for leftover in find_leftovers(open_store(str(noop.output)), now_s=4e9) if "attempts" in leftover.key
    ]
    stop(noop, "none", error)
    assert noop.job(new) == [("000001", 20, {})]
    sound(noop)


def test_two_notes_of_failed_attempts_do_not_overwrite_each_other(noop):
    """Fails if of two jobs that fail at once one takes away the other's note."""
    manifest = noop.manifest("o.jsonl", noop.clips("old", 2))
    killed_after(noop, 0, manifest)
    for number in (1, 2, 4):
        path = noop.output / f"_runs/000001/attempts/{number:06d}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"failed_at": "then", "number": number}))
    stop(noop, "000001", JobError("no"))
    with pytest.raises(StuckPlansError, match="try 5, the first at then"):
        noop.job(manifest)
    assert json.loads((noop.output / "_runs/000001/attempts/000004.json").read_text())["number"] == 4


def test_no_second_plan_waits_for_workers_that_do_not_come(noop):
    """Fails if a job waits an hour for workers once for each of its plans."""
    killed_after(noop, 0, noop.manifest("o.jsonl", noop.clips("old", 2)))
    waited = []

    def before(shard):
        waited.append(shard.plan)
        raise NoWorkersError("no actor runs")

    noop.before = before
    with pytest.raises(StuckPlansError, match="no actor runs"):
        noop.job(noop.manifest("n.jsonl", noop.clips("new", 2)))
    assert waited == ["000002"]


@pytest.mark.parametrize("named", ["000001", "1"])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_run_that_is_given_up_is_rejected_and_published(noop, named, done):
    """Fails if --give-up loses a row, touches what is committed, or leaves the run unfinished."""
    rows = noop.clips("old", 20)
    killed_after(noop, done, noop.manifest("o.jsonl", rows))
    stop(noop, "000001", JobError("never"))
    new = noop.manifest("n.jsonl", noop.clips("new", 3))
    committed = noop.utterances().num_rows if done else 0
    assert noop.job(new, give_up=[named]) == [("000001", committed, {"GIVEN_UP": 20 - committed}), ("000002", 3, {})]
    assert f"the rows of {3 - done:,} shards are rejected" in noop.printed
    rejects = pq.read_table(noop.output / "rejects/000001.parquet").to_pylist()
    assert len(rejects) == 20 - committed and {r["stage"] for r in rejects} == {"commit"}
    assert noop.job(new, give_up=[named]) == []
    sound(noop)


def test_giving_up_a_run_that_is_not_there_is_refused(noop, tmp_path, capsys):
    """Fails if a mistyped number is passed over in silence, or gives up another run."""
    manifest = noop.manifest("o.jsonl", noop.clips("old", 2))
    with pytest.raises(ConfigError, match="--give-up 000007: there is no such run"):
        noop.job(manifest, give_up=["7"])
    assert main(["--manifest", str(manifest), "--output", str(noop.output), "--give-up", "0x1"]) == 2
    assert "is not a run number such as 000007" in capsys.readouterr().err


def test_the_rate_of_one_manifest_rejects_no_row_of_another(noop):
    """Fails if --max-reject-rate 1, given for tonight's rows, makes rejects of last night's, which only need access."""
    rows = [{"id": f"r{n}", "audio": str(noop.folder / f"old/{n}.wav")} for n in range(12)]
    old, new = noop.manifest("o.jsonl", rows), noop.manifest("n.jsonl", noop.clips("new", 3))
    with pytest.raises(StuckPlansError, match="are missing"):
        noop.job(old)
    with pytest.raises(StuckPlansError, match="run 000001 cannot be finished"):
        noop.job(new, max_reject_rate=1)
    assert noop.utterances().num_rows == 3
    assert noop.job(old, max_reject_rate=1) == [("000001", 0, {"NOT_FOUND": 12})]


# -- deleted files


@pytest.mark.parametrize("lost", ["part", "parts", "report.json", "rejects", "everything"])
def test_what_was_deleted_by_hand_is_made_again(noop, lost):
    """Fails if the job says that nothing is new though parts or results of a published run are gone."""
    rows = [*noop.clips("old", 20), {"id": "gone", "audio": str(noop.folder / "gone.wav")}]
    manifest = noop.manifest("o.jsonl", rows)
    before = noop.job(manifest)
    assert noop.job(manifest) == []
    parts = sorted((noop.output / "utterances").glob("*.parquet"))
    report = noop.output / "_runs/000001/report.json"
    deleted = {"part": [random.choice(parts)], "parts": parts, "report.json": [report],
               "rejects": [noop.output / "rejects/000001.parquet"], "everything": [*parts, report]}[lost]  # fmt: skip
    for path in deleted:
        path.unlink()
    assert noop.job(manifest) == before
    assert "run 000001 was published, but" in noop.printed and "jobs.verify" in noop.printed
    assert noop.job(manifest) == [] and noop.printed == ""
    sound(noop)


def test_a_part_made_again_with_another_outcome_is_reported(noop):
    """Fails if a deleted part comes back with rejects that the published log does not have, and the job ends well."""
    manifest = noop.manifest("o.jsonl", noop.clips("old", 24))
    noop.job(manifest)
    part = noop.output / "utterances/000001-000001.parquet"
    audio = pq.read_table(part)["audio"].to_pylist()
    part.unlink()
    Path(audio[0]).unlink()
    for tries in range(1, 4):  # every later job, until somebody repairs it
        with pytest.raises(StuckPlansError, match=r"Delete _runs/000001/_SUCCESS.*jobs.verify") as caught:
            noop.job(manifest)
        assert f"(try {tries}, " in str(caught.value) or tries == 1
    new = noop.manifest("n.jsonl", noop.clips("new", 3))
    with pytest.raises(StuckPlansError, match="run 000001 cannot be finished") as caught:
        noop.job(new)
    assert [report["run_id"] for report in caught.value.reports] == ["000002"]
    for name in ("_SUCCESS", "report.json"):
        (noop.output / "_runs/000001" / name).unlink()
    time.sleep(1.1)  # times are noted in whole seconds
    assert noop.job(manifest) == [("000001", 23, {"NOT_FOUND": 1})]
    sound(noop)
    assert noop.job(manifest) == []


@pytest.mark.parametrize("repaired", [True, False])
def test_a_failure_in_passing_is_not_damage(noop, repaired):
    """Fails if an output that is whole is read again every night because a try failed once."""
    rows = noop.clips("old", 12)
    manifest = noop.manifest("o.jsonl", rows)
    if repaired:
        noop.job(manifest)
        (noop.output / "utterances/000001-000001.parquet").unlink()

    def fail(_: object) -> None:
        raise JobError("the store is down")

    noop.before = fail
    with pytest.raises(StuckPlansError, match="the store is down"):
        noop.job(manifest)
    noop.before = lambda _: None
    assert noop.job(manifest) == [("000001", 12, {})]
    assert noop.job(manifest) == [] and noop.printed == ""


def test_a_whole_output_lacks_nothing(tmp_path):
    """Fails if an output that is whole is taken for one that lost something."""
    store, out = finished_output(str(tmp_path / "whole"), tmp_path / "m"), io.StringIO()
    assert [state.whole for state in survey(History(store), out)] == [True, True]
    assert out.getvalue() == ""


# -- pages


@pytest.fixture
def pages(noop, monkeypatch):
    """`jobs.annotate` with the driver without Ray; returns what it printed, and which pages it drew."""
    import jobs.annotate as command

    drawn: list[str] = []

    def draw(output, run):
        drawn.append(run)
        (Path(output) / f"_runs/{run}/report.html").touch()
        return Drawn(None, f"page of {run}")

    monkeypatch.setattr(command, "draw", draw)

    def job(manifest, *options):
        drawn.clear()
        flags = ["--mode", "audio", "--embeddings", "audio", "--shard-rows", "8", *options]
        return main(["--manifest", str(manifest), "--output", str(noop.output), *flags]), list(drawn)

    return job


def test_a_run_killed_before_its_page_gets_it_from_the_same_command(noop, pages, capsys):
    """Fails if a run that was interrupted between `_SUCCESS` and its page never has one, or others are drawn again."""
    manifests = [noop.manifest(f"{n}.jsonl", noop.clips(f"c{n}", 3)) for n in range(3)]
    for manifest in manifests:
        assert pages(manifest)[0] == 0
    page = noop.output / "_runs/000002/report.html"
    page.unlink()
    assert pages(manifests[0]) == (0, ["000002"])
    assert page.exists() and "page of 000002" in capsys.readouterr().out
    assert pages(manifests[0]) == (0, [])
    page.unlink()
    assert pages(manifests[0], "--no-page") == (0, [])
    grown = noop.manifest("3.jsonl", noop.clips("c3", 3))
    assert pages(grown) == (0, ["000004", "000002"])


def test_a_page_that_was_not_wanted_is_not_drawn_later(noop, pages):
    """Fails if --no-page is forgotten by the next job."""
    manifest = noop.manifest("0.jsonl", noop.clips("c", 3))
    assert pages(manifest, "--no-page") == (0, [])
    assert pages(manifest) == (0, [])


def test_a_stuck_run_is_exit_status_1_and_the_others_are_reported(noop, pages, capsys):
    """Fails if the summary and the page of what was finished are lost because something else was not."""
    killed_after(noop, 0, noop.manifest("o.jsonl", noop.clips("old", 3)))
    stop(noop, "000001", JobError("no way"))
    assert pages(noop.manifest("n.jsonl", noop.clips("new", 3))) == (1, ["000002"])
    said = capsys.readouterr()
    assert "run 000002: 3 rows = 3 annotated" in said.out
    assert "run 000001 cannot be finished: no way." in said.err
