"""NeMo's tarred data sets: manifests whose audio is in tars beside them, `audio_0.tar` for the lines with `shard_id` 0.

Source: `scripts/speech_recognition/convert_to_tarred_audio_dataset.py` of NVIDIA NeMo 2.
"""

from __future__ import annotations

from functools import cache

from pipeline.errors import ConfigError
from pipeline.manifest.sources.corpus import Corpus, file_name
from pipeline.manifest.store import store_errors
from pipeline.manifest.tar import tar_items
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.windows import open_tar

_MISSING = "named in a manifest, but not in its tar"


def use_tars(corpus: Corpus) -> None:
    """Replace the audio of rows with a `shard_id` by its address, if their tar exists.

    The tar is in the folder of the manifest or in the one above it, where NeMo puts it for manifests of single shards. Rows
    whose audio is not in it are left out and counted.
    """
    kept = []
    for row in corpus.rows:
        folder, _, name = str(row.get("audio", "")).rpartition("/")
        shard = row.get("shard_id")
        items = _items(folder, shard) if isinstance(shard, int) and name else None
        if items is None:
            kept.append(row)
        elif name in items:
            kept.append({**row, "audio": items[name]})
        else:
            corpus.leave_out(_MISSING, name)
    corpus.rows = kept


@cache
def _items(folder: str, shard: int) -> dict[str, str] | None:
    """Return the addresses in a shard's tar by the names of its files, or None without a tar."""
    for place in (folder, folder.rpartition("/")[0]):
        container = f"{place}/audio_{shard}.tar"
        filesystem, path = resolve(container)
        try:
            with store_errors(without_query(container)), open_tar(filesystem, path) as file:
                return {file_name(item.name): str(item) for item in tar_items(file, container)}
        except ConfigError:
            continue
    return None
