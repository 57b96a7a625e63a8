"""The decoder's process: whatever a file does to it is that file's reject, and the next file is as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.audio.limits import AudioLimits
from pipeline.audio.sandbox import CHILD, Sandbox
from pipeline.errors import JobError, Reason, RejectedRow, Stage
from pipeline.shard.context import Work
from tests.hostile import make_audio as make
from tests.hostile.stub_decoder import ACTS, MODULE, stub
from tests.support.corpus import ROOT
from tests.support.golden import PARITY
from tests.support.processes import descendants
from tests.support.shards import annotate_shard, assert_same, models_of, parts, row, work_of
from tests.support.sounds import CLIPS, SOUND
from tests.test_layering import loaded_by

GOOD = (PARITY / "audio" / "en_16k_short.wav").read_bytes()
EXPECTED = decode(GOOD)
SMALL = AudioLimits(max_duration_s=60)
SHORT = AudioLimits(max_duration_s=60, timeout_s=1.0)
HANGS = {"loop", "sleep"}
HUNGRY = {"allocate", "allocate at once"}
HARMLESS = {"nap", "leak", "poison", "chatter", "open", "unforeseen"}


@pytest.fixture(scope="module")
def stubbed() -> Iterator[Sandbox]:
    """One for the module: what a test does to it must not matter to the next."""
    with Sandbox(MODULE) as sandbox:
        yield sandbox
    assert not children()


@pytest.fixture(scope="module")
def sandboxed() -> Iterator[Sandbox]:
    """The real one."""
    with Sandbox() as sandbox:
        yield sandbox


def rejected(sandbox: Sandbox, content: bytes, limits: AudioLimits = SMALL) -> RejectedRow:
    with pytest.raises(RejectedRow) as caught:
        sandbox.decode(content, limits=limits)
    assert caught.value.stage is Stage.DECODE
    return caught.value


def children(module: str = MODULE) -> list[int]:
    return [pid for pid in descendants(os.getpid()) if module.encode() in _proc(pid, "cmdline")]


def _proc(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


def dead(pid: int) -> bool:
    """Gone, or a zombie that its new parent, which is none of ours, has yet to wait for."""
    status = _proc(pid, "stat")
    return not status or status.rpartition(b")")[2].split()[0] == b"Z"


# The same waveforms and the same rejects as in this process


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
def test_clips_are_bit_identical(sandboxed, clip):
    """Fails if a sample is lost, rounded or reordered on its way between the processes."""
    content = clip.read_bytes()
    waveform = sandboxed.decode(content)
    assert waveform.dtype == np.float32
    assert waveform.flags.c_contiguous
    np.testing.assert_array_equal(waveform, decode(content))


@pytest.mark.parametrize("name", SOUND)
def test_every_format_decodes_where_nothing_can_be_opened(sandboxed, name):
    """Fails if a decoder needs a file, or a module it imports late, once the child may open nothing any more."""
    for options in ({}, {"offset_s": 1.0, "duration_s": 0.5}, {"channel": 0}):
        np.testing.assert_array_equal(sandboxed.decode(SOUND[name], **options), decode(SOUND[name], **options))


def test_nothing_of_pyav_is_left_to_load():
    """Fails if a new PyAV imports a module with the first file of a kind, which the child can no longer do."""
    code = (
        "import av, pkgutil, sys\n"
        "import pipeline.audio.child\n"
        "print(*{module.name for module in pkgutil.walk_packages(av.__path__, 'av.')} - set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == {"av.__main__", "av.datasets"}


@pytest.mark.parametrize("options", [
    {"channel": 7}, {"channel": -1}, {"offset_s": float("nan")}, {"duration_s": float("inf")}, {"offset_s": 900.0},
    {"limits": AudioLimits(max_bytes=10)}, {"limits": AudioLimits(max_duration_s=1.0)},
])  # fmt: skip
def test_arguments_and_limits_arrive(sandboxed, options):
    """Fails if an argument is dropped or changed on its way, or a reject says something else than here."""
    with pytest.raises(RejectedRow) as here:
        decode(SOUND["wav"], **options)
    with pytest.raises(RejectedRow) as there:
        sandboxed.decode(SOUND["wav"], **options)
    assert str(here.value) == str(there.value)


def test_damaged_files_are_rejected_in_the_same_words(sandboxed):
    """Fails if a reject depends on where it was decoded: two runs of one manifest would differ."""
    cut = (SOUND[name][: len(SOUND[name]) // 2] for name in sorted(SOUND.keys() - {"adts", "mp2"}))
    hostile = [*make.not_audio().values(), b"", *cut]
    for content in hostile:
        with pytest.raises(RejectedRow) as here:
            decode(content)
        assert str(rejected(sandboxed, content, AudioLimits())) == str(here.value)


def test_more_than_a_pipe_holds(sandboxed):
    """Fails if a long recording is cut, or both sides wait for one another."""
    content = make.snd(np.tile(make.voice(10), (60, 1)))
    np.testing.assert_array_equal(sandboxed.decode(content), decode(content))


# What a file may do to its decoder


@pytest.mark.parametrize("act", sorted(ACTS.keys() - HARMLESS))
def test_a_file_costs_its_row_alone(stubbed, act):
    """Fails if a crash, a hang or a mad answer escapes as anything but its own reject, or harms the next file."""
    np.testing.assert_array_equal(stubbed.decode(GOOD), EXPECTED)
    limits = SHORT if act in HANGS else SMALL
    found = rejected(stubbed, stub(act), limits)
    expected = Reason.TIMEOUT if act in HANGS else Reason.OUT_OF_MEMORY if act in HUNGRY else Reason.DECODER_CRASH
    assert found.reason is expected
    assert str(rejected(stubbed, stub(act), limits)) == str(found), "the same words in every run"
    np.testing.assert_array_equal(stubbed.decode(GOOD), EXPECTED)
    assert len(children()) == 1, "neither a zombie nor a second one"


@pytest.mark.parametrize(("act", "said"), [
    ("segfault", "was killed by SIGSEGV"), ("abort", "was killed by SIGABRT"), ("exit", "exited with status 3"),
    ("close", "closed its output"), ("kill", "was killed by SIGKILL, which the system sends when memory runs out"),
    ("garbage", "sent an invalid answer"), ("loop", "did not finish within 1 s"),
])  # fmt: skip
def test_a_reject_says_how_the_decoder_ended(stubbed, act, said):
    """Fails if a person cannot tell a crash from an exit from a hang."""
    assert said in rejected(stubbed, stub(act), SHORT if act in HANGS else SMALL).detail


def test_what_nobody_foresaw_is_named(stubbed):
    """Fails if a bug of ours looks like a crash of a library, or its type is lost."""
    found = rejected(stubbed, stub("unforeseen"))
    assert (found.reason, found.detail) == (Reason.INTERNAL, "KeyError: 'a bug of ours'")
    np.testing.assert_array_equal(stubbed.decode(GOOD), EXPECTED)


@pytest.mark.parametrize("act", ["poison", "leak"])
def test_a_file_is_not_blamed_for_what_another_did(stubbed, act):
    """Fails if the file after one that corrupted or filled the decoder's memory is rejected in its stead."""
    stubbed.decode(stub(act), limits=SMALL)
    content = make.snd(make.voice(20))
    np.testing.assert_array_equal(stubbed.decode(content, limits=SMALL), decode(content))


def test_chatter_is_no_answer(stubbed):
    """Fails if what FFmpeg prints gets between the answers, or fills a pipe that nobody reads."""
    assert len(stubbed.decode(stub("chatter"))) == 1_000
    np.testing.assert_array_equal(stubbed.decode(GOOD), EXPECTED)


def test_a_decoder_can_open_nothing(stubbed):
    """Fails if a file or a socket could be opened while a file is decoded, whatever a demuxer is made to try."""
    assert len(stubbed.decode(stub("open"))) == 1_000


def test_a_killed_child_costs_nothing(stubbed):
    """Fails if the death of an idle child, by an operator or the system, is the next file's reject."""
    stubbed.decode(GOOD)
    (pid,) = children()
    os.kill(pid, signal.SIGKILL)
    np.testing.assert_array_equal(stubbed.decode(GOOD), EXPECTED)
    assert children() != [pid]


def test_a_child_that_cannot_start_is_no_files_fault():
    """Fails if a broken installation rejects every row of a corpus, or does not say what is missing."""
    with pytest.raises(JobError, match=r"No module named tests\.nowhere"):
        Sandbox("tests.nowhere").decode(GOOD)
    with pytest.raises(JobError, match="its first answer is invalid"):
        Sandbox("this").decode(GOOD)


# The process itself


def test_the_child_knows_no_secret(monkeypatch):
    """Fails if credentials, whatever they are called, reach a process that parses files of strangers."""
    canaries = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "X_PASSWORD", "API_KEY", "DATABASE_URL")
    for name in canaries:
        monkeypatch.setenv(name, "canary-91c2")
    others = set(children())
    with Sandbox(MODULE) as sandbox:
        sandbox.decode(GOOD)
        (pid,) = set(children()) - others
        environment = _proc(pid, "environ")
    assert b"PYTHONPATH=" in environment
    assert b"canary-91c2" not in environment
    assert not [name for name in canaries if name.encode() in environment]


def test_the_child_loads_decoders_and_no_more():
    """Fails if every worker pays for Arrow, torch or Ray a second time, in memory and in seconds of each restart."""
    heavy = {"pyarrow", "torch", "ray", "pydantic", "fsspec", "pandas", "scipy", "librosa", "asyncio", "ssl"}
    assert loaded_by([CHILD], heavy) == set()
    assert loaded_by(["pipeline.audio.sandbox"], heavy | {"av", "soundfile", "soxr"}) == set()


@pytest.mark.parametrize("act", ["idle", "loop"])
def test_no_child_outlives_its_worker(tmp_path, act):
    """Fails if a worker that is killed leaves a process behind, idle or in the middle of a file."""
    code = (
        "import sys\n"
        "from pipeline.audio.sandbox import Sandbox\n"
        "from tests.hostile.stub_decoder import MODULE, stub\n"
        "sandbox = Sandbox(MODULE)\n"
        "sandbox.decode(stub('chatter'))\n"
        "print('ready', flush=True)\n"
        "sandbox.decode(stub('loop')) if sys.argv[1] == 'loop' else sys.stdin.read()\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code, act], cwd=ROOT, stdin=pipe, stdout=pipe) as worker:
        assert worker.stdout.readline() == b"ready\n"
        (pid,) = descendants(worker.pid)
        time.sleep(0.2)
        worker.kill()
    deadline = time.monotonic() + 20
    while not dead(pid):
        assert time.monotonic() < deadline, "the child is still there"
        time.sleep(0.02)


def test_the_time_a_worker_was_stopped_for_is_not_the_files():
    """Fails if a suspended machine or a stopped worker rejects whatever it was decoding."""
    code = (
        "from pipeline.audio.limits import AudioLimits\n"
        "from pipeline.audio.sandbox import Sandbox\n"
        "from tests.hostile.stub_decoder import MODULE, stub\n"
        "sandbox = Sandbox(MODULE)\n"
        "sandbox.decode(stub('chatter'))\n"
        "print('ready', flush=True)\n"
        "print(len(sandbox.decode(stub('nap'), limits=AudioLimits(timeout_s=4.0))), flush=True)\n"
        "sandbox.close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as worker:
        assert worker.stdout.readline() == b"ready\n"
        (pid,) = descendants(worker.pid)
        for signum, pause_s in ((signal.SIGSTOP, 6.0), (signal.SIGCONT, 0.0)):
            for each in (worker.pid, pid):
                os.kill(each, signum)
            time.sleep(pause_s)
        assert worker.stdout.readline() == b"1000\n"


def test_threads_take_turns(sandboxed):
    """Fails if two threads' files or answers get mixed up in one pipe."""
    wrong: list[int] = []

    def work(number: int) -> None:
        content = make.snd(make.voice(0.5 + number / 4, seed=number))
        expected = decode(content)
        wrong.extend(number for _ in range(20) if not np.array_equal(sandboxed.decode(content), expected))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.filterwarnings("ignore:lance is not fork-safe")  # once another test of this process has imported it
def test_a_forked_process_has_a_child_of_its_own(stubbed):
    """Fails if a process forked from a worker talks into the worker's pipes, or kills the worker's child."""
    stubbed.decode(GOOD)
    before = children()
    pid = os.fork()
    if pid == 0:
        right = np.array_equal(stubbed.decode(GOOD), EXPECTED) and not set(children()) & set(before)
        stubbed.close()
        os._exit(0 if right else 1)
    assert os.waitpid(pid, 0)[1] == 0
    np.testing.assert_array_equal(stubbed.decode(GOOD), EXPECTED)
    assert children() == before


def test_a_shard_with_a_crash_and_a_hang(tmp_path, checkpoints, monkeypatch, stubbed, one_thread):
    """Fails if such files cost their shard, or change the rows beside them."""
    monkeypatch.setattr("pipeline.shard.recording.sandbox", lambda: stubbed)
    monkeypatch.setattr(Work, "limits", property(lambda _: SHORT))
    good = [row(number, str(clip)) for number, clip in enumerate(CLIPS) if clip.name.startswith("en_16k_p")]
    bad = []
    for act in ("segfault", "loop"):
        (tmp_path / f"{act}.wav").write_bytes(stub(act))
        bad.append(row(act, str(tmp_path / f"{act}.wav")))
    models = models_of(checkpoints, "audio", ["en"])
    expected = work_of(tmp_path / "without", good, models, "audio")
    annotate_shard(expected, next(iter(expected.plan.shards())))
    work = work_of(tmp_path / "with", [bad[0], *good, bad[1]], models, "audio")
    finished = annotate_shard(work, next(iter(work.plan.shards())))
    assert sorted(finished.rejects) == [Reason.DECODER_CRASH, Reason.TIMEOUT]
    drop = ["manifest", "line"]
    one, two = (
        parts(each).drop_columns([n for n in drop if n in parts(each).column_names]) for each in (work, expected)
    )
    assert_same(one, two)
