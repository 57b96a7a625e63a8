"""Folders in this node's cache that are made once, however many processes need them."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of this program's cache, below XDG_CACHE_HOME."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "speech-emotion-pipeline"


def made_once(parent: Path, key: str, state: str, make: Callable[[Path], Path]) -> Path:
    """Return the folder `parent/key-state`, made if it does not exist.

    A lock lets one process of a node make the folders of a key while the others wait. A folder is renamed to its final name
    when it is complete, so a killed process leaves none that looks complete; the next one removes what it left.

    Args:
        make: fills a temporary folder beside the final one, and returns the folder to keep: that folder, or one in it.
    """
    target = parent / f"{key}-{state}"
    parent.mkdir(parents=True, exist_ok=True)
    with (parent / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        for left in parent.glob(f".{key}-*"):  # of a killed process: a running one would hold the lock
            shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=parent))
        try:
            made = make(work)
            made.chmod(0o755)
            made.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return target
