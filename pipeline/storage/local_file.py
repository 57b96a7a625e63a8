"""Open a local file for reading and identify the file that was opened."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pipeline.errors import Reason, RejectedRow, Stage


@contextmanager
def open_regular(path: str, display_uri: str, allow: Callable[[str], None] | None = None) -> Iterator[BinaryIO]:
    """Open a regular local file, and check the real path of the opened file, not its name, with `allow`.

    Raises: RejectedRow(NOT_ALLOWED) for pipes and devices, which are not opened, and for paths that `allow` refuses.
    """
    irregular = RejectedRow(Reason.NOT_ALLOWED, f"{display_uri} is not a regular file", Stage.FETCH)
    if not _is_regular(Path(path).stat()):
        raise irregular
    # the file may have been replaced by a pipe, and opening must not wait for a writer
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not _is_regular(os.fstat(descriptor)):
            raise irregular
        if allow is not None:
            allow(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        yield cast(BinaryIO, io.BufferedReader(file))


def _is_regular(status: os.stat_result) -> bool:
    """Return whether a file is regular. Raises: IsADirectoryError."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    return stat.S_ISREG(status.st_mode)
