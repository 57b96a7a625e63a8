"""Models checked in a process of their own: the same answer, the same refusal, and a word when the process dies."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.errors import ConfigError, JobError
from pipeline.models import roles
from pipeline.models.checkpoints import pinning as pinning_module
from pipeline.models.checkpoints.pinning import Pinning, refusal_first
from pipeline.processes import FORK_SERVER, Fork, fork_server, interrupts_blocked
from tests.support.pins import by_role

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def _server() -> Iterator[Mapping[str, str]]:
    """Return the variable that names a fork server which has imported what checks need."""
    with fork_server(["pipeline.models.checkpoints.modes", "pipeline.models.checkpoints.weights"]):
        variable = {FORK_SERVER: os.environ.pop(FORK_SERVER)}
        yield variable


@pytest.fixture
def forks(_server: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks are forks of a server, as in a job that starts Ray on one machine."""
    for name, value in _server.items():
        monkeypatch.setenv(name, value)


def test_the_answer_is_pins(checkpoints, tmp_path, monkeypatch):
    """Fails if a hash, a revision or a width is lost between the processes, or the child depends on the working folder."""
    chosen = by_role({"fusion/en": str(checkpoints / "mean-en"), "sentence_encoder/en": str(checkpoints / "bert-en")})
    monkeypatch.chdir(tmp_path)
    with Pinning(chosen, "mean") as pinning:
        assert isinstance(pinning._process, subprocess.Popen) and pinning.result() == roles.pin(chosen, "mean")


@pytest.mark.usefixtures("forks")
def test_a_refusal_is_the_same(tmp_path):
    """Fails if a model that cannot be used ends in a traceback of the child, or as a failure of the job."""
    chosen = by_role({"fusion/en": str(tmp_path / "nothing")})
    with pytest.raises(ConfigError) as apart, Pinning(chosen, "audio") as pinning:
        pinning.result()
    with pytest.raises(ConfigError) as here:
        roles.pin(chosen, "audio")
    assert str(apart.value) == str(here.value)


def test_a_child_that_dies_is_spoken_of(checkpoints):
    """Fails if a check that was killed, for want of memory say, is waited for, or taken for an answer."""
    with Pinning(by_role({"fusion/en": str(checkpoints / "audio-en")}), "audio") as pinning:
        os.kill(pinning._process.pid, signal.SIGKILL)
        with pytest.raises(JobError, match="status -9"):
            pinning.result()


@pytest.mark.parametrize("kind", [ConfigError, JobError])
def test_each_kind_of_failure_keeps_its_exit_status(monkeypatch, capsys, kind):
    """Fails if a store that is gone while models are fetched ends in the child's traceback, or is taken for a wrong option."""

    def pin(*_, **__):
        raise kind("said once")

    monkeypatch.setattr(roles, "pin", pin)
    monkeypatch.setattr("sys.stdin", io.StringIO('{"chosen": {}, "mode": "audio", "prepared": null, "rules": null}'))
    pinning_module.main()
    process = SimpleNamespace(stdout=io.StringIO(capsys.readouterr().out), wait=lambda: 0)
    monkeypatch.setattr(Pinning, "__init__", lambda self: setattr(self, "_process", process))
    with pytest.raises(kind, match="said once"):
        Pinning().result()


def test_nobody_asks(checkpoints):
    """Fails if a check that nobody waits for, since Ray did not start, outlives the run."""
    with Pinning(by_role({"fusion/en": str(checkpoints / "audio-en")}), "audio") as pinning:
        pass
    assert pinning._process.returncode == -signal.SIGKILL


def test_a_script_without_a_guard_can_run_jobs(checkpoints, tmp_path):
    """Fails if the child imports the caller's script, as multiprocessing's does: it would start the job again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from pipeline.models.checkpoints.pinning import Pinning\n"
        "from pipeline.pins import Role\n"
        f"with Pinning({{Role.parse('fusion/en'): {str(checkpoints / 'audio-en')!r}}}, 'audio') as pinning:\n"
        "    print('once', *pinning.result()[0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "once fusion/en\n"


@pytest.mark.parametrize("failure", [JobError("Ray"), OSError("disk"), ConfigError("no card")])
def test_a_models_refusal_is_told_before_a_failure_of_ray(failure):
    """Fails if a model that no run will ever take is hidden behind a Ray that did not start."""

    def refuse():
        raise ConfigError("the model")

    with pytest.raises(ConfigError, match="the model"), refusal_first(refuse):
        raise failure


@pytest.mark.parametrize("kind", [JobError, OSError, None])
def test_a_failure_of_ray_is_told_where_no_model_is_refused(kind):
    """Fails if a hub that does not answer, or a sound model, hides why Ray did not start."""

    def pinned():
        if kind:
            raise kind("the hub")

    with pytest.raises(JobError, match="Ray"), refusal_first(pinned):
        raise JobError("Ray")


def test_a_check_of_models_does_not_see_ctrl_c(checkpoints, capfd):
    """Fails if Ctrl-C, which reaches the whole process group, prints the child's traceback while it still imports."""
    with Pinning(by_role({"fusion/en": str(checkpoints / "audio-en")}), "audio") as pinning:
        for after_s in (0.0, 0.1, 0.4, 0.5):
            time.sleep(after_s)
            os.kill(pinning._process.pid, signal.SIGINT)
        pinned, _ = pinning.result()
    assert [*map(str, pinned)] == ["fusion/en"]
    assert capfd.readouterr() == ("", "")


def test_ctrl_c_while_a_child_starts_is_not_lost():
    """Fails if the signal that arrives while children are kept from it never reaches the driver."""
    before = signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # ignored where a shell runs the tests in the background
    steps = []

    def start():
        with interrupts_blocked():
            # to this thread: one that another test left would take a signal to the process, which no driver's does
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            steps.append("started")
        steps.append("not interrupted")

    try:
        with pytest.raises(KeyboardInterrupt):
            start()
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps == ["started"]


@pytest.mark.usefixtures("forks")
def test_a_process_that_was_started_early_answers_once_or_ends(checkpoints):
    """Fails if an early process is not used, is used twice, or stays when a job ends before it needs models."""
    chosen = by_role({"fusion/en": str(checkpoints / "audio-en")})
    with pinning_module.prestarted():
        (early,) = pinning_module._spare
        assert isinstance(early, Fork)
        with Pinning(chosen, "audio") as first, Pinning(chosen, "audio") as second:
            assert first._process is early and second._process is not early
            assert first.result() == second.result()
    with pytest.raises(ConfigError), pinning_module.prestarted():
        (unused,) = pinning_module._spare
        raise ConfigError("wrong option")
    assert unused.wait() == -signal.SIGKILL and not pinning_module._spare
