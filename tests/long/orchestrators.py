"""The examples for Airflow and Dagster, in the real Airflow and Dagster, against a real Ray head on loopback.

`make test-orchestrators` installs both into build/orchestrators. Each runs a night on clips of the demo, and then, with a job
that only waits: a wrong option, an end by SIGTERM, and a kill by SIGKILL followed by a retry.

usage: python -m tests.long.orchestrators [airflow] [dagster]
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demo.models import options
from tests.support.corpus import ONE_ACTOR, ROOT
from tests.support.ray_head import head

INSTALLED = ROOT / "build" / "orchestrators"
EXAMPLES = ROOT / "examples"
DAY = "2026-11-22"
WAITING_JOB = """import json, pathlib, sys, time
if "--wrong" in sys.argv: sys.exit(2)
corpus = pathlib.Path(sys.argv[1])
with (corpus / "begun").open("a") as begun: print("x", file=begun)
print("begun", flush=True)
while not (corpus / "go").exists(): time.sleep(0.2)
report = corpus / "_runs" / "000001" / "report.json"
report.parent.mkdir(parents=True)
report.write_text(json.dumps({"run_id": "000001", "rows": 1, "utterances": 1, "rejected": 0, "audio_hours": 0.1}))
print(f"report in {report}")
"""
DAG_RUN = """import json, sys
from datetime import datetime, timezone
import airflow_dag
day = datetime.fromisoformat(sys.argv[1]).replace(tzinfo=timezone.utc)
run = airflow_dag.speech_emotion().test(run_after=day, logical_date=day, run_conf=json.loads(sys.argv[2]))
sys.exit(run.state != "success")
"""
"""A program for Airflow's Python: `airflow dags test`, but with the same run id whenever it is called for a day."""
RETRY = """import json, sys
import dagster as dg
import dagster_asset
def job(): return dagster_asset.definitions.resolve_job_def("nightly")
if __name__ == "__main__":
    instance = dg.DagsterInstance.get()
    (killed,) = instance.get_runs(limit=1)
    result = dg.execute_job(
        dg.reconstructable(job), instance=instance, run_config=json.loads(sys.argv[1]), tags={"dagster/partition": sys.argv[2]},
        reexecution_options=dg.ReexecutionOptions(parent_run_id=killed.run_id), asset_selection=[dg.AssetKey("utterances")],
    )
    sys.exit(not result.success)
"""
"""A program for Dagster's Python: the retry of a run that was killed, as Dagster's daemon launches it."""


@dataclass
class Scene:
    """A Ray head, and a folder with a corpus, a source tree whose night only waits, and the orchestrator's home."""

    folder: Path
    dashboard: str
    environment: dict[str, str]
    waiting: Path = field(init=False)

    def __post_init__(self) -> None:
        self.waiting = self.folder / "tree"
        (self.waiting / "jobs").mkdir(parents=True)
        for name in ("__init__", "verify", "check"):
            (self.waiting / "jobs" / f"{name}.py").touch()
        (self.waiting / "jobs" / "nightly.py").write_text(WAITING_JOB)

    def night(self) -> dict[str, Any]:
        """Return the settings of a real night on three clips of the demo."""
        folder = self.folder / "audio"
        folder.mkdir()
        for clip in ("ada-goodbye.flac", "ada-hide.m4a", "ada-prizes.wav"):
            shutil.copy(ROOT / "demo" / "corpus" / "audio" / clip, folder)
        more = [*ONE_ACTOR, "--no-page", "--language", "en"]
        return {"corpus": str(folder), "options": [*options(), *more], "working_dir": str(ROOT)}

    def corpus(self, name: str) -> Path:
        """Return a new folder for a job that only waits."""
        folder = self.folder / name
        folder.mkdir()
        return folder

    def start(self, words: list[str], log: str) -> subprocess.Popen[bytes]:
        """Start a program of the orchestrator."""
        with (self.folder / log).open("ab") as out:
            return subprocess.Popen(
                words, cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True
            )

    def run(self, words: list[str], log: str) -> int:
        """Run a program of the orchestrator to its end. Returns: its exit status."""
        return self.start(words, log).wait(600)

    def submissions(self) -> dict[str, str]:
        """Return the status of each submission on the head."""
        words = ["curl", "-sSf", "-H", f"Authorization: Bearer {self.environment['RAY_AUTH_TOKEN']}"]
        done = subprocess.run([*words, f"{self.dashboard}/api/jobs/"], capture_output=True, text=True, check=True)
        return {job["submission_id"]: job["status"] for job in json.loads(done.stdout) if job["submission_id"]}

    def nights(self) -> set[str]:
        """Return the submissions on the head without those of asset checks."""
        return {name for name in self.submissions() if "-jobs." not in name}

    def await_begin(self, corpus: Path, process: subprocess.Popen[bytes]) -> None:
        """Wait until the job that waits has begun."""
        deadline = time.monotonic() + 300
        while not (corpus / "begun").exists():
            assert process.poll() is None and time.monotonic() < deadline, f"no job; see the logs in {self.folder}"
            time.sleep(0.5)

    def kill_and_retry(self, corpus: Path, words: list[str], retry: list[str]) -> None:
        """Kill the waiting task, retry it, and let the job end. Fails if the retry starts a second job, or does not end well."""
        process = self.start(words, "killed.log")
        self.await_begin(corpus, process)
        before = self.nights()
        os.killpg(process.pid, signal.SIGKILL)  # and the processes of its steps
        process.wait(30)
        process = self.start(retry, "retry.log")
        assert wait_for(lambda: b"submission " in (self.folder / "retry.log").read_bytes(), 300), self.folder
        (corpus / "go").touch()
        assert process.wait(300) == 0, self.folder
        assert (corpus / "begun").read_text() == "x\n", "a second job began"
        assert self.nights() == before and "RUNNING" not in self.submissions().values()


def main(names: list[str]) -> None:
    """Run the scenes of the named orchestrators, all by default."""
    for name in names or ["airflow", "dagster"]:
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        with head(folder, 2) as cluster:
            variables = {**os.environ, **cluster.environment, "RAY_DASHBOARD": cluster.dashboard}
            del variables["RAY_ADDRESS"]  # Ray would take it for the dashboard's
            scene = Scene(folder, cluster.dashboard, variables)
            {"airflow": airflow, "dagster": dagster}[name](scene)
        shutil.rmtree(folder)


def airflow(scene: Scene) -> None:
    """Run the DAG four times, as `airflow dags test` does, and look at the tasks that Airflow stored."""
    dags = scene.folder / "dags"
    dags.mkdir()
    for name in ("airflow_dag.py", "ray_job.py"):
        shutil.copy(EXAMPLES / name, dags)
    scene.environment |= {
        "AIRFLOW_HOME": str(scene.folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "PYTHONPATH": str(dags),
    }
    program = str(INSTALLED / "airflow" / "bin" / "airflow")
    assert scene.run([program, "db", "migrate"], "migrate.log") == 0, scene.folder
    assert scene.run([program, "dags", "reserialize"], "migrate.log") == 0, scene.folder

    def command(day: str, **params: Any) -> list[str]:
        known = {"output": str(scene.folder / "out"), "working_dir": str(scene.waiting), **params}
        return [str(INSTALLED / "airflow" / "bin" / "python"), "-c", DAG_RUN, day, json.dumps(known)]

    def states(day: str) -> dict[str, tuple[str, int]]:
        with sqlite3.connect(scene.folder / "airflow.db") as database:
            query = "select task_id, state, try_number from task_instance where run_id like ?"
            return {task: (state, tries) for task, state, tries in database.execute(query, [f"%{day}%"])}

    assert scene.run(command("2026-11-21", **scene.night()), "night.log") == 0, scene.folder
    say("a night", states("2026-11-21"), scene.submissions())
    assert {state for state, _ in states("2026-11-21").values()} == {"success"}
    assert len(list((scene.folder / "out" / "utterances").rglob("*.parquet"))) > 0

    scene.run(command("2026-11-22", corpus=str(scene.corpus("wrong")), options=["--wrong"]), "wrong.log")
    say("a wrong option", states("2026-11-22"), scene.submissions())
    assert states("2026-11-22")["annotate"][0] == "failed", "not up_for_retry"

    corpus = scene.corpus("ended")
    process = scene.start(command("2026-11-23", corpus=str(corpus)), "ended.log")
    scene.await_begin(corpus, process)
    process.send_signal(signal.SIGTERM)
    stopped = wait_for(lambda: "STOPPED" in scene.submissions().values(), 60)
    wait_for(lambda: states("2026-11-23")["annotate"][0] != "running", 60)
    os.killpg(process.pid, signal.SIGKILL)  # it waits for its retry
    process.wait()
    say("ended by SIGTERM", states("2026-11-23"), scene.submissions())
    assert stopped, "on_kill did not stop the job"

    corpus = scene.corpus("killed")
    words = command("2026-11-24", corpus=str(corpus))
    scene.kill_and_retry(corpus, words, words)
    say("killed, and tried again", states("2026-11-24"), scene.submissions())
    assert {state for state, _ in states("2026-11-24").values()} == {"success"}


def dagster(scene: Scene) -> None:
    """Materialise four partitions with `dagster asset materialize`, and look at the runs and checks that Dagster stored."""
    home = scene.folder / "home"
    home.mkdir()
    (home / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    scene.environment |= {"DAGSTER_HOME": str(home), "PYTHONPATH": str(EXAMPLES)}
    program = str(INSTALLED / "dagster" / "bin" / "dagster")

    def config(**settings: Any) -> str:
        known = {"dashboard": scene.dashboard, "output": str(scene.folder / "out"), "working_dir": str(scene.waiting)}
        return json.dumps({"resources": {"cluster": {"config": {**known, **settings}}}})

    def command(day: str, **settings: Any) -> list[str]:
        file = str(EXAMPLES / "dagster_asset.py")
        words = [program, "asset", "materialize", "-f", file, "--select", "utterances", "--partition", day]
        return [*words, "--config-json", config(**settings)]

    def events(kind: str) -> list[dict[str, Any]]:
        found = []
        for path in (home / "history" / "runs").glob("*-*.db"):  # and not index.db, which repeats some
            with sqlite3.connect(path) as database:
                rows = database.execute("select event from event_logs where dagster_event_type = ?", [kind])
                found += [json.loads(event)["dagster_event"]["event_specific_data"] for (event,) in rows]
        return found

    assert scene.run(command("2026-11-21", **scene.night()), "night.log") == 0, scene.folder
    checks = {event["check_name"]: event["success"] for event in events("ASSET_CHECK_EVALUATION")}
    say("a night", checks, scene.submissions())
    assert checks == {"sound": True, "within_limits": True} and len(scene.submissions()) == 3

    begun_s = time.monotonic()
    corpus = str(scene.corpus("wrong"))
    assert scene.run(command("2026-11-22", corpus=corpus, options=["--wrong"]), "wrong.log") == 1, scene.folder
    say("a wrong option", len(events("STEP_FAILURE")), scene.submissions())
    assert not events("STEP_UP_FOR_RETRY") and time.monotonic() - begun_s < 280, "it was tried again"

    ended = scene.corpus("ended")
    process = scene.start(command("2026-11-23", corpus=str(ended)), "ended.log")
    scene.await_begin(ended, process)
    process.send_signal(signal.SIGTERM)
    stopped = wait_for(lambda: "STOPPED" in scene.submissions().values(), 60)
    process.wait(120)
    say("ended by SIGTERM", scene.submissions())
    assert stopped, "the job runs on"

    killed = scene.corpus("killed")
    words = command("2026-11-24", corpus=str(killed))
    (scene.folder / "retry.py").write_text(RETRY)
    retry = [str(INSTALLED / "dagster" / "bin" / "python"), "retry.py", config(corpus=str(killed)), "2026-11-24"]
    scene.kill_and_retry(killed, words, retry)
    say("killed, and tried again", scene.submissions())


def wait_for(condition: Callable[[], bool], limit_s: float) -> bool:
    """Return whether the condition holds within the time."""
    deadline = time.monotonic() + limit_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.5)
    return condition()


def say(*what: object) -> None:
    """Print one line of the result."""
    print(f"{sys._getframe(1).f_code.co_name}:", *what, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
