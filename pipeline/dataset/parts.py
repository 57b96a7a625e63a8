"""Parts and their receipts: one shard is one object, written by one PUT.

A shard becomes one Parquet part. Its name is determined by plan and shard, and its footer holds its receipt. The commit
is a put-if-absent: the first attempt wins, a later one learns that it lost, and no object is renamed or deleted. A job
resumes from a listing. `pipeline.dataset.publish` derives all other results from the footers.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.columns import with_optional
from pipeline.dataset.part_keys import PartKeys
from pipeline.dataset.plan import Plan
from pipeline.errors import JobError, Reject
from pipeline.layout import SHARD_NUMBER, UTTERANCES
from pipeline.pins import Pins, pins_document, pins_of
from pipeline.schema import EMBEDDINGS, utterance_schema
from pipeline.stats import Figures
from pipeline.storage.store import Store

_RECEIPT = b"speech_emotion.receipt"
NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_ROW_GROUP_ROWS = 4096
_FOOTER_READERS = 16
_RECEIPTS_AT_ONCE = 1024


@dataclass(frozen=True, slots=True)
class Receipt:
    """The description of a shard in its part's footer.

    Attributes:
        rejects: the rejected rows of the shard: position and reject.
    """

    plan: str
    shard: int
    attempt: str
    rows: int
    utterances: int
    ids_sha256: str
    config_hash: str
    models: Pins
    audio_s: float
    stage_s: Mapping[str, float]
    rejects: tuple[tuple[int, Reject], ...] = ()
    figures: Figures = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the receipt as a JSON object, as stored in the footer."""
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        rejects = [{"row": row, **reject.document()} for row, reject in self.rejects]
        return {**fields, "models": pins_document(self.models), "rejects": rejects}


def new_attempt() -> str:
    """Return a unique name for one attempt at one shard, by which a writer recognises its own part."""
    return uuid.uuid4().hex


def ids_sha256(rows: pa.Table) -> str:
    """Return a fingerprint of a shard's recording ids, in order."""
    return hashlib.sha256("\x1f".join(rows["recording_id"].to_pylist()).encode()).hexdigest()


def partition_folder(columns: Sequence[str], values: Sequence[object]) -> str:
    """Return `col=value/...`, percent-encoded as Hive readers expect, so that no value can escape its folder."""
    parts = [
        f"{quote(column, safe='')}={NULL_PARTITION if value is None else quote(str(value), safe='')}"
        for column, value in zip(columns, values, strict=True)
    ]
    return "/".join(parts)


def part_schema(plan: Plan) -> pa.Schema:
    """Return the schema of a plan's parts, without the partition columns, which are only in the path."""
    settings = plan.settings
    schema = utterance_schema(
        plan.embedding_widths, settings.embedding_dtype, plan.copied, version=settings.schema_version
    )
    schema = with_optional(schema, settings)
    return pa.schema([field for field in schema if field.name not in settings.partition_by])


def write_part(store: Store, key: str, utterances: pa.Table, receipt: Receipt) -> bool:
    """Commit a shard. Returns: True when this attempt's part is the committed one, False when another was first.

    If the response to the PUT was lost, the receipt is read back and its attempt compared.
    """
    if store.put_if_absent(key, part_bytes(utterances, receipt)):
        return True
    return read_receipt(store, key).attempt == receipt.attempt


def part_bytes(utterances: pa.Table, receipt: Receipt) -> bytes:
    """Return the bytes of a part: pages with checksums, and the receipt in the footer."""
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, utterances.schema, **encodings(utterances.schema)) as writer:
        writer.write_table(utterances, row_group_size=_ROW_GROUP_ROWS)
        writer.add_key_value_metadata({_RECEIPT: json.dumps(receipt.document()).encode()})
    return buffer.getvalue()


def without_receipt(utterances: pa.Table) -> pa.Table:
    """Return the rows of a part that was read, without the receipt in the metadata of their schema."""
    metadata = {name: value for name, value in (utterances.schema.metadata or {}).items() if name != _RECEIPT}
    return utterances.replace_schema_metadata(metadata or None)


def encodings(schema: pa.Schema) -> dict[str, Any]:
    """Return the ParquetWriter options for utterances: zstd for all columns except embeddings, which stay uncompressed.

    Floats that never repeat are larger with a dictionary than without. zstd makes them 8 % smaller and takes half of
    their reading time (docs/log.md).
    """
    empty = io.BytesIO()
    pq.ParquetWriter(empty, schema).close()
    leaves = pq.ParquetFile(empty).schema
    paths = [leaves.column(number).path for number in range(len(leaves.names))]
    others = [path for path in paths if path.partition(".")[0] not in EMBEDDINGS]
    return {
        "compression": {path: "zstd" if path in others else "none" for path in paths},
        "use_dictionary": others,
        "write_page_checksum": True,
    }


def read_receipt(store: Store, key: str) -> Receipt:
    """Read the receipt in a part's footer. Costs one ranged GET.

    Raises: JobError when the part was not written by this pipeline.
    """
    tail = store.read_tail(key)
    length = int.from_bytes(tail[-8:-4], "little") + 8
    if length > len(tail):
        tail = store.read_tail(key, length)
    try:
        return parse_receipt(tail)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise JobError(f"{store.root}/{key} is not a part of this pipeline: its footer has no valid receipt") from error


def parse_receipt(tail: bytes) -> Receipt:
    """Parse the receipt from the last bytes of a part."""
    return receipt_of(pq.read_metadata(pa.BufferReader(tail)).metadata)


def receipt_of(metadata: Mapping[bytes, bytes] | None) -> Receipt:
    """Parse the receipt from a footer's key-value metadata. Raises: the exceptions that `read_receipt` catches."""
    content = json.loads((metadata or {})[_RECEIPT])
    rejects = tuple((reject["row"], Reject.of(reject)) for reject in content.pop("rejects"))
    return Receipt(**{**content, "models": pins_of(content["models"])}, rejects=rejects)


def committed_parts(store: Store, plans: Iterable[Plan]) -> dict[str, PartKeys]:
    """Return the committed shards: for each plan, shard number to the key of its part.

    Costs one listing; memory: four bytes per shard.
    """
    parts = {plan.plan: PartKeys(plan.plan, plan.num_shards) for plan in plans}
    for entry in store.list(UTTERANCES):
        plan, dash, shard = entry.key.rpartition("/")[2].removesuffix(".parquet").partition("-")
        if entry.key.endswith(".parquet") and dash and plan in parts and SHARD_NUMBER.fullmatch(shard):
            parts[plan].add(int(shard), entry.key)
    return parts


def is_committed(store: Store, key: str) -> bool:
    """Return whether a part exists. Costs one GET of a few bytes."""
    try:
        store.read_tail(key, 8)
    except FileNotFoundError:
        return False
    return True


def read_receipts(store: Store, parts: Mapping[int, str]) -> Iterator[Receipt]:
    """Read the receipts of many parts, in shard order. Memory: `_RECEIPTS_AT_ONCE` receipts."""
    keys = (parts[shard] for shard in sorted(parts))
    if len(parts) <= _FOOTER_READERS:
        yield from (read_receipt(store, key) for key in keys)
        return
    with ThreadPoolExecutor(_FOOTER_READERS) as pool:
        while some := list(itertools.islice(keys, _RECEIPTS_AT_ONCE)):
            yield from pool.map(lambda key: read_receipt(store, key), some)
