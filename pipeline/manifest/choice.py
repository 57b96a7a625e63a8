"""Choice of some lines of the manifests, for `--limit` and `--sample`.

The choice depends only on the manifests and the options, not on what earlier runs hold, so the same command chooses the
same lines again. Memory: 24 bytes per chosen line and per line of a chunk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.config import JobConfig

_CANDIDATE = np.dtype([("rank", "<u8"), ("manifest", "<i4"), ("line", "<i8"), ("position", "<i8"), ("rejected", "?")])
_ORDER = ("rank", "manifest", "line", "rejected", "position")


@dataclass
class Choice:
    """The first `count` lines of the manifests or, with a seed, a random sample of them.

    A sample is decided by the ids: the lines of one id are next to each other in its order, and a manifest that grows
    changes few lines of its sample. A larger sample of the same seed includes a smaller one.

    Attributes:
        count: number of lines; equal lines and rejected lines count.
        seed: seed of the sample; None for the first lines.
    """

    count: int
    seed: int | None = None
    _chosen: NDArray[np.void] = field(default_factory=lambda: np.empty(0, dtype=_CANDIDATE))

    def add(self, manifest: int, ids: Sequence[str], lines: Iterable[int], *, first: int, rejected: bool) -> None:
        """Consider lines of a manifest.

        Args:
            manifest: its number in the order of reading.
            ids: the lines' ids, or another text that identifies them.
            lines: their numbers in the manifest.
            first: position of the first of them among all rows, or all rejects, of the staged manifests.
        """
        candidates = np.empty(len(ids), dtype=_CANDIDATE)
        candidates["rank"] = 0 if self.seed is None else [_rank(self.seed, text) for text in ids]
        candidates["manifest"] = manifest
        candidates["line"] = list(lines)
        candidates["position"] = np.arange(first, first + len(ids))
        candidates["rejected"] = rejected
        both = np.concatenate([self._chosen, candidates])
        order = np.lexsort([both[name] for name in reversed(_ORDER)])
        self._chosen = both[order[: self.count]]

    def mask(self, size: int, *, rejected: bool) -> NDArray[np.bool_]:
        """Return the mask of the chosen rows, or of the chosen rejects."""
        mask = np.zeros(size, dtype=bool)
        mask[self._chosen["position"][self._chosen["rejected"] == rejected]] = True
        return mask


def chosen_lines(config: JobConfig) -> Choice | None:
    """Return the choice that `--limit` or `--sample` asks for."""
    if config.sample is not None:
        return Choice(config.sample, seed=config.sample_seed)
    return None if config.limit is None else Choice(config.limit)


def _rank(seed: int, text: str) -> int:
    content = f"{seed}\x1f{text}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
