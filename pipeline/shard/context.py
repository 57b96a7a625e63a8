"""Data shared by the steps of one shard, and the guard that turns a row's failure into its reject."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.limits import LONGEST_SPAN_S, AudioLimits
from pipeline.audio.sandbox import sandbox
from pipeline.dataset.plan import Plan, Shard, read_shard
from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage
from pipeline.manifest.python_values import plain_values
from pipeline.schema import ROW_SCHEMA
from pipeline.shard.checksums import check_content, identity, is_checksum
from pipeline.storage.access import AudioRoots, without_query
from pipeline.storage.read_ahead import SMALL_BYTES
from pipeline.storage.store import Store, fetch, open_store

PCM_BUDGET_BYTES = 512 * 2**20
"""PCM that one shard may carry between stages: about 2.3 hours of audio."""
_FULL_SCALE = 2**15
_SAMPLES_AT_ONCE = 1 << 20
"""Bounds the temporary memory of packing a waveform."""
T = TypeVar("T")
Waveform = NDArray[np.float32]

CAUSE = ("reason", "detail", "stage", "attempts")
WORK_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("segment_index", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("waveform", pa.large_binary()),  # packed by `pack_waveform`
        pa.field("sample_bytes", pa.int8()),
        pa.field("identity", pa.binary()),
        pa.field("speech_s", pa.float32()),  # from `speech_seconds`; null where it is not needed
        pa.field("language", pa.string()),
        pa.field("language_prob", pa.float32()),
        pa.field("emotion_null_reason", pa.string()),  # set if the utterance is not to be recognised
        pa.field("text", pa.string()),
        pa.field("text_source", pa.string()),
        pa.field("asr_avg_logprob", pa.float32()),
        pa.field("asr_no_speech_prob", pa.float32()),
        pa.field("asr_compression_ratio", pa.float32()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("stage", pa.string()),
        pa.field("attempts", pa.int32()),
    ]
)


@dataclass(frozen=True, slots=True)
class Work:
    """The context of every step, small enough to send to every process."""

    output: str
    plan: Plan
    roots: AudioRoots

    @property
    def store(self) -> Store:
        """Return the store of the output."""
        return open_store(self.output)

    @property
    def limits(self) -> AudioLimits:
        """Return the bounds on one recording."""
        settings = self.plan.settings
        return AudioLimits(max_bytes=settings.max_bytes, max_duration_s=settings.max_duration_s)

    @property
    def mode(self) -> str:
        """Return the mode of the settings: `text`, `audio` or a fusion mode."""
        return self.plan.settings.mode


def audio_roots(plan: Plan, now: Sequence[str]) -> AudioRoots:
    """Return the locations below which a plan's audio may be opened.

    Args:
        now: `--audio-root` of this run, for plans that recorded none.
    """
    return AudioRoots.parse(now if plan.audio_roots is None else plan.audio_roots, plan.manifests)


def guard(work: Callable[[], T], stage: Stage) -> T | RejectedRow:
    """Run the work of one row; its failure, expected or not, becomes the reject of that row alone.

    Raises: JobError, ConfigError: failures that no row causes.
    """
    try:
        return work()
    except RejectedRow as rejected:
        return rejected
    except (JobError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001 - the one row guard; the type is recorded and the rate is bounded in `finish`
        name = type(error).__name__
        # compared by name: torch defines it in two modules, and torch must not be imported for this
        memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
        return RejectedRow(Reason.OUT_OF_MEMORY if memory else Reason.INTERNAL, f"{name}: {str(error)[:200]}", stage)


def cause_columns(rejected: RejectedRow) -> dict[str, object]:
    """Return the columns that mark a line of the work table as rejected."""
    said = (str(rejected.reason), rejected.detail, str(rejected.stage), rejected.attempts)
    return dict(zip(CAUSE, said, strict=True))


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


@dataclass(frozen=True, slots=True)
class Recording:
    """One decoded recording: float32 [num_samples] at 16 kHz, and the identity of its object (`checksums.identity`)."""

    waveform: Waveform
    identity: bytes


def records_of(rows: pa.Table) -> list[dict[str, Any]]:
    """Return plan rows as Python values, with only the columns that the pipeline reads.

    Arrow copies the other columns to the output. Python cannot represent all their values, such as years after 9999.
    """
    read = [name for name in rows.schema.names if name in ROW_SCHEMA.names or is_checksum(name)]
    values = zip(*(plain_values(rows[name]) for name in read), strict=True)
    return [dict(zip(read, row, strict=True)) for row in values]


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
    """Fetch a recording ahead of time, as `fetch_recording`. Returns: None for an object too large to read ahead."""
    try:
        return fetch_recording(work, record, max_bytes=min(SMALL_BYTES, work.limits.max_bytes))
    except RejectedRow as rejected:
        if rejected.reason == Reason.TOO_LARGE:
            return None
        raise


def fetch_recording(work: Work, record: dict[str, Any], *, max_bytes: int | None = None) -> bytes:
    """Fetch the bytes of one plan row's object and verify its checksums. Raises: RejectedRow.

    The audio roots are checked again, for the name and for the opened file: links may have changed since planning.
    """
    if record["audio"] is None:
        detail = (
            "the row has no audio, and its language is to be heard; give it a language, or name one with --language"
        )
        raise RejectedRow(Reason.BAD_FIELD, detail, Stage.FETCH)
    work.roots.check(str(record["audio"]))
    max_bytes = max_bytes or work.limits.max_bytes
    content = fetch(str(record["audio"]), max_bytes=max_bytes, allow=work.roots.check_opened)
    check_content(content, record, without_query(str(record["audio"])))
    return content


def load_recording(work: Work, record: dict[str, Any], content: bytes | None = None) -> Recording:
    """Decode one plan row from its content, which is fetched if not given. Raises: RejectedRow.

    A separate process decodes, so that the file cannot crash this one.
    """
    content = fetch_recording(work, record) if content is None else content
    known_by = identity(content)
    waveform = sandbox().decode(
        content,
        offset_s=record["offset_s"] or 0.0,
        duration_s=record["duration_s"],
        channel=record["channel"],
        limits=work.limits,
    )
    return Recording(waveform, known_by)


class Waveforms:
    """The audio of a work table: from its lines, or decoded again for recordings beyond the budget."""

    def __init__(self, work: Work, shard: Shard, table: pa.Table) -> None:
        self._work, self._shard, self._table = work, shard, table
        self._rows: list[dict[str, Any]] | None = None
        self._decoded: tuple[int, Waveform | RejectedRow] | None = None

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
        if isinstance(decoded, RejectedRow):
            raise decoded
        start, end = (round((self._table[name][line].as_py() - (record["offset_s"] or 0.0)) * SAMPLING_RATE)
                      for name in ("start_s", "end_s"))  # fmt: skip
        return decoded[start:end]

    def _decode_again(self, record: dict[str, Any], identity: bytes) -> Waveform | RejectedRow:
        """Decode a recording again, or return why it cannot be read; done once for all its utterances."""
        try:
            again = load_recording(self._work, record)
        except RejectedRow as rejected:
            return rejected
        if again.identity != identity:
            detail = f"{without_query(str(record['audio']))} was another object when it was read a second time"
            return RejectedRow(Reason.CHANGED, detail, Stage.FETCH)
        return again.waveform

    def carried(self, line: int) -> bool:
        """Return whether the line carries its audio, so that no decoding is needed."""
        return bool(self._table["waveform"][line].is_valid)
