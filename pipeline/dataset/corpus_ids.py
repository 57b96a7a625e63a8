"""The ids of the corpus as it was on each night, kept in the output, so that it can be told from the history.

Only ids are kept: texts and other columns of a manifest may be personal, and the rows of the output have them.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import time
from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.history import History
from pipeline.dataset.tombstones import tombstones
from pipeline.layout import CORPUS, corpus_key
from pipeline.manifest.hash_buckets import id_keys
from pipeline.storage.store import Store

_SCHEMA = pa.schema([pa.field("recording_id", pa.string(), nullable=False)])
_ROWS_AT_ONCE = 65_536


def keep_ids(store: Store, manifest: Iterable[bytes]) -> str | None:
    """Write the ids of a manifest to a new file below `_runs/corpus`, without those that were erased from the output.

    Args:
        manifest: lines as `jobs.make_manifest` writes them, each a JSON object with an `id`.
    Returns: the key of the file; None when the last file has the same ids, and nothing is written.
    """
    gone = tombstones(store, History(store).plans)
    buffer, digest = io.BytesIO(), hashlib.sha256()
    ids = (json.loads(line)["id"] for line in manifest)
    with pq.ParquetWriter(buffer, _SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        while read := list(itertools.islice(ids, _ROWS_AT_ONCE)):
            some = [
                name for name, is_gone in zip(read, gone.matches(id_keys(read)).tolist(), strict=True) if not is_gone
            ]
            digest.update("".join(f"{name}\x1f" for name in some).encode())
            writer.write_table(pa.table({"recording_id": some}, schema=_SCHEMA))
    last = max((entry.key for entry in store.list(CORPUS)), default="")
    key = corpus_key(time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), digest.hexdigest()[:16])
    if last.rpartition("-")[2] == key.rpartition("-")[2]:
        return None
    store.put_if_absent(key, buffer.getvalue())
    return key
