"""Temporary folders that the next process removes when this one is killed, and messages for TMPDIRs that cannot be used.

Every folder holds a lock file, locked with flock(2) for as long as its process lives: the kernel releases it however the
process ends, and a process id that is used again misleads nobody.
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
"""A folder without a lock (of an earlier version, or on a file system without locks) is removed when unchanged for so long."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST_SOCKET_BYTES = 107
"""Of the path of a Unix socket on Linux (unix(7): sun_path holds 108 bytes, the last of them zero)."""
_SOCKET_IN_RAY = "/ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
"""The longest of Ray's sockets below its TMPDIR (Ray 2.60, node.py); `pid` is the driver's."""
_LARGEST_PID = 4_194_304
_LITTLE_BYTES = 100_000_000


@contextmanager
def temporary_folder(purpose: str = "") -> Iterator[Path]:
    """A folder below TMPDIR, removed at the end; folders of the kind whose process is gone are removed first.

    Args:
        purpose: becomes part of the name.
    """
    remove_abandoned()
    with tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{purpose}") as name:
        folder = Path(name)
        with _locked(folder):
            yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The file gets its name once it is locked, so that nobody else can lock it first."""
    hidden = folder / f".{_LOCK}"
    with hidden.open("w") as lock:
        with suppress(OSError):  # a file system without locks: the folder goes by its age
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.write(socket.gethostname())
            lock.flush()
            hidden.rename(folder / _LOCK)
        yield


def remove_abandoned(parent: Path | None = None) -> list[Path]:
    """Remove this user's folders below `parent` (default: TMPDIR) whose process is gone. Returns: what was removed."""
    removed = []
    with suppress(OSError):  # a TMPDIR that cannot be listed is still one to write to
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
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while its process lives
        shutil.rmtree(folder)
        return True


@contextmanager
def naming_full_disk(file: Path) -> Iterator[None]:
    """Name the file, its folder and a remedy when a write inside the block finds no room; numpy and Arrow name neither.

    Raises: JobError.
    """
    try:
        yield
    except OSError as error:
        if full := full_disk(error, file):
            raise JobError(full) from error
        raise


def full_disk(error: BaseException | None, file: Path) -> str | None:
    """The sentence for an error that means "no room" in writing `file`; None for any other error."""
    if not isinstance(error, OSError) or error.errno not in _FULL:
        return None
    return (
        f"{file}: {os.strerror(error.errno)}; {_free(file.parent)} are free in {file.parent}. Make room there, or set TMPDIR "
        "to a folder on a larger disk"
    )


def low_disk(folder: Path) -> str:
    """The end of a sentence on a failure in which little free space may be the cause; empty where there is enough."""
    usage = _usage(folder)  # of a file system without blocks, such as /proc, the total is 0
    return f"; only {_free(folder)} are free in {folder}" if usage.total and usage.free < _LITTLE_BYTES else ""


def _free(folder: Path) -> str:
    return f"{_usage(folder).free / 1e6:,.0f} MB"


def _usage(folder: Path) -> shutil._ntuple_diskusage:
    """Disk usage where the folder is, or would be."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder)


def ray_folder() -> Path:
    """The folder in which a Ray that this process starts keeps its sessions: logs, sockets and spilled objects."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp") / "ray"


def require_short_tmpdir() -> None:
    """Refuse a TMPDIR so long that Ray cannot create its sockets below it. Raises: ConfigError saying what to set."""
    parent = str(ray_folder().parent)
    if len(os.fsencode(parent + _SOCKET_IN_RAY.format(pid=os.getpid()))) > _LONGEST_SOCKET_BYTES:
        name = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
        room = _LONGEST_SOCKET_BYTES - len(_SOCKET_IN_RAY.format(pid=_LARGEST_PID))
        raise ConfigError(
            f"{name}={parent} is {len(os.fsencode(parent))} bytes long: Ray's sockets below it would exceed the "
            f"{_LONGEST_SOCKET_BYTES} bytes that Linux allows for the path of a socket. Set RAY_TMPDIR to a folder of at most "
            f"{room} bytes, on a disk with room for Ray's spilled objects; TMPDIR may stay as it is"
        )
