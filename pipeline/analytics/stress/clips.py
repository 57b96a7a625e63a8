"""Preparation of a stress test: the degraded clips as files, and a manifest of them for the ordinary job.

    settings.json                     what the test was asked for; another test is refused in the same folder
    clips/<clip>/<condition>-<level>.wav    32-bit float WAV at 16 kHz
    clips/<clip>/clean.wav            the clip as the job decodes it, so that its scores are those of the file itself
    rejects.parquet                   rows of the manifest that have no clips, and why
    clips.parquet                     a row for each clip and condition; exists once all files do

Files are created whole and once, and their content depends on the seed, the row's id and its audio alone, so a preparation
that was killed continues where it ended. For 4 s of speech under all conditions, 7 MB are written; most of the time goes into
Opus and MP3.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.io import wavfile

from pipeline import SAMPLING_RATE
from pipeline.analytics.stress.conditions import CLEAN, Variant
from pipeline.analytics.stress.signals import Waveform
from pipeline.audio.limits import AudioLimits
from pipeline.audio.sandbox import sandbox
from pipeline.config import JobConfig
from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.compatibility import settle_types
from pipeline.dataset.row_checks import check_rows
from pipeline.errors import ConfigError, Reason, Reject, RejectedRow, Stage
from pipeline.manifest.expand import expand
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.rejects import refused_table
from pipeline.manifest.staging import Staging
from pipeline.models import roles
from pipeline.redaction import redacted, without_query
from pipeline.schema import ROW_SCHEMA
from pipeline.storage.access import AudioRoots
from pipeline.storage.fetch import fetch
from pipeline.storage.files import write_file
from pipeline.storage.store import Store
from pipeline.storage.temporary import temporary_folder

SETTINGS, CLIPS, REJECTS = "settings.json", "clips.parquet", "rejects.parquet"
RECORDING, CONDITION, LEVEL = "stress_recording_id", "stress_condition", "stress_level"
"""Columns that the manifest of the clips adds; they pass through the job into its utterances and rejects."""
FORMAT = 1

CheckContent = Callable[[bytes, Mapping[str, Any], str], None]
"""Function that verifies the bytes of a row's audio against the row's checksums; raises RejectedRow."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The rows of the manifests.

    Attributes:
        table: rows to test, ordered by id, whatever their order in the manifests.
        rejects: rows that cannot be read, as the job would reject them.
        roots: where their audio may be opened.
    """

    table: pa.Table
    rejects: pa.Table
    roots: AudioRoots


def read_rows(config: JobConfig, folder: str, *, with_texts: bool) -> Rows:
    """Read the manifests as the job reads them. All rows are held in memory.

    Args:
        folder: the folder of the test, which is left out where a folder of manifests contains it.
        with_texts: keep the texts of the rows; without them every clip is transcribed.
    Raises: ConfigError.
    """
    manifests = expand(config.manifest, output=folder)
    roots = AudioRoots.parse(config.audio_root, manifests)
    known = set(roles.known_languages(config, roles.prepared_models(config)))
    with temporary_folder("stress-") as temporary:
        staging = Staging(temporary)
        check = partial(check_rows, config, version=SCHEMA_VERSION, roots=roots, known=known)
        staging.read(manifests, check, audio_optional=True)
        staging.extra = settle_types(staging.inferred, [])
        selection = staging.select([], id_keys([]))
        tables, rejects = list(selection.tables()), list(selection.rejects())
    if not tables:
        raise ConfigError(f"no row of the manifest can be used; {sum(map(len, rejects)):,} rows are rejected")
    table = pa.concat_tables(tables).sort_by("recording_id")
    if not with_texts:
        place = table.schema.get_field_index("text")
        table = table.set_column(place, table.schema.field(place), pa.nulls(len(table), pa.string()))
    return Rows(table, pa.concat_tables(rejects) if rejects else refused_table(table.slice(0, 0), {}), roots)


def claim(store: Store, settings: Mapping[str, Any]) -> None:
    """Record the settings of a test in its folder. Raises: ConfigError when it holds a test with others."""
    document = json.loads(redacted(json.dumps({"format": FORMAT, **settings}, sort_keys=True)))
    store.put_if_absent(SETTINGS, json.dumps(document, indent=1).encode())
    recorded = json.loads(store.read(SETTINGS))
    for name in sorted({*document, *recorded}):
        was, now = (each.get(name) or None for each in (recorded, document))  # an option of a later version is empty
        if was != now:
            raise ConfigError(
                f"{without_query(store.root)} holds a stress test with another value of {name}: {was}, not {now}. "
                "Name another folder with --output"
            )


def digest_of(rows: pa.Table) -> str:
    """Return a hash of the rows to test: ids, audio, spans, texts and languages, not labels and other columns."""
    digest = hashlib.sha256()
    for record in rows.select([name for name in ROW_SCHEMA.names if name not in ("manifest", "line")]).to_pylist():
        digest.update(repr(sorted(record.items())).encode())
    return digest.hexdigest()


def prepare(
    store: Store,
    rows: Rows,
    variants: Sequence[Variant],
    *,
    seed: int,
    limits: AudioLimits,
    check: CheckContent,
    progress: Callable[[int], None],
) -> None:
    """Write the clips of every row under every condition, and their manifest. Does nothing when that exists.

    Args:
        progress: called with the number of rows that are done.
    """
    if _exists(store, CLIPS):
        return
    existing = {entry.key for entry in store.list("clips")}
    records: list[dict[str, Any]] = []
    causes: dict[int, Reject] = {}
    for number, row in enumerate(rows.table.to_pylist()):
        try:
            waveform = _load(row, rows.roots, limits, check)
            records += list(_clips_of(store, row, waveform, variants, seed=seed, existing=existing))
        except RejectedRow as rejected:
            causes[number] = rejected.reject
        progress(number + 1)
    refused = refused_table(rows.table, causes)
    rejects = pa.concat_tables([rows.rejects, refused], promote_options="default")
    write_file(f"{store.root}/{REJECTS}", parquet(rejects))  # an earlier, killed preparation may have left another
    if not records:
        reasons = sorted({str(cause.reason) for cause in causes.values()})
        raise ConfigError(f"no clip can be read; the reasons are {', '.join(reasons)}, see {REJECTS}")
    store.put_if_absent(CLIPS, parquet(pa.Table.from_pylist(records, schema=_SCHEMA)))


_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("audio", pa.string()),
        pa.field("duration", pa.float64()),
        pa.field("text", pa.string()),
        pa.field("language", pa.string()),
        pa.field(RECORDING, pa.string()),
        pa.field(CONDITION, pa.string()),
        pa.field(LEVEL, pa.float64()),
    ]
)


def _clips_of(
    store: Store,
    row: Mapping[str, Any],
    waveform: Waveform,
    variants: Iterable[Variant],
    *,
    seed: int,
    existing: set[str],
) -> Iterator[dict[str, Any]]:
    """Write the missing clips of one row, and yield the row of each in the manifest."""
    clip = hashlib.sha256(row["recording_id"].encode()).hexdigest()[:20]
    common = {
        "duration": len(waveform) / SAMPLING_RATE,
        "text": row["text"],
        "language": row["language"],
        RECORDING: row["recording_id"],
    }
    for variant in (None, *variants):
        name = CLEAN if variant is None else variant.name
        key = f"clips/{clip}/{name}.wav"
        if key not in existing:
            degraded = waveform
            if variant is not None:
                degraded = variant.condition.apply(waveform, variant.level, recording_id=row["recording_id"], seed=seed)
            store.put_if_absent(key, wav(degraded))
        condition, level = (CLEAN, None) if variant is None else (variant.condition.name, variant.level)
        yield {"id": f"{clip}/{name}", "audio": key, **common, CONDITION: condition, LEVEL: level}


def wav(waveform: Waveform) -> bytes:
    """Encode as 32-bit float WAV, which decodes to exactly the same samples. libsndfile would write the time of day into it."""
    file = io.BytesIO()
    wavfile.write(file, SAMPLING_RATE, waveform.astype(np.float32))
    return file.getvalue()


def _load(row: Mapping[str, Any], roots: AudioRoots, limits: AudioLimits, check: CheckContent) -> Waveform:
    """Fetch, verify and decode one row as the job does. Raises: RejectedRow."""
    if row["audio"] is None:
        raise RejectedRow(Reason.BAD_FIELD, "the row has no audio, which a stress test degrades", Stage.FETCH)
    roots.check(row["audio"])
    content = fetch(row["audio"], max_bytes=limits.max_bytes, allow=roots.check_opened)
    check(content, row, without_query(row["audio"]))
    span = {"offset_s": row["offset_s"] or 0.0, "duration_s": row["duration_s"], "channel": row["channel"]}
    waveform = sandbox().decode(content, limits=limits, **span)
    if not np.any(waveform):
        raise RejectedRow(Reason.NO_SPEECH, "every sample is zero, so the clip has no level and no SNR", Stage.DECODE)
    return waveform


def _exists(store: Store, key: str) -> bool:
    try:
        store.read_tail(key, 1)
    except FileNotFoundError:
        return False
    return True


def parquet(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    return file.getvalue()
