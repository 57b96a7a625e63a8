"""The keys of a plan's parts, held in little memory."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from pipeline.dataset.part_keys import PartKeys

_FOLDERS = st.sampled_from(["", "day=1", "day=1/speaker=a%2Fb", "day=1/day=2"])
_NAMES = st.sampled_from(["{plan}-{shard:06d}.parquet", "{plan}-{shard:09d}.parquet"])


@given(st.lists(st.tuples(st.integers(0, 12), _FOLDERS, _NAMES), max_size=30))
def test_it_is_the_dict_that_it_replaces(parts: list[tuple[int, str, str]]) -> None:
    """Fails if a part beyond the plan, a second part of a shard or another spelling of its name is lost or counted twice."""
    keys, plain = PartKeys("000001", 8), dict[int, str]()
    for shard, folder, name in parts:
        key = "/".join(["utterances", *filter(None, [folder]), name.format(plan="000001", shard=shard)])
        keys.add(shard, key)
        plain[shard] = key
    assert dict(keys) == plain and len(keys) == len(plain) and list(keys) == sorted(plain)
    assert [keys.get(shard) for shard in range(-1, 14)] == [plain.get(shard) for shard in range(-1, 14)]
    assert [shard in keys for shard in range(-1, 14)] == [shard in plain for shard in range(-1, 14)]


def test_many_parts_need_four_bytes_each() -> None:
    """Fails if each part costs a string: 10^7 parts need 40 MB instead of more than a gigabyte."""
    keys = PartKeys("000001", 100_000)
    for shard in random.Random(1).sample(range(100_000), 50_000):
        keys.add(shard, f"utterances/day={shard % 7}/000001-{shard:06d}.parquet")
    assert keys._folder_of.itemsize * len(keys._folder_of) == 400_000
    assert len(keys) == 50_000 and len(keys._names) == 7 and not keys._other
