"""What travels through the steps of one shard, and the guard that keeps one row's trouble to that row."""

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
from pipeline.checksums import check_content, identity, is_checksum
from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage
from pipeline.plan import Plan, Shard, read_shard
from pipeline.readahead import SMALL_BYTES
from pipeline.roots import AudioRoots, without_query
from pipeline.schema import ROW_SCHEMA
from pipeline.storage import Store, fetch, open_store
from pipeline.values import plain_values

PCM_BUDGET_BYTES = 512 * 2**20
"""PCM that one shard may carry between stages: about 2.3 hours."""
_FULL_SCALE = 2**15
_SAMPLES_AT_ONCE = 1 << 20
"""Bounds the memory that packing a waveform takes beside what it gives."""
T = TypeVar("T")
Waveform = NDArray[np.float32]

CAUSE = ("reason", "detail", "stage", "attempts")
WORK_SCHEMA = pa.schema(
    [
        pa.field("row", pa.int32(), nullable=False),
        pa.field("segment_index", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64()),
        pa.field("end_s", pa.float64()),
        pa.field("waveform", pa.large_binary()),  # as `pack_waveform` makes it
        pa.field("sample_bytes", pa.int8()),
        pa.field("identity", pa.binary()),
        pa.field("speech_s", pa.float32()),  # as `speech_seconds` counts it; null where it does not matter
        pa.field("language", pa.string()),
        pa.field("language_prob", pa.float32()),
        pa.field("emotion_null_reason", pa.string()),  # set where the utterance is not to be recognised
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
    """What every step needs to know, small enough to send to every process."""

    output: str
    plan: Plan
    roots: AudioRoots

    @property
    def store(self) -> Store:
        """The output."""
        return open_store(self.output)

    @property
    def limits(self) -> AudioLimits:
        """Bounds on one recording."""
        settings = self.plan.settings
        return AudioLimits(max_bytes=settings["max_bytes"], max_duration_s=settings["max_duration_s"])

    @property
    def mode(self) -> str:
        """The fusion mode, or text."""
        return str(self.plan.settings["mode"])


def audio_roots(plan: Plan, now: Sequence[str]) -> AudioRoots:
    """Where the audio of a plan may be opened. Args: now: `--audio-root` of this run, for plans that recorded none."""
    return AudioRoots.parse(now if plan.audio_roots is None else plan.audio_roots, plan.manifests)


def guard(work: Callable[[], T], stage: Stage) -> T | RejectedRow:
    """Run one row's work: its own trouble, foreseen or not, becomes its reject and nobody else's.

    Raises: JobError, ConfigError: what is wrong there is no row's fault.
    """
    try:
        return work()
    except RejectedRow as rejected:
        return rejected
    except (JobError, ConfigError):
        raise
    except Exception as error:  # noqa: BLE001 - the one row guard; the type is recorded and the rate is bounded in `finish`
        name = type(error).__name__
        # by its name: torch's own comes under two modules, and none is to be loaded for it
        memory = isinstance(error, MemoryError) or name == "OutOfMemoryError"
        return RejectedRow(Reason.OUT_OF_MEMORY if memory else Reason.INTERNAL, f"{name}: {str(error)[:200]}", stage)


def cause_columns(rejected: RejectedRow) -> dict[str, object]:
    """The columns by which a line of a work table says that its row is rejected."""
    said = (str(rejected.reason), rejected.detail, str(rejected.stage), rejected.attempts)
    return dict(zip(CAUSE, said, strict=True))


def pack_waveform(waveform: Waveform) -> tuple[memoryview, int]:
    """A waveform for its way between processes, and the bytes of a sample: 2 where 16 bits hold it exactly, else 4.

    What was recorded at 16 kHz and 16 bit travels as such; what was resampled, mixed down or decoded from a lossy codec
    does not fit. The 4-byte form is the waveform's own memory; beside it, memory is needed for the 2-byte form alone.
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
    """float32 [num_samples], bit for bit what was packed."""
    if sample_bytes == np.dtype(np.int16).itemsize:
        waveform = np.frombuffer(content, dtype=np.int16).astype(np.float32)
        waveform /= np.float32(_FULL_SCALE)
        return waveform
    return np.frombuffer(content, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Recording:
    """One recording, decoded: float32 [num_samples] at 16 kHz, and by what its object is known again."""

    waveform: Waveform
    identity: bytes


def records_of(rows: pa.Table) -> list[dict[str, Any]]:
    """Plan rows as Python values: what the pipeline reads of them, and no other column.

    Arrow carries the rest to the output as it is. Python cannot hold all of it: its years end with 9999.
    """
    read = [name for name in rows.schema.names if name in ROW_SCHEMA.names or is_checksum(name)]
    values = zip(*(plain_values(rows[name]) for name in read), strict=True)
    return [dict(zip(read, row, strict=True)) for row in values]


def needs_audio(work: Work, record: Mapping[str, Any]) -> bool:
    """Whether a plan row cannot be annotated from its text alone."""
    return work.mode != "text" or record["text"] is None or record["language"] is None


def check_span(record: Mapping[str, Any]) -> None:
    """Raises: RejectedRow BAD_SPAN for an offset or duration that no recording can have."""
    for name in ("offset_s", "duration_s"):
        if record[name] is not None and not 0 <= record[name] <= LONGEST_SPAN_S:
            detail = f"the {name.removesuffix('_s')} is {record[name]:g} s; 0 to {LONGEST_SPAN_S:g} s is expected"
            raise RejectedRow(Reason.BAD_SPAN, detail, Stage.DECODE)


def fetch_small(work: Work, record: dict[str, Any]) -> bytes | None:
    """As `fetch_recording`, ahead of time; None for an object so large that it must wait for its turn."""
    try:
        return fetch_recording(work, record, max_bytes=min(SMALL_BYTES, work.limits.max_bytes))
    except RejectedRow as rejected:
        if rejected.reason == Reason.TOO_LARGE:
            return None
        raise


def fetch_recording(work: Work, record: dict[str, Any], *, max_bytes: int | None = None) -> bytes:
    """The bytes of one plan row's object, checked against the manifest. Raises: RejectedRow.

    The roots are asked again, by name and for the file that was opened: links may have changed since the plan was made.
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
    """Decode one plan row from its content, which is fetched if it is not at hand. Raises: RejectedRow.

    A process of its own decodes, so that the file cannot take this one down.
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
    """The audio of a work table: from its lines, or decoded again for recordings that were over the budget."""

    def __init__(self, work: Work, shard: Shard, table: pa.Table) -> None:
        self._work, self._shard, self._table = work, shard, table
        self._rows: list[dict[str, Any]] | None = None
        self._decoded: tuple[int, Waveform | RejectedRow] | None = None

    def __getitem__(self, line: int) -> Waveform:
        """float32 [num_samples]. Raises: RejectedRow when the recording cannot be read a second time."""
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
        """One recording, or why it cannot be had: found out once, whatever the number of its utterances."""
        try:
            again = load_recording(self._work, record)
        except RejectedRow as rejected:
            return rejected
        if again.identity != identity:
            detail = f"{without_query(str(record['audio']))} was another object when it was read a second time"
            return RejectedRow(Reason.CHANGED, detail, Stage.FETCH)
        return again.waveform

    def carried(self, line: int) -> bool:
        """Whether the audio is here without decoding."""
        return bool(self._table["waveform"][line].is_valid)
