"""Detection of out-of-memory errors in torch and CTranslate2, and GPU memory figures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

_SIGNS = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "bad allocation",
    "Failed to allocate memory",
)
"""Parts of messages of torch's CPU allocator, cuBLAS, CTranslate2 and onnxruntime, raised as plain RuntimeErrors."""


def memory_in_use(device: str) -> int | None:
    """Return the bytes in use on the card by all processes; None on CPU.

    The figure includes CTranslate2, which torch's own count omits.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    free, whole = torch.cuda.mem_get_info()
    return int(whole - free)


def memory_left(device: str, share: float = 1.0) -> float:
    """Return the bytes that this process may still allocate.

    Args:
        device: torch's device name.
        share: this process's fraction of the card, as the scheduler assigned it; the rest belongs to other
            processes, loaded or not.
    Returns: infinity on CPU, where the system reports no limit until it kills the process.
    """
    if not device.startswith("cuda"):
        return math.inf
    import torch

    free, whole = torch.cuda.mem_get_info(device)
    mine, kept = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
    return max(0.0, min(free + kept - mine, share * whole - mine))


@contextmanager
def shortage_as_memory_error() -> Iterator[None]:
    """Raise MemoryError for every error by which torch and CTranslate2 report that memory is insufficient."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        if any(sign in str(error) for sign in _SIGNS):
            raise MemoryError(str(error).splitlines()[0][:200]) from error
        raise
