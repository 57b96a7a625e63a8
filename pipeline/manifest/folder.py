"""A folder of audio as a manifest: a row for each audio file below it, in the order of their names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from pipeline.manifest.jsonl import JsonRecords
from pipeline.redaction import without_query
from pipeline.storage.listing import LeftOut, is_audio_name, printable

_log = logging.getLogger(__name__)
_SHOWN = 3


def read_folder(uri: str, chunk_rows: int) -> Iterator[JsonRecords]:
    """Yield the audio files below a folder as records whose one column is `audio`, at most `chunk_rows` at a time.

    Files that are left out (`sources.files.list_files`) are logged as a warning. Raises: ConfigError as `list_files`.
    """
    from pipeline.manifest.sources.files import list_files  # imported late: it can read the headers of audio

    left_out = LeftOut(list)
    audio = list(filter(is_audio_name, list_files(uri, left_out)))
    for why, names in sorted(left_out.items()):
        shown = ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")
        _log.warning("folder %s: left out: %s, %s: %s", without_query(uri), f"{len(names):,}", why, shown)
    for start in range(0, len(audio), chunk_rows):
        records, some = JsonRecords(), audio[start : start + chunk_rows]
        records.names = {"audio": None}
        records.lines = list(range(start + 1, start + 1 + len(some)))
        records.rows = [{"audio": name} for name in some]
        records.texts = some
        yield records
