"""One recording of a shard: its plan row as Python values, its bytes, and its decoded waveform."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.audio.channels import carry_different_speech
from pipeline.audio.limits import LONGEST_SPAN_S
from pipeline.audio.sandbox import sandbox
from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.manifest.python_values import plain_values
from pipeline.schema import ROW_SCHEMA
from pipeline.shard.checksums import check_content, identity, is_checksum
from pipeline.shard.context import Work
from pipeline.storage.fetch import fetch
from pipeline.storage.items import display_name
from pipeline.storage.on_disk import fetched_to_disk
from pipeline.storage.read_ahead import SMALL_BYTES

Waveform = NDArray[np.float32]
_MAPPED_BYTES = 64 << 20
"""Size from which a file is decoded by a process of its own, which maps it: the start takes 0.2 s."""


@dataclass(frozen=True, slots=True)
class Recording:
    """One decoded recording.

    Attributes:
        waveforms: float32 [num_samples] at 16 kHz by channel; the key of a single waveform is None.
        identity: identity of its object (`checksums.identity`).
        mixed: the waveform is the mean of two channels that differ.
    """

    waveforms: Mapping[int | None, Waveform]
    identity: bytes
    mixed: bool = False


def records_of(rows: pa.Table, turns: str | None = None) -> list[dict[str, Any]]:
    """Return plan rows as Python values, with only the columns that the pipeline reads.

    Args:
        turns: column with the turns of speakers.

    Arrow copies the other columns to the output. Python cannot represent all their values, such as years after 9999.
    """
    names = [name for name in rows.schema.names if name in (*ROW_SCHEMA.names, turns) or is_checksum(name)]
    values = zip(*(plain_values(rows[name]) for name in names), strict=True)
    return [dict(zip(names, row, strict=True)) for row in values]


def needs_audio(work: Work, record: Mapping[str, Any]) -> bool:
    """Return whether annotating a plan row requires its audio."""
    return work.mode != "text" or record["text"] is None or record["language"] is None


def check_span(record: Mapping[str, Any]) -> None:
    """Check that offset and duration are possible for a recording. Raises: RejectedRow BAD_SPAN."""
    for name in ("offset_s", "duration_s"):
        if record[name] is not None and not 0 <= record[name] <= LONGEST_SPAN_S:
            detail = f"the {name.removesuffix('_s')} is {record[name]:g} s; 0 to {LONGEST_SPAN_S:g} s is expected"
            raise RejectedRow(Reason.BAD_SPAN, detail, Stage.DECODE)


def fetch_small(work: Work, record: dict[str, Any]) -> bytes | None:
    """Fetch a recording ahead of time. Returns: None for an object too large to read ahead. Raises: RejectedRow."""
    uri, most_bytes = _audio_of(work, record), work.limits.max_bytes
    try:
        content = fetch(uri, max_bytes=min(SMALL_BYTES, most_bytes), allow=work.roots.check_opened)
    except RejectedRow as error:
        if error.reason == Reason.TOO_LARGE and most_bytes > SMALL_BYTES:
            return None
        raise
    check_content(content, record, display_name(uri))
    return content


def _audio_of(work: Work, record: dict[str, Any]) -> str:
    """Return the URI of a plan row's audio. Raises: RejectedRow.

    The audio roots are checked again, and once more for the opened file: links may have changed since planning.
    """
    if record["audio"] is None:
        detail = "the row has no audio from which to detect its language; give the row a language, or set one with --language"
        raise RejectedRow(Reason.BAD_FIELD, detail, Stage.FETCH)
    work.roots.check(str(record["audio"]))
    return str(record["audio"])


def load_recording(work: Work, record: dict[str, Any], content: bytes | None = None) -> Recording:
    """Decode one plan row from its content, which is fetched and verified if not given. Raises: RejectedRow.

    A separate process decodes, so that the file cannot crash this one.
    """
    if content is not None:
        return _decode(work, record, content)
    uri = _audio_of(work, record)
    with fetched_to_disk(uri, max_bytes=work.limits.max_bytes, allow=work.roots.check_opened) as file:
        check_content(file, record, display_name(uri))
        file.seek(0)
        is_small = os.fstat(file.fileno()).st_size < _MAPPED_BYTES
        return _decode(work, record, file.read() if is_small else file)


def _decode(work: Work, record: dict[str, Any], content: bytes | BinaryIO) -> Recording:
    content_identity, how = identity(content), work.channels
    decoded = sandbox().decode_channels(
        content,
        offset_s=record["offset_s"] or 0.0,
        duration_s=record["duration_s"],
        channel=record["channel"],
        # a text is that of the whole recording, which auto therefore keeps whole, as it does without cutting at pauses
        split=how == "split" or (how == "auto" and record["text"] is None),
        limits=work.limits,
    )
    return Recording(_by_channel(decoded.channels, how), content_identity, decoded.differ)


def _by_channel(channels: list[Waveform], how: str) -> dict[int | None, Waveform]:
    """Return the waveforms by channel. With `auto`, channels of the same speech become their mean."""
    if len(channels) == 1:
        return {None: channels[0]}
    if how == "split" or carry_different_speech(channels):
        return dict(enumerate(channels))
    mean, *others = channels
    for other in others:  # in place: a recording may take hundreds of MB
        mean += other
    mean /= len(channels)
    return {None: mean}
