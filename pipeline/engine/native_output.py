"""Hide what Ray and C++ code write to standard output and error past Python's logging."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Send file descriptors 1 and 2 to a temporary file that is deleted at the end.

    Nobody can act on what Ray writes there, and it is pages when an actor fails; what matters of it is in the exception.
    The driver's own lines go to a stream opened before.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    ours = {descriptor: os.dup(descriptor) for descriptor in (1, 2)}
    with tempfile.TemporaryFile() as hidden:
        for descriptor in ours:
            os.dup2(hidden.fileno(), descriptor)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for descriptor, kept in ours.items():
                os.dup2(kept, descriptor)
                os.close(kept)
