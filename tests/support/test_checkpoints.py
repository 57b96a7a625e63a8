"""The folder of checkpoints that test processes share: one of them writes it while the others wait."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.checkpoints import write_once

_context = multiprocessing.get_context("spawn")


def _fill(log: Path, folder: Path) -> None:
    time.sleep(0.2)
    (folder / "weights").write_text("whole")
    with log.open("a") as lines:
        lines.write("written\n")


def _use(target: Path, log: Path, rounds: int) -> None:
    """Act as a test process: request the folder, then read from it."""
    for _ in range(rounds):
        assert (write_once(target, "newest", partial(_fill, log)) / "weights").read_text() == "whole"


def _in_processes(count: int, use: Callable[..., None], *arguments: object) -> list[int | None]:
    processes = [_context.Process(target=use, args=arguments) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


@pytest.mark.parametrize("before", ["nothing", "an older digest", "a killed writer's folder", "an empty folder"])
def test_processes_that_start_together_share_one_folder(tmp_path: Path, before: str) -> None:
    """Bug: the folder was made before the lock was taken, and two test processes of a bare clone deleted it for each other."""
    target, log = tmp_path / "build" / "checkpoints", tmp_path / "log"
    if before != "nothing":
        (target / "deeper").mkdir(parents=True)
    if before == "an older digest":
        (target / "COMPLETE").write_text("older")
    if before == "a killed writer's folder":
        (target.parent / "checkpoints.partial" / "deeper").mkdir(parents=True)
    assert _in_processes(4, _use, target, log, 3) == [0] * 4
    assert log.read_text() == "written\n"
    assert not (target / "deeper").exists()


def test_a_folder_is_complete_or_absent_when_its_writer_fails(tmp_path: Path) -> None:
    """Bug: a writer that failed half way left a folder that the next process took for the checkpoints."""

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("hal")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_once(tmp_path / "checkpoints", "1", fail)
    assert not (tmp_path / "checkpoints").exists()
