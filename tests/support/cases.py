"""Cases of one test that differ in their values alone: a loop over them costs less than a parametrised test for each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def case(*values: object) -> Iterator[None]:
    """Add the values of the case to the message of an exception raised inside."""
    try:
        yield
    except BaseException as failure:
        failure.add_note(f"case: {', '.join(map(repr, values))}")
        raise
