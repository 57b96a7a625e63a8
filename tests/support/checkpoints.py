"""The parity checkpoints as ordinary Hugging Face directories, written once per checkout under `build/`."""

from __future__ import annotations

import fcntl
import hashlib
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

PARITY = Path(__file__).parents[1] / "parity"
CACHED = Path(__file__).parents[2] / "build" / "parity-checkpoints"


def _digest() -> str:
    """Return the digest of everything that determines the checkpoints, so that a changed config is written anew."""
    digest = hashlib.sha256()
    for path in sorted([PARITY / "materialize.py", PARITY / "weights.py", *(PARITY / "checkpoints").rglob("*.json")]):
        digest.update(f"{path.relative_to(PARITY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def materialize(target: Path = CACHED, *, pickled: bool = False) -> Path:
    """Write the twelve parity checkpoints (about 400 MB, some ten seconds) unless `target` already holds them.

    Args:
        pickled: the fusion weights as `model.bin` instead of safetensors.
    """
    return write_once(target, _digest(), lambda folder: _run_materialize(folder, pickled=pickled))


def write_once(target: Path, digest: str, write: Callable[[Path], None]) -> Path:
    """Have one of several processes fill the folder `target`, while the others wait for it.

    `write` fills a temporary folder beside `target`, which takes its place when complete: a process that is killed leaves
    no half-written folder under the final name. A folder whose `COMPLETE` file holds another digest is written again.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    marker = target / "COMPLETE"
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not marker.exists() or marker.read_text() != digest:
            partial = target.parent / f"{target.name}.partial"
            for leftover in (partial, target):
                shutil.rmtree(leftover, ignore_errors=True)
            partial.mkdir()
            write(partial)
            (partial / marker.name).write_text(digest)
            partial.rename(target)
    return target


def _run_materialize(target: Path, *, pickled: bool) -> None:
    argv, path = sys.argv, list(sys.path)
    sys.argv = ["materialize.py", str(target), *(["--bin"] if pickled else [])]
    sys.path.insert(0, str(PARITY))
    before = sys.modules.pop("weights", None)
    try:
        runpy.run_path(str(PARITY / "materialize.py"), run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, path
        sys.modules.pop("weights", None)
        if before is not None:
            sys.modules["weights"] = before
