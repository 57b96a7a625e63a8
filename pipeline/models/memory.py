"""Telling "no memory" from other trouble, whichever library says it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad allocation")
"""In messages of torch's CPU allocator, cuBLAS and CTranslate2, which raise plain RuntimeErrors."""


@contextmanager
def shortage_as_memory_error() -> Iterator[None]:
    """Raise MemoryError for every way in which torch and CTranslate2 say that there is not enough memory."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if any(said in str(error) for said in _SAID):
            raise MemoryError(str(error).splitlines()[0][:200]) from error
        raise
