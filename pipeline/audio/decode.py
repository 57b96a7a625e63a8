"""Decode the bytes of one audio file to mono 16 kHz float32, or report why that is impossible.

A decoder receives only bytes, never a name, and the container is chosen here from the content
(`pipeline.audio.container`), so a renamed playlist opens no file and no socket. Headers are checked before decoding,
and decoding is a bounded stream: block by block through the channel mean and soxr, so a wrong header costs no memory
either. For every format that libsndfile reads, the result is bit for bit that of `librosa.load(path, sr=16000)`,
which the published models take as input; FFmpeg decodes the rest (M4A, MP4, WebM, AAC, WMA, ...) through PyAV.
`docs/audio.md` describes the treatment of gaps, late starts, captures and wrong headers.

Costs: 4 s of 16 kHz 16-bit WAV 0.24 ms, of 48 kHz FLAC 3.7 ms; memory is the content, a few MB, and the result once
(`decode_pieces`: not even that).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.container import identify
from pipeline.audio.content import Content
from pipeline.audio.decoders import AudioHeader, Source, open_container, reject
from pipeline.audio.joined import Joined
from pipeline.audio.limits import DEFAULT_LIMITS, LONGEST_SPAN_S, AudioLimits
from pipeline.audio.mixing import Mixing
from pipeline.audio.mpeg import after_id3
from pipeline.errors import Reason, RejectedRow

_SPAN_SLACK_S = 0.5
"""Seconds by which a manifest's span may end past the file: durations are rounded, and re-encoding changes them."""

_WHOLE_SLACK_S = 0.1
"""Difference from the file's own length below which a `duration` without an `offset` is metadata (as in NeMo), not a
span."""

MAX_PEAK = 4.0
"""Largest plausible sample. Lossy codecs exceed full scale by up to about a half; bit-rotted MP3 peaked at 6.25
without an error."""

_ABSURD_PEAK = 1e6
"""Magnitude from which values are not samples at all: more than any integer format below 24 bit misread as float."""


def probe(content: Content, *, limits: AudioLimits = DEFAULT_LIMITS) -> AudioHeader:
    """Read the header. A length that the packets' time stamps contradict is replaced by the decoded one.

    Raises: RejectedRow as `decode` does for faults that a header shows.
    """
    with closing(_open(content, limits)) as source:
        if source.has_stated_length():
            return source.header
    return replace(source.header, num_frames=_count_frames(content, limits))


def decode(
    content: Content,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    limits: AudioLimits = DEFAULT_LIMITS,
) -> NDArray[np.float32]:
    """Decode one audio file, or a span of it, to mono 16 kHz.

    Args:
        content: the whole file.
        offset_s: start of the span. The span is cut at the file's own rate and then resampled, as librosa does.
        duration_s: length of the span. Without an offset, a duration within 0.1 s of the file's own is taken as
            metadata and means the whole file. An end up to 0.5 s past the file's is clipped to it.
        channel: 0 is the first (in WAV the left) channel; None is the mean of all.
        limits: bounds on the file. The duration limit applies to the span where the format seeks exactly (PCM,
            FLAC), elsewhere to the length the header states and to the decoded length.

    Returns: float32 [num_samples], finite. Peaks between 1 and 4 remain as decoded: clipping them would differ from
        librosa.

    Raises: RejectedRow with EMPTY, TOO_LARGE, NOT_AUDIO, BAD_HEADER, TOO_LONG, TOO_SHORT, BAD_CHANNEL; TRUNCATED
        when the file is shorter than its header, its last page or (for a duration without an offset) its manifest
        states; DAMAGED when samples are lost or wrong inside; NOT_FINITE; BAD_SPAN when the span is not in the file;
        OUT_OF_MEMORY when a decoder reports it (numpy raises its MemoryError). A decoder may also crash or never
        return: decode untrusted files with `pipeline.audio.sandbox`.
    """
    waveform = Joined()
    for piece in decode_pieces(content, offset_s=offset_s, duration_s=duration_s, channel=channel, limits=limits):
        waveform.add(piece)
    return waveform.finish()


def decode_pieces(
    content: Content,
    *,
    offset_s: float = 0.0,
    duration_s: float | None = None,
    channel: int | None = None,
    split: bool = False,
    limits: AudioLimits = DEFAULT_LIMITS,
    mixing: Mixing | None = None,
) -> Iterator[NDArray[np.float32]]:
    """Decode as `decode` does, in consecutive pieces of about a million samples or less.

    A rejection may follow any piece; the pieces before it are then invalid.

    Args:
        split: yield pieces [channels, n] of every channel, each as `channel` gives it, unless a channel is given. The duration
            limit is that of the whole file for up to two channels; of more, `AudioLimits.of_channels`.
        mixing: gets the blocks of a file of two channels that is mixed down.
    """
    _check_request(offset_s, duration_s, channel)
    num_samples = 0
    with closing(_open(content, limits)) as source:
        header = source.header
        if channel is not None and channel >= header.channels:
            raise reject(
                Reason.BAD_CHANNEL, f"channel {channel} does not exist: the file has {header.channels}, numbered from 0"
            )
        split = split and channel is None
        limits = limits.of_channels(header.channels) if split else limits
        to_16k = [_Resampler(header.sampling_rate) for _ in range(header.channels if split else 1)]
        wanted = (
            _read_span(source, offset_s, duration_s, limits)
            if source.exact_seek
            else _read_on(source, offset_s, duration_s, limits)
        )
        for block in itertools.chain(wanted, [None]):
            signals = [None] * len(to_16k) if block is None else _signals(block, channel, split, mixing)
            pieces = [one.finish() if x is None else one.add(x) for one, x in zip(to_16k, signals, strict=True)]
            num_samples += len(pieces[0])
            yield np.stack(pieces) if split else pieces[0]
    if num_samples < limits.min_duration_s * SAMPLING_RATE:
        raise reject(
            Reason.TOO_SHORT,
            f"{num_samples / SAMPLING_RATE:.4f} s of audio; at least {limits.min_duration_s:g} s are needed",
        )


def _signals(
    block: NDArray[np.float32], channel: int | None, split: bool, mixing: Mixing | None
) -> list[NDArray[np.float32]]:
    """Return the signals to resample of a block [channels, n]: every channel, one of them, or their mean."""
    if mixing is not None and channel is None and not split and len(block) == 2:
        mixing.add(block)
    signals = list(block) if split else [block[channel or 0]]
    if not split and channel is None and len(block) > 1:
        signals = [np.mean(block, axis=0)]
    for signal in signals:
        _check_samples(signal)
    return signals


def _check_request(offset_s: float, duration_s: float | None, channel: int | None) -> None:
    if not 0 <= offset_s <= LONGEST_SPAN_S:
        raise reject(Reason.BAD_SPAN, f"the offset {offset_s:g} s is outside 0 to {LONGEST_SPAN_S:g} s")
    if duration_s is not None and not 0 < duration_s <= LONGEST_SPAN_S:
        raise reject(Reason.BAD_SPAN, f"the duration {duration_s:g} s is not above 0 and at most {LONGEST_SPAN_S:g} s")
    if channel is not None and channel < 0:
        raise reject(Reason.BAD_CHANNEL, f"channel {channel} is invalid: channels are numbered from 0")


def _span(
    num_frames: int, sampling_rate: int, offset_s: float, duration_s: float | None, stated_s: float = 0.0
) -> tuple[int, int | None]:
    """Return the frames to read, [start, stop); stop None reads to the end. Rounds down as librosa does.

    Args:
        num_frames: frames in the file.
        stated_s: the header's length, when gaps or a wrong header make it longer: a manifest may repeat it.
    """
    start = int(offset_s * sampling_rate)
    if start == 0 and duration_s is None:
        return start, None
    length_s = num_frames / sampling_rate
    if start == 0 and duration_s is not None:
        if duration_s > max(length_s, stated_s) + _SPAN_SLACK_S:
            raise reject(Reason.TRUNCATED, f"the manifest states {duration_s:.3f} s, but the file has {length_s:.3f} s")
        if duration_s >= length_s - _WHOLE_SLACK_S:
            return 0, None
    if start >= num_frames:
        raise reject(Reason.BAD_SPAN, f"the offset {offset_s:.3f} s is past the end of the file at {length_s:.3f} s")
    if duration_s is None:
        return start, None
    if offset_s + duration_s > length_s + _SPAN_SLACK_S:
        end_s = offset_s + duration_s
        raise reject(Reason.BAD_SPAN, f"the span ends at {end_s:.3f} s, but the file ends at {length_s:.3f} s")
    return start, min(start + int(duration_s * sampling_rate), num_frames)


def _open(content: Content, limits: AudioLimits) -> Source:
    """Identify the container, check its structure and header, and open it for decoding."""
    if not content:
        raise reject(Reason.EMPTY, "the file is empty")
    if len(content) > limits.max_bytes:
        raise reject(Reason.TOO_LARGE, f"the file has {len(content):,} bytes; the limit is {limits.max_bytes:,}")
    container = identify(content)
    if container is None:
        raise reject(
            Reason.NOT_AUDIO, f"{len(content):,} bytes that begin with {content[:8]!r} are not a known audio format"
        )
    if container.sampling_rate is not None and container.channels is not None:
        _check_header(container.sampling_rate, container.channels, limits)
    if container.missing:
        raise reject(Reason.TRUNCATED, f"the {container.name} file is truncated: {container.missing}")
    if container.holes:
        raise reject(Reason.DAMAGED, f"the {container.name} file has gaps: {container.holes}")
    _check_duration(container.clock_s, limits)
    if container.frames:
        _check_duration(container.frames.num_samples / container.frames.sampling_rate, limits)
    if container.rewritten is not None:
        source = open_container(container.rewritten, container)
    else:
        source = open_container(content, container, 0 if container.frames else after_id3(content))
    try:
        _check_header(source.header.sampling_rate, source.header.channels, limits)
        if source.header.num_frames == 0:
            raise reject(Reason.EMPTY, f"the {container.name} file contains no samples")
    except RejectedRow:
        source.close()
        raise
    return source


def _check_header(sampling_rate: int, channels: int, limits: AudioLimits) -> None:
    if not limits.min_sampling_rate <= sampling_rate <= limits.max_sampling_rate:
        raise reject(
            Reason.BAD_HEADER,
            f"the header states a sampling rate of {sampling_rate:,} Hz, which is not plausible for speech",
        )
    if not 1 <= channels <= limits.max_channels:
        raise reject(
            Reason.BAD_HEADER, f"the header states {channels} channels; 1 to {limits.max_channels} are supported"
        )


def _check_duration(duration_s: float, limits: AudioLimits) -> None:
    if duration_s > limits.max_duration_s:
        raise reject(Reason.TOO_LONG, f"{duration_s:,.0f} s of audio; the limit is {limits.max_duration_s:,.0f} s")


def _count_frames(content: Content, limits: AudioLimits) -> int:
    """Decode once to count the frames of a stream that states no reliable length."""
    num_frames = 0
    with closing(_open(content, limits)) as source:
        for block in source.blocks(0):
            num_frames += block.shape[1]
            _check_duration(num_frames / source.header.sampling_rate, limits)
    return num_frames


def _read_span(
    source: Source, offset_s: float, duration_s: float | None, limits: AudioLimits
) -> Iterator[NDArray[np.float32]]:
    """Read a span of a file whose length is known and that seeks exactly."""
    header = source.header
    num_frames, rate = header.num_frames or 0, header.sampling_rate
    position, stop = _span(num_frames, rate, offset_s, duration_s)
    _check_duration(((num_frames if stop is None else stop) - position) / rate, limits)
    for block in source.blocks(position, stop):
        position += block.shape[1]
        yield block
    if stop is None or position < stop:
        source.check_end(position)


def _read_on(
    source: Source, offset_s: float, duration_s: float | None, limits: AudioLimits
) -> Iterator[NDArray[np.float32]]:
    """Read a span of any other file by decoding from its beginning, so that it equals that part of the whole.

    Only the end of the file shows its length, and with it whether a duration without an offset is metadata. So the
    frames after such a span are kept until they exceed that tolerance, and then dropped.
    """
    header = source.header
    rate = header.sampling_rate
    _check_duration(header.duration_s or 0.0, limits)
    start = int(offset_s * rate)
    stop = None if duration_s is None else start + int(duration_s * rate)
    until = stop if stop is None or start else stop + math.ceil(_WHOLE_SLACK_S * rate)
    position, after_stop = 0, []
    for block in source.blocks(0, until):
        first, position = position, position + block.shape[1]
        _check_duration(position / rate, limits)
        wanted = block[:, max(0, start - first) : None if stop is None else max(0, stop - first)]
        if wanted.shape[1]:
            yield wanted
        if stop is not None and position > stop:
            after_stop.append(block[:, max(0, stop - first) :])
        if until is not None and position >= until:
            return
    if position == 0:
        raise reject(Reason.EMPTY, f"the {header.container} file contains no samples")
    source.check_end(position)
    if _span(position, rate, offset_s, duration_s, header.duration_s or 0.0)[1] is None:
        yield from after_stop


def _check_samples(mono: NDArray[np.float32]) -> None:
    peak = max(float(mono.max()), -float(mono.min()))
    if not peak < _ABSURD_PEAK:  # NaN compares false
        raise reject(Reason.NOT_FINITE, f"a sample is {peak:g}; full scale is 1")
    if peak > MAX_PEAK:
        raise reject(Reason.DAMAGED, f"samples reach {peak:.4g}; full scale is 1")


class _Resampler:
    """A soxr HQ stream to 16 kHz, bit for bit equal to librosa.resample on the whole waveform.

    Source: librosa 0.11 core/audio.py, `resample`: soxr.resample, then `fix_length` to ceil(n * ratio).
    """

    def __init__(self, sampling_rate: int) -> None:
        self._ratio = SAMPLING_RATE / sampling_rate
        self._num_in = self._num_out = 0
        self._stream: Any = None
        if sampling_rate != SAMPLING_RATE:
            self._stream = soxr.ResampleStream(sampling_rate, SAMPLING_RATE, 1, dtype="float32", quality="HQ")

    def add(self, mono: NDArray[np.float32]) -> NDArray[np.float32]:
        """Add samples and return the resampled ones that are ready."""
        self._num_in += len(mono)
        return self._taken(self._stream.resample_chunk(np.ascontiguousarray(mono)) if self._stream else mono)

    def finish(self) -> NDArray[np.float32]:
        """Return the remaining samples."""
        if not self._stream:
            return np.empty(0, np.float32)
        left = math.ceil(self._num_in * self._ratio) - self._num_out
        rest = self._taken(self._stream.resample_chunk(np.empty(0, np.float32), last=True)[:left])
        return np.pad(rest, (0, left - len(rest)))

    def _taken(self, piece: NDArray[np.float32]) -> NDArray[np.float32]:
        self._num_out += len(piece)
        if self._stream and len(piece):
            _check_samples(piece)  # resampling noise of full swing rings up to 2.4 times as high
        return piece
