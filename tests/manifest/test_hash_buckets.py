"""Keys in buckets on disk: each once, with its position, beside its equals, in memory that one bucket needs."""

from __future__ import annotations

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest import hash_buckets as keys_module
from pipeline.manifest.hash_buckets import HashBuckets, id_keys, key_of, repeated


def walked(buckets: HashBuckets) -> list[dict[int, bytes]]:
    """Keys by position, bucket by bucket."""
    return [
        {position: keys[n : n + 1].tobytes() for n, position in enumerate(positions.tolist())}
        for keys, positions in buckets.buckets()
    ]


@pytest.mark.parametrize("sizes", [[], [0], [1], [5, 0, 300, 1], [2_000], [90, 30, 100, 250]])
def test_every_key_is_in_one_bucket_with_its_position(tmp_path, monkeypatch, sizes):
    """Fails if a key is lost, doubled or given another's position where one call of `add`, or one writing, ends."""
    monkeypatch.setattr(keys_module, "_AT_ONCE", 100)
    buckets = HashBuckets(tmp_path / "buckets")
    names = [f"id-{n % 700}" for n in range(sum(sizes))]
    start = 0
    for size in sizes:
        buckets.add(id_keys(names[start : start + size]))
        start += size
    assert len(buckets) == len(names)
    for _ in range(2):  # they stay
        found = walked(buckets)
        assert {position: key for bucket in found for position, key in bucket.items()} == dict(
            enumerate(map(key_of, names))
        )
        assert all(list(bucket) == sorted(bucket) for bucket in found)
        owners = Counter(key for bucket in found for key in set(bucket.values()))
        assert set(owners.values()) <= {1}, "equal keys are in two buckets"


def test_buckets_of_two_sets_go_together(tmp_path):
    """Fails if the buckets of what is new and of what is held cannot be walked side by side."""
    one, other = HashBuckets(tmp_path / "a"), HashBuckets(tmp_path / "b")
    one.add(id_keys(f"id-{n}" for n in range(1000)))
    other.add(id_keys(f"id-{n}" for n in range(999, -1, -3)))
    met = sum(np.isin(keys, held).sum() for (keys, _), (held, _) in zip(one.buckets(), other.buckets(), strict=True))
    assert met == 334


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([f"id-{n}" for n in range(12)]), max_size=30))
def test_repeated(names):
    """Fails if a key that stands there once is called repeated, or one of several is not."""
    counted = Counter(names)
    assert repeated(id_keys(names)).tolist() == [counted[name] > 1 for name in names]


def test_memory_is_one_bucket(tmp_path, monkeypatch):
    """Fails if all keys stand in memory at once."""
    count, chunk = 200_000, 10_000
    buckets, random = HashBuckets(tmp_path / "buckets"), np.random.default_rng(5)
    chunks = [random.bytes(16 * chunk) for _ in range(count // chunk)]
    monkeypatch.setattr(keys_module, "_AT_ONCE", chunk)
    tracemalloc.start()
    for some in chunks:
        buckets.add(np.frombuffer(some, "S16"))
    for keys, _ in buckets.buckets():
        assert not repeated(keys).any()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * count, "a key alone has 16 bytes"
