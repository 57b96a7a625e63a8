"""Spans of a manifest: whatever the ranges of bytes, their chunks, rejects and plan are those of one reader."""

from __future__ import annotations

import gzip
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.dataset import plan as plan_module
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.plan import write_plan
from pipeline.errors import ConfigError, Reject
from pipeline.manifest.checked import checked
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.read import ManifestChunk, Seen, read_manifest
from pipeline.manifest.spans import IrregularError, Joined, Span, count_lines, is_divisible, read_span, spans
from pipeline.manifest.staging import Staging
from tests.hostile import make_manifests, mutate_manifest
from tests.support.cases import case
from tests.support.manifests import put
from tests.support.memory_store import MemoryStore
from tests.support.pins import job_settings

CHUNK_ROWS = 7


def accept(rows: pa.Table) -> tuple[pa.Table, dict[int, Reject]]:
    return rows, {}


def spans_of(uri: str, starts: Sequence[int], chunk_rows: int = CHUNK_ROWS) -> list[Span]:
    size = Path(uri).stat().st_size
    ends = [*starts[1:], size]
    return spans(starts, [count_lines(uri, *ends) for ends in zip(starts, ends, strict=True)], chunk_rows)


def in_spans(uri: str, starts: Sequence[int], chunk_rows: int = CHUNK_ROWS) -> Iterator[ManifestChunk]:
    joined = Joined(Seen(uri, audio_optional=False))
    for span in spans_of(uri, starts, chunk_rows):
        for chunk, columns in read_span(uri, span, audio_optional=False, chunk_rows=chunk_rows):
            joined.add(columns)
            yield chunk
    joined.seen.verify()


def whole(uri: str) -> list[ManifestChunk]:
    return list(read_manifest(uri, chunk_rows=CHUNK_ROWS))


def cuts(content: bytes, rng: random.Random) -> list[list[int]]:
    """Return starts of ranges: one range, ranges of few bytes, at and beside newlines, and at random."""
    newlines = [at for at, byte in enumerate(content[:4000]) if byte == 10]
    some = rng.sample(range(1, len(content)), min(20, len(content) - 1))
    near = {at + shift for at in newlines[:40] for shift in (0, 1, 2)}
    return [
        [0],
        list(range(0, min(len(content), 1500), 5)),
        [0, *sorted(at for at in near if 0 < at < len(content))],
        [0, *sorted(some)],
    ]


def same(one: Sequence[ManifestChunk], other: Sequence[ManifestChunk]) -> None:
    assert len(one) == len(other)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.rows.equals(theirs.rows, check_metadata=True)
        assert mine.rejects == theirs.rejects and mine.manifest == theirs.manifest


def hostile(seed: int) -> bytes:
    rng, lines = random.Random(seed), list[bytes]()
    for number in range(150):
        row = make_manifests.good(number)
        line = json.dumps(row).encode()
        if rng.random() < 0.3:
            line, how = mutate_manifest.mutate_json(row, rng)
            if how == "another_case":  # changes the spelling of a column; has a test of its own
                continue
        lines += [line, *[b" \t\r"] * rng.choice((0, 0, 0, 1, 3))]
    return (b"\xef\xbb\xbf" if seed % 2 else b"") + b"\n".join(lines) + b"\n" * (seed % 3)


@pytest.mark.parametrize("seed", range(6))
def test_chunks_do_not_depend_on_the_ranges(seed, tmp_path):
    """Fails if a line is lost, read twice, or numbered otherwise, or a chunk begins elsewhere, for any ranges of bytes."""
    content = hostile(seed)
    path = tmp_path / "m.jsonl"
    path.write_bytes(content)
    expected = whole(str(path))
    assert len(expected) > 10 and any(chunk.rejects for chunk in expected)
    for starts in cuts(content, random.Random(seed)):
        with case(starts):
            same(list(in_spans(str(path), starts)), expected)


def test_the_made_manifest_with_a_line_of_ten_megabytes(tmp_path):
    """Fails if a range that begins inside an over-long line reads it again, or the line counts otherwise."""
    path = tmp_path / "m.jsonl"
    make_manifests.write(path, make_manifests.jsonl(400, share=0.2))
    size = path.stat().st_size
    expected = whole(str(path))
    assert any("longer than" in reject.cause.detail for chunk in expected for reject in chunk.rejects)
    for count in (2, 3, 7):
        with case(count):
            same(list(in_spans(str(path), list(range(0, size, size // count + 1)))), expected)


def plan_of(staging: Staging, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    store, token = MemoryStore(), uuid.UUID(int=1)
    monkeypatch.setattr(plan_module.uuid, "uuid4", lambda: token)
    monkeypatch.setattr(plan_module.time, "strftime", lambda *_: "now")
    plan = write_plan(
        store, 1, staging.select([], id_keys([])), settings=job_settings(), models={}, embedding_widths={},
        manifests=["m"], size=ShardSize(10, 1e9), needs_text=True,
    )  # fmt: skip
    assert plan is not None
    return store.objects


def test_the_plan_is_the_same_to_the_byte(tmp_path, monkeypatch):
    """Fails if a plan made from spans differs from the sequential one: rows, their order, types, rejects or duplicates."""
    path = tmp_path / "m.jsonl"
    content = hostile(1) + b"\n" + hostile(4)  # ids come twice, with equal and other contents
    path.write_bytes(content)
    one, other = Staging(tmp_path / "one"), Staging(tmp_path / "other")
    for chunk in whole(str(path)):
        one.add(0, checked(chunk, accept))
    for chunk in in_spans(str(path), list(range(0, len(content), 333))):
        other.add(0, checked(chunk, accept))
    plans = [plan_of(staging, monkeypatch) for staging in (one, other)]
    assert plans[0] == plans[1] and len(plans[0]) == 3


@pytest.mark.parametrize(
    ("lines", "starts", "chunk_rows"),
    [
        (['{"audio": "a", "Take": 1}', '{"audio": "b", "take": 2}'], [0, 5], 1),  # spelled in two ways
        (['{"audio": "a"}'] * 3 + ['{"audio": "%s"}' % ("x" * 3_000_000)] * 20, [0], 20),  # ends early, for its size
    ],
)  # fmt: skip
def test_what_depends_on_earlier_lines_is_refused(lines, starts, chunk_rows, tmp_path):
    """Fails if spans are used where a column's spelling, or the beginning of a chunk, depends on the lines before the span."""
    path = put(tmp_path / "m.jsonl", "\n".join(lines))
    with pytest.raises(IrregularError):
        list(in_spans(str(path), starts, chunk_rows))


def test_too_many_columns_in_all_spans_are_refused(tmp_path):
    """Fails if each span may have as many columns as a manifest."""
    rows = [{"audio": "a", **{f"c{first + number}": 1 for number in range(600)}} for first in (0, 600)]
    path = put(tmp_path / "m.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(IrregularError):
        list(in_spans(str(path), [0, 10], 1))


def test_a_file_that_is_no_manifest_of_audio_is_refused(tmp_path):
    """Fails if a file without an audio column passes because no single span may say so."""
    path = put(tmp_path / "m.jsonl", '{"sound": "a"}\n' * 10)
    with pytest.raises(ConfigError, match="has no column audio"):
        list(in_spans(str(path), [0, 40], 2))


def test_which_manifests_are_divisible(tmp_path):
    """Fails if compressed text, CSV or Parquet would be cut at bytes."""
    text = '{"audio": "a"}\n'
    assert is_divisible(str(put(tmp_path / "m.jsonl", text)))
    assert is_divisible(str(put(tmp_path / "bom.jsonl", "\ufeff\n " + text)))
    assert not is_divisible(str(put(tmp_path / "m.csv", "audio\na\n")))
    path = tmp_path / "m.jsonl.gz"
    path.write_bytes(gzip.compress(text.encode()))
    assert not is_divisible(str(path))
