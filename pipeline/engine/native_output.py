"""Suppression of output that Ray and C++ code write to standard output and error without Python's logging."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def native_output_hidden() -> Iterator[None]:
    """Redirect file descriptors 1 and 2 to a temporary file that is deleted at the end.

    Ray's output there is not useful to the user, and fills pages when an actor fails; the exception holds the relevant part.
    The driver's own lines go to a stream opened earlier.
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
