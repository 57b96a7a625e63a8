"""Telling "no memory" from other trouble, whichever library says it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

_SAID = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad allocation")
"""In messages of torch's CPU allocator, cuBLAS and CTranslate2, which raise plain RuntimeErrors."""


def memory_in_use(device: str) -> int | None:
    """Bytes in use on the card by whoever uses it, CTranslate2 included, which torch's own count leaves out; None on CPU."""
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info()
    return int(whole - free)


def memory_left(device: str, share: float = 1.0) -> float:
    """Bytes that this process may still take.

    Args:
        device: as torch names it.
        share: of the card, that is this process's by the scheduler's account; the rest is the neighbours', loaded or not.
    Returns: on CPU infinity, where the system tells nobody until it ends the process.
    """
    if not device.startswith("cuda"):
        return math.inf
    import torch

    free, whole = torch.cuda.mem_get_info(device)
    mine, kept = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return max(0.0, min(free + kept - mine, share * whole - mine))


@contextmanager
def shortage_as_memory_error() -> Iterator[None]:
    """Raise MemoryError for every way in which torch and CTranslate2 say that there is not enough memory."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if any(said in str(error) for said in _SAID):
            raise MemoryError(str(error).splitlines()[0][:200]) from error
        raise
