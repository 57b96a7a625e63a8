"""The parity checkpoints as ordinary Hugging Face directories, written once per checkout under `build/`."""

from __future__ import annotations

import fcntl
import hashlib
import runpy
import shutil
import sys
from pathlib import Path

PARITY = Path(__file__).parent / "parity"
CACHED = Path(__file__).parents[1] / "build" / "parity-checkpoints"


def _digest() -> str:
    """Of everything the checkpoints are a function of, so that a changed config is not served from the cache."""
    digest = hashlib.sha256()
    for path in sorted([PARITY / "materialize.py", PARITY / "weights.py", *(PARITY / "checkpoints").rglob("*.json")]):
        digest.update(f"{path.relative_to(PARITY)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def materialize(target: Path = CACHED, *, pickled: bool = False) -> Path:
    """Write the twelve parity checkpoints (about 400 MB, some ten seconds) unless `target` already holds them.

    A lock makes of several test processes one that writes and others that wait.
    Args:
        pickled: the fusion weights as `model.bin` instead of safetensors.
    """
    target.mkdir(parents=True, exist_ok=True)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        marker = target / "COMPLETE"
        if not marker.exists() or marker.read_text() != _digest():
            shutil.rmtree(target)
            target.mkdir()
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
            marker.write_text(_digest())
    return target
