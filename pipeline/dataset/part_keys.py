"""The keys of a plan's committed parts in four bytes per shard, instead of one string each."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping

from pipeline.layout import part_key

_ABSENT = -1
_ITEM = array("i", [_ABSENT])


class PartKeys(Mapping[int, str]):
    """Shard number to the key of its part, in the order of the numbers.

    A key follows from plan, shard and partition folder, so only the number of the folder is kept.

    Args:
        plan: name of the plan.
        num_shards: number of its shards. Parts beyond it are kept as they are.
    """

    def __init__(self, plan: str, num_shards: int) -> None:
        self._plan = plan
        self._folder_of = _ITEM * num_shards
        self._folders: dict[str, int] = {}
        self._names: list[str] = []
        self._other: dict[int, str] = {}
        self._count = 0

    def add(self, shard: int, key: str) -> None:
        """Record the key of a part, in place of another that the shard may have."""
        folder = key.rpartition("/")[0].partition("/")[2]
        self._count += shard not in self
        self._other.pop(shard, None)
        if shard >= len(self._folder_of) or key != self._key(shard, folder):
            self._other[shard] = key
            return
        if folder not in self._folders:
            self._folders[folder] = len(self._names)
            self._names.append(folder)
        self._folder_of[shard] = self._folders[folder]

    def _key(self, shard: int, folder: str) -> str:
        return part_key(f"{self._plan}-{shard:06d}", folder)

    def __getitem__(self, shard: int) -> str:
        if shard in self._other:
            return self._other[shard]
        number = self._folder_of[shard] if 0 <= shard < len(self._folder_of) else _ABSENT
        if number == _ABSENT:
            raise KeyError(shard)
        return self._key(shard, self._names[number])

    def __contains__(self, shard: object) -> bool:
        return shard in self._other or (
            isinstance(shard, int) and 0 <= shard < len(self._folder_of) and self._folder_of[shard] != _ABSENT
        )

    def __iter__(self) -> Iterator[int]:
        beyond = sorted(shard for shard in self._other if shard >= len(self._folder_of))
        yield from (shard for shard in range(len(self._folder_of)) if shard in self)
        yield from beyond

    def __len__(self) -> int:
        return self._count
