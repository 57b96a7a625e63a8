"""The work table: the lines that the steps of one shard pass on, with their audio.

It has a line for each utterance or rejected row, so every row has at least one line. It carries audio as 16 kHz PCM until
the shard is recognised, up to `PCM_BUDGET_BYTES`. Recordings beyond that budget are carried without audio and decoded
again, one at a time, where they are needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.quality import SoundQuality
from pipeline.config.columns import OVERLAP_SHARE, SPEAKER_ID, WORDS, WORDS_TYPE
from pipeline.dataset.plan import Shard, read_shard
from pipeline.errors import Reason, Reject, RejectedRow, Stage
from pipeline.manifest.rejects import CAUSE
from pipeline.shard.context import Work
from pipeline.shard.recording import Waveform, load_recording, records_of
from pipeline.storage.items import display_name

PCM_BUDGET_BYTES = 512 * 2**20
"""PCM that one shard may carry between stages: about 2.3 hours of audio."""
_FULL_SCALE = 2**15
_SAMPLES_AT_ONCE = 1 << 20
"""Bounds the temporary memory of packing a waveform."""

WORK_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("segment_index", pa.int32(), nullable=False),
        pa.field("channel", pa.int32()),  # of a row without one, if its channels are split
        pa.field(SPEAKER_ID, pa.string()),
        pa.field(OVERLAP_SHARE, pa.float32()),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("waveform", pa.large_binary()),  # packed by `pack_waveform`
        pa.field("sample_bytes", pa.int8()),
        pa.field("identity", pa.binary()),
        pa.field("speech_s", pa.float32()),  # from `speech_seconds`; null where it is not needed
        *(pa.field(name, pa.float32()) for name in SoundQuality._fields),
        pa.field("speech_share", pa.float32()),
        pa.field("language", pa.string()),
        pa.field("language_prob", pa.float32()),
        pa.field("emotion_null_reason", pa.string()),  # set if the utterance is not to be recognised
        pa.field("text", pa.string()),
        pa.field("text_source", pa.string()),
        pa.field("asr_avg_logprob", pa.float32()),
        pa.field("asr_no_speech_prob", pa.float32()),
        pa.field("asr_compression_ratio", pa.float32()),
        pa.field("asr_flag", pa.string()),
        pa.field(WORDS, WORDS_TYPE),
        pa.field("reject", CAUSE),  # `Reject.document()`; null for an utterance
    ]
)
_ELSEWHERE = b"speech_emotion.committed_elsewhere"


def committed_elsewhere() -> pa.Table:
    """Return the work table of a shard that another run has committed: no lines, and a mark in the schema."""
    return WORK_SCHEMA.with_metadata({_ELSEWHERE: b"1"}).empty_table()


def is_committed_elsewhere(table: pa.Table) -> bool:
    """Return whether a work table is that of `committed_elsewhere`."""
    return _ELSEWHERE in (table.schema.metadata or {})


def pack_waveform(waveform: Waveform) -> tuple[memoryview, int]:
    """Pack a waveform for transport between processes.

    A recording made at 16 kHz and 16 bit fits into 16-bit samples; one that was resampled, mixed down or decoded from a lossy
    codec does not. The 4-byte form shares the waveform's memory; only the 2-byte form needs additional memory.

    Returns: the samples, and bytes per sample: 2 if 16 bits hold the waveform exactly, else 4.
    """
    short = np.empty(len(waveform), np.int16)
    for start in range(0, len(waveform), _SAMPLES_AT_ONCE):
        scaled = waveform[start : start + _SAMPLES_AT_ONCE] * np.float32(_FULL_SCALE)
        if not (scaled.max() < _FULL_SCALE and scaled.min() >= -_FULL_SCALE):
            break
        piece = short[start : start + _SAMPLES_AT_ONCE]
        piece[:] = scaled
        if not np.array_equal(piece, scaled):
            break
    else:
        return _bytes_of(short), short.itemsize
    return _bytes_of(waveform), waveform.itemsize


def _bytes_of(samples: NDArray[Any]) -> memoryview:
    return np.ascontiguousarray(samples).data.cast("B") if len(samples) else memoryview(b"")


def unpack_waveform(content: pa.Buffer, sample_bytes: int) -> Waveform:
    """Unpack a waveform. Returns: float32 [num_samples], identical to the packed one."""
    if sample_bytes == np.dtype(np.int16).itemsize:
        waveform = np.frombuffer(content, dtype=np.int16).astype(np.float32)
        waveform /= np.float32(_FULL_SCALE)
        return waveform
    return np.frombuffer(content, dtype=np.float32)


class Waveforms:
    """The audio of a work table: from its lines, or decoded again for recordings beyond the budget."""

    def __init__(self, work: Work, shard: Shard, table: pa.Table) -> None:
        self._work, self._shard, self._table = work, shard, table
        self._rows: list[dict[str, Any]] | None = None
        self._decoded: tuple[int, Mapping[int | None, Waveform] | Reject] | None = None

    def __getitem__(self, line: int) -> Waveform:
        """Return the audio of a line, float32 [num_samples].

        Raises: RejectedRow when the recording cannot be read a second time.
        """
        carried = self._table["waveform"][line]
        if carried.is_valid:
            return unpack_waveform(carried.as_buffer(), self._table["sample_bytes"][line].as_py())
        row = self._table["row"][line].as_py()
        if self._rows is None:
            self._rows = records_of(read_shard(self._work.store, self._shard))
        record = self._rows[row]
        if self._decoded is None or self._decoded[0] != row:
            self._decoded = (row, self._decode_again(record, self._table["identity"][line].as_py()))
        decoded = self._decoded[1]
        if isinstance(decoded, Reject):
            raise RejectedRow.of(decoded)
        start, end = (
            round((self._table[name][line].as_py() - (record["offset_s"] or 0.0)) * SAMPLING_RATE)
            for name in ("start_s", "end_s")
        )
        return decoded[self._table["channel"][line].as_py()][start:end]

    def _decode_again(self, record: dict[str, Any], identity: bytes) -> Mapping[int | None, Waveform] | Reject:
        """Decode a recording again, or return why it cannot be read; done once for all its utterances."""
        try:
            again = load_recording(self._work, record)
        except RejectedRow as error:
            return error.reject
        if again.identity != identity:
            detail = f"{display_name(str(record['audio']))} had changed when it was read a second time"
            return Reject(Reason.CHANGED, detail, Stage.FETCH)
        return again.waveforms

    def carried(self, line: int) -> bool:
        """Return whether the line carries its audio, so that no decoding is needed."""
        return bool(self._table["waveform"][line].is_valid)
