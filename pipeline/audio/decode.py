"""Bytes of one audio file in, mono 16 kHz float32 out, or the reason why not.

Only bytes are handed to a decoder, never a name, and the container is chosen here from their content
(`pipeline.audio.container`), so a renamed playlist opens no file and no socket. Headers are judged before decoding,
and decoding is a bounded stream: block by block through the channel mean and soxr, so a lying header costs no memory
either. The result is bit for bit that of `librosa.load(path, sr=16000)`, which the published models saw, for whatever
libsndfile reads; the rest (M4A, MP4, WebM, AAC, WMA, ...) comes through FFmpeg by PyAV.

Costs: 4 s of 16 kHz 16-bit WAV 0.24 ms, of 48 kHz FLAC 3.7 ms; memory is the content, a few MB, and twice the result.
"""

from __future__ import annotations

import math
from contextlib import closing
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.container import identify
from pipeline.audio.decoders import AudioHeader, Source, open_container, reject
from pipeline.audio.limits import DEFAULT_LIMITS, AudioLimits
from pipeline.audio.mpeg import after_id3
from pipeline.errors import Reason, RejectedRow

_SPAN_SLACK_S = 0.5
"""A manifest may name an end this far past the file's: durations are rounded, and re-encoding moves them."""

_WHOLE_SLACK_S = 0.1
"""A `duration` without an `offset` this close to the file's own is metadata (as NeMo writes it), not a span."""

MAX_PEAK = 4.0
"""Lossy codecs overshoot full scale by up to about a half; bit-rotted MP3 peaked at 6.25 without an error."""

_ABSURD_PEAK = 1e6
"""Past any integer format read as float by mistake below 24 bit: these are not samples."""


def probe(content: bytes, *, limits: AudioLimits = DEFAULT_LIMITS) -> AudioHeader:
    """Read the header only. Raises: RejectedRow as `decode` does for what a header shows."""
    with closing(_open(content, limits)) as source:
        return source.header


def decode(
    content: bytes,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> NDArray[np.float32]:
    """Decode one audio file, or a span of it, to mono 16 kHz.

    Args:
        content: the whole file.
        offset_s: where the span begins. The span is cut at the file's own rate and then resampled, as librosa does.
        duration_s: how long the span is. Without an offset, a duration within 0.1 s of the file's own is taken as
            metadata and means the whole file. An end up to 0.5 s past the file's is clipped to it.
        channel: 0 is the first (in WAV the left) channel; None is the mean of all.
        limits: what a file may cost; the duration limit is for the span where the format seeks exactly (PCM, FLAC),
            for the file elsewhere.

    Returns: float32 [num_samples], finite. Peaks over 1 stay as the codec made them, up to 4: clipping them would
        differ from librosa.

    Raises: RejectedRow with EMPTY, TOO_LARGE, NOT_AUDIO, BAD_HEADER, TOO_LONG, TOO_SHORT, BAD_CHANNEL; TRUNCATED when
        the file ends before its header, its last page or (for a duration without an offset) its manifest says;
        DAMAGED when samples are lost or wrong inside; NOT_FINITE; BAD_SPAN when the span is not in the file;
        OUT_OF_MEMORY when a decoder says so (numpy raises its MemoryError). A decoder may also crash or never return:
        what is not trusted goes through `pipeline.audio.sandbox`.
    """
    _check_request(offset_s, duration_s, channel)
    with closing(_open(content, limits)) as source:
        header = source.header
        if channel is not None and channel >= header.channels:
            raise reject(
                Reason.BAD_CHANNEL, f"channel {channel} of a file with {header.channels} (the first is channel 0)"
            )
        num_frames = header.num_frames
        if num_frames is None and (offset_s > 0 or duration_s is not None):
            num_frames = _count_frames(content, limits)
        start, stop = _span(num_frames, header.sampling_rate, offset_s, duration_s)
        waveform = _read(source, start, stop, channel, limits)
    if len(waveform) < limits.min_duration_s * SAMPLING_RATE:
        raise reject(
            Reason.TOO_SHORT,
            f"{len(waveform) / SAMPLING_RATE:.4f} s of audio, at least {limits.min_duration_s:g} s are needed",
        )
    return waveform


def _check_request(offset_s: float, duration_s: float | None, channel: int | None) -> None:
    if not (math.isfinite(offset_s) and offset_s >= 0):
        raise reject(Reason.BAD_SPAN, f"the offset is {offset_s:g} s, which is before the beginning")
    if duration_s is not None and not (math.isfinite(duration_s) and duration_s > 0):
        raise reject(Reason.BAD_SPAN, f"the duration is {duration_s:g} s, which is not more than nothing")
    if channel is not None and channel < 0:
        raise reject(Reason.BAD_CHANNEL, f"channel {channel}: the first is channel 0")


def _span(
    num_frames: int | None, sampling_rate: int, offset_s: float, duration_s: float | None
) -> tuple[int, int | None]:
    """The frames to read, [start, stop); stop None reads to the end. Rounds down as librosa does."""
    start = int(offset_s * sampling_rate)
    if num_frames is None or (start == 0 and duration_s is None):
        return start, None
    length_s = num_frames / sampling_rate
    if start == 0 and duration_s is not None:
        if duration_s > length_s + _SPAN_SLACK_S:
            raise reject(Reason.TRUNCATED, f"the manifest says {duration_s:.3f} s, the file holds {length_s:.3f} s")
        if duration_s >= length_s - _WHOLE_SLACK_S:
            return 0, None
    if start >= num_frames:
        raise reject(Reason.BAD_SPAN, f"the offset {offset_s:.3f} s is not within the file's {length_s:.3f} s")
    if duration_s is None:
        return start, None
    if offset_s + duration_s > length_s + _SPAN_SLACK_S:
        end_s = offset_s + duration_s
        raise reject(Reason.BAD_SPAN, f"the span ends at {end_s:.3f} s, the file at {length_s:.3f} s")
    return start, min(start + int(duration_s * sampling_rate), num_frames)


def _open(content: bytes, limits: AudioLimits) -> Source:
    """Identify, judge the structure and the header, and open for decoding."""
    if not content:
        raise reject(Reason.EMPTY, "the file has no bytes")
    if len(content) > limits.max_bytes:
        raise reject(Reason.TOO_LARGE, f"{len(content):,} bytes, the limit is {limits.max_bytes:,}")
    container = identify(content)
    if container is None:
        raise reject(Reason.NOT_AUDIO, f"{len(content):,} bytes that begin with {content[:8]!r}: no audio we know")
    if container.sampling_rate is not None and container.channels is not None:
        _check_header(container.sampling_rate, container.channels, limits)
    if container.missing:
        raise reject(Reason.TRUNCATED, f"the {container.name} file is cut: {container.missing}")
    if container.holes:
        raise reject(Reason.DAMAGED, f"the {container.name} file has holes: {container.holes}")
    if container.frames:
        _check_duration(container.frames.num_samples / container.frames.sampling_rate, limits)
    if container.rewritten is not None:
        content = container.rewritten
    elif not container.frames and (start := after_id3(content)):
        content = content[start:]
    source = open_container(content, container)
    try:
        _check_header(source.header.sampling_rate, source.header.channels, limits)
        if source.header.num_frames == 0:
            raise reject(Reason.EMPTY, f"a {container.name} file without a sample")
    except RejectedRow:
        source.close()
        raise
    return source


def _check_header(sampling_rate: int, channels: int, limits: AudioLimits) -> None:
    if not limits.min_sampling_rate <= sampling_rate <= limits.max_sampling_rate:
        raise reject(Reason.BAD_HEADER, f"the header says {sampling_rate:,} Hz, which no recording of speech has")
    if not 1 <= channels <= limits.max_channels:
        raise reject(Reason.BAD_HEADER, f"the header says {channels} channels, 1 to {limits.max_channels} are read")


def _check_duration(duration_s: float, limits: AudioLimits) -> None:
    if duration_s > limits.max_duration_s:
        raise reject(Reason.TOO_LONG, f"{duration_s:,.0f} s of audio, the limit is {limits.max_duration_s:,.0f} s")


def _count_frames(content: bytes, limits: AudioLimits) -> int:
    """Decode once for the length alone: a span of a stream that states none."""
    num_frames = 0
    with closing(_open(content, limits)) as source:
        for block in source.blocks(0):
            num_frames += block.shape[1]
            _check_duration(num_frames / source.header.sampling_rate, limits)
    return num_frames


def _read(
    source: Source, start: int, stop: int | None, channel: int | None, limits: AudioLimits
) -> NDArray[np.float32]:
    """Stream [start, stop) through the mean and the resampler."""
    header = source.header
    rate = header.sampling_rate
    position = start if source.exact_seek else 0
    end = stop if stop is not None else header.num_frames
    if end is not None:
        _check_duration((end - position) / rate, limits)
    if not source.exact_seek and header.duration_s is not None:
        _check_duration(header.duration_s, limits)
    begun = position
    to_16k = _Resampler(rate)
    for block in source.blocks(position, stop):
        first, position = position, position + block.shape[1]
        _check_duration((position - begun) / rate, limits)
        wanted = block[:, max(0, start - first) : None if stop is None else max(0, stop - first)]
        if wanted.shape[1]:
            mono = wanted[channel or 0] if channel is not None or len(wanted) == 1 else np.mean(wanted, axis=0)
            _check_samples(mono)
            to_16k.add(mono)
        if stop is not None and position >= stop:
            break
    if position == 0:
        raise reject(Reason.EMPTY, f"a {header.container} file without a sample")
    if end is not None and end - position > source.length_slack_s * rate:
        raise reject(Reason.TRUNCATED, f"{position / rate:.2f} s could be decoded, the header says {end / rate:.2f} s")
    waveform = to_16k.finish()
    if rate != SAMPLING_RATE and len(waveform):
        _check_samples(waveform)  # resampling noise of full swing rings up to 2.4 times as high
    return waveform


def _check_samples(mono: NDArray[np.float32]) -> None:
    peak = max(float(mono.max()), -float(mono.min()))
    if not peak < _ABSURD_PEAK:  # NaN compares false
        raise reject(Reason.NOT_FINITE, f"a sample is {peak:g}, where full scale is 1")
    if peak > MAX_PEAK:
        raise reject(Reason.DAMAGED, f"samples reach {peak:.4g}, where full scale is 1")


class _Resampler:
    """soxr HQ to 16 kHz in pieces, bit for bit as librosa.resample does it in one.

    Source: librosa 0.11 core/audio.py, `resample`: soxr.resample, then `fix_length` to ceil(n * ratio).
    """

    def __init__(self, sampling_rate: int) -> None:
        self._ratio = SAMPLING_RATE / sampling_rate
        self._num_in = 0
        self._pieces: list[NDArray[np.float32]] = []
        self._stream: Any = None
        if sampling_rate != SAMPLING_RATE:
            self._stream = soxr.ResampleStream(sampling_rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")

    def add(self, mono: NDArray[np.float32]) -> None:
        self._num_in += len(mono)
        self._pieces.append(self._stream.resample_chunk(np.ascontiguousarray(mono)) if self._stream else mono)

    def finish(self) -> NDArray[np.float32]:
        if self._stream:
            self._pieces.append(self._stream.resample_chunk(np.empty(0, np.float32), last=True))
        num_samples = int(np.ceil(self._num_in * self._ratio))
        if len(self._pieces) == 1 and len(self._pieces[0]) == num_samples:
            return np.ascontiguousarray(self._pieces[0])
        waveform = np.zeros(num_samples, np.float32)
        position = 0
        for piece in self._pieces:
            kept = piece[: num_samples - position]
            waveform[position : position + len(kept)] = kept
            position += len(kept)
        return waveform
