"""Environment variables of the decoding process: none of them may be a secret."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.processes import search_path

_KEPT_VARIABLES = frozenset(
    {
        "PATH",
        "HOME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "PYTHONHOME",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "DYLD_LIBRARY_PATH",
        "DYLD_FALLBACK_LIBRARY_PATH",
    }
)
"""Environment variables passed to the child: those that Python and its libraries may need. An allow list, because no
deny list names every secret."""


def child_environment(ours: Mapping[str, str]) -> dict[str, str]:
    """Return the child's environment: no credentials, one BLAS thread (unused), and this process's module search path.

    glibc's `MALLOC_TOP_PAD_` keeps the heap from being returned after each file and faulted in again for the next:
    0.1 ms.
    """
    kept = {name: value for name, value in ours.items() if name in _KEPT_VARIABLES}
    tuned = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_TOP_PAD_": str(16 << 20)}
    return {**kept, **tuned, "PYTHONPATH": search_path()}
