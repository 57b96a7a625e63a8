"""Instructions of this machine's processor for lower precision."""

from __future__ import annotations

from pathlib import Path

_INSTRUCTIONS = {"bf16": ("amx_bf16", "avx512_bf16"), "fp16": ("amx_fp16", "avx512_fp16")}
"""Flags of x86 processors by precision. oneDNN, which torch calls, uses the first that exists and emulates without."""
_CPUINFO = Path("/proc/cpuinfo")


def slow_precision(precision: str) -> str | None:
    """Return a sentence for a precision that is slower than fp32 on this processor; None otherwise, or where it is unknown."""
    wanted = _INSTRUCTIONS.get(precision, ())
    lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPUINFO.is_file() else []
    flags = next((line.split() for line in lines if line.startswith("flags")), None)
    if not wanted or flags is None or set(wanted) & set(flags):
        return None
    return (
        f"--precision {precision} is slower than fp32 on this processor, which emulates it, having neither "
        f"{' nor '.join(wanted)}: fp32 is three to five times as fast"
    )
