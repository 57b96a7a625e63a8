"""Temporary folders that the next process removes if this one is killed, and messages for unusable TMPDIRs.

Every folder contains a lock file that its process holds with flock(2). The kernel releases the lock however the process
ends, and a reused process id causes no confusion.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pipeline.errors import ConfigError, JobError

_PREFIX = "speech-emotion-"
_LOCK = "lock"
_UNLOCKED_FOR_S = 24 * 3600.0
"""Age at which a folder without a lock (of an earlier version, or without file locks) is removed."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_SOCKET_BYTES = 107
"""Longest path of a Unix socket on Linux (unix(7): sun_path is 108 bytes long, including the final zero)."""
_SOCKET_IN_RAY = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest socket path of Ray below its TMPDIR (Ray 2.60, node.py); `pid` is the driver's."""
_LARGEST_PID = 4_194_304
_LITTLE_BYTES = 100_000_000
_LEAST_BYTES = 10_000_000
"""Free space below which Ray is not started, or a job on it is ended: where it cannot write it hangs without a message."""


@contextmanager
def temporary_folder(purpose: str = "") -> Iterator[Path]:
    """Create a folder below TMPDIR and remove it at the end. Folders of ended processes are removed first.

    Args:
        purpose: part of the name.
    """
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}") as name:
        folder = Path(name)
        with _locked(folder):
            yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The file is renamed once it is locked, so no other process can lock it first."""
    hidden = folder / f".{_LOCK}"
    with hidden.open("w") as lock:
        with suppress(OSError):  # a file system without locks: the folder is removed by age
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(socket.gethostname())
            lock.flush()
            hidden.rename(folder / _LOCK)
        yield


def remove_abandoned(parent: Path | None = None) -> list[Path]:
    """Remove this user's folders below `parent` (default: TMPDIR) whose process has ended. Returns: their paths."""
    removed = []
    with suppress(OSError):  # a TMPDIR that cannot be listed may still be writable
        for entry in os.scandir(parent or tempfile.gettempdir()):
            with suppress(OSError):
                ours = entry.name.startswith(_PREFIX) and entry.is_dir(follow_symlinks=False)
                if ours and entry.stat(follow_symlinks=False).st_uid == os.geteuid() and _remove(Path(entry.path)):
                    removed.append(Path(entry.path))
    return removed


def _remove(folder: Path) -> bool:
    try:
        lock = (folder / _LOCK).open("r+")
    except FileNotFoundError:
        if time.time() - folder.stat().st_mtime < _UNLOCKED_FOR_S:
            return False
        shutil.rmtree(folder)
        return True
    with lock:
        if lock.read() != socket.gethostname():  # on a shared file system flock may not reach other machines
            return False
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process runs
        shutil.rmtree(folder)
        return True


@contextmanager
def naming_full_disk(file: Path) -> Iterator[None]:
    """Raise JobError naming the file, its folder and a remedy when a write in the block fills the disk.

    The errors of numpy and Arrow name none of these.
    """
    try:
        yield
    except OSError as error:
        if full := full_disk(error, file):
            raise JobError(full) from error
        raise


def full_disk(error: BaseException | None, file: Path) -> str | None:
    """Return the message for an error that means a full disk while writing `file`; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return None
    return (
        f"{file}: {os.strerror(error.errno)}; {_free(file.parent)} are free in {file.parent}. Make room there, or set TMPDIR "
        "to a folder on a larger disk"
    )


def low_disk(folder: Path) -> str:
    """Return the end of a message about a failure that low disk space may have caused; empty if space is sufficient."""
    usage = _usage(folder)  # of a file system without blocks, such as /proc, the total is 0
    return f"; only {_free(folder)} are free in {folder}" if usage.total and usage.free < _LITTLE_BYTES else ""


def require_room_for_ray() -> None:
    """Refuse a disk on which a Ray started by this process could not write. Raises: JobError."""
    folder = ray_folder()
    usage = _usage(folder)
    if usage.total and usage.free < _LEAST_BYTES:
        raise JobError(
            f"{usage.free:,} bytes are free in {folder}, and Ray hangs where it cannot write: it needs {_LEAST_BYTES:,} for its "
            "logs, and more for data that memory cannot hold. Make room there, or set RAY_TMPDIR to a folder on a larger disk"
        )


def _free(folder: Path) -> str:
    return f"{_usage(folder).free / 1e6:,.0f} MB"


def _usage(folder: Path) -> shutil._ntuple_diskusage:
    """Disk usage where the folder is, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder)


def ray_folder() -> Path:
    """Return the folder for the sessions of a Ray started by this process: logs, sockets and spilled objects."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def require_short_tmpdir() -> None:
    """Refuse a TMPDIR too long for Ray's sockets below it. Raises: ConfigError saying what to set."""
    parent = str(ray_folder().parent)
    if len(os.fsencode(parent + _SOCKET_IN_RAY.format(pid=os.getpid()))) > _LONGEST_SOCKET_BYTES:
        name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        room = _LONGEST_SOCKET_BYTES - len(_SOCKET_IN_RAY.format(pid=_LARGEST_PID))
        raise ConfigError(
            f"{name}={parent} is {len(os.fsencode(parent))} bytes long: Ray's sockets below it would exceed the "
            f"{_LONGEST_SOCKET_BYTES} bytes that Linux allows for the path of a socket. Set RAY_TMPDIR to a folder of at most "
            f"{room} bytes, on a disk with room for Ray's spilled objects; TMPDIR may stay as it is"
        )
