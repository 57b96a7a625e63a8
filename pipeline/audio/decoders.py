"""The two decoders, libsndfile (soundfile) and FFmpeg (PyAV), each as a stream of blocks from memory.

Both receive bytes and one named format, and no name that they could open.
"""

from __future__ import annotations

import io
import itertools
import re
from array import array
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Protocol, cast

import av
import numpy as np
import soundfile
from av.container import InputContainer
from numpy.typing import NDArray

from pipeline.audio.container import Container, asf_hole, matroska_hole
from pipeline.audio.content import Content, as_file
from pipeline.errors import Reason, RejectedRow, Stage

_MPEG_SLACK_FRAMES = 5
"""MPEG frames that need not be decoded: the Xing frame, encoder delay and padding are at most four, and one may be
cut."""

_BLOCK_VALUES = 1 << 20
"""Values (frames x channels) decoded at once: 4 MiB."""


def reject(reason: Reason, detail: str) -> RejectedRow:
    """Return the rejection of a row while decoding."""
    return RejectedRow(reason, detail, Stage.DECODE)


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """Facts of the header, before decoding. `num_frames` is samples per channel; None when no length is stated."""

    container: str
    codec: str
    sampling_rate: int
    channels: int
    num_frames: int | None

    @property
    def duration_s(self) -> float | None:
        """Duration in seconds, or None when the header states no length."""
        return None if self.num_frames is None else self.num_frames / self.sampling_rate


class Source(Protocol):
    """An opened file.

    Attributes:
        exact_seek: `blocks` may begin in the middle and return the same samples; `header.num_frames` is exact then.
    """

    header: AudioHeader
    exact_seek: bool

    def blocks(self, start: int, stop: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Decode from frame `start` to `stop`, or past it, or to the end, in pieces [channels, n]."""

    def check_end(self, num_frames: int) -> None:
        """Check that a file of so many frames is complete. Raises: RejectedRow TRUNCATED or DAMAGED."""

    def has_stated_length(self) -> bool:
        """Return whether `header.num_frames` is reliable. May read the file, which then cannot be decoded."""

    def close(self) -> None:
        """Close the decoder."""


def open_container(content: Content, container: Container, start: int = 0) -> Source:
    """Open with the reader of the container, or with FFmpeg when libsndfile cannot read it, or not to its end.

    Args:
        start: position of the container in the content.
    Raises: RejectedRow DAMAGED for a header that cannot be read; NOT_AUDIO for a film without sound; EMPTY.
    """
    if container.reader == "av":
        return AvSource(content[start:] if start else content, container)
    try:
        source = SoundfileSource(content, container, start)
    except soundfile.LibsndfileError as error:
        is_foreign = error.code in (_UNRECOGNISED, _UNSUPPORTED) or (error.code, container.name) == (_BAD_FORMAT, "w64")
        if is_foreign and container.demuxer:
            return AvSource(content[start:] if start else content, container)
        why = Reason.OUT_OF_MEMORY if error.code == _NO_MEMORY else Reason.DAMAGED
        raise reject(why, f"the {container.name} header cannot be read: {error.error_string}") from error
    frames, known = container.frames, source.header.num_frames
    if frames and known is not None and known < frames.num_samples - _MPEG_SLACK_FRAMES * frames.frame_samples:
        source.close()  # libsndfile would stop there: see pipeline/audio/mpeg.py
        return AvSource(content[: frames.end] if container.rewritten is None else content, container)
    return source


_UNRECOGNISED, _UNSUPPORTED = 1, 4
"""SF_ERR_UNRECOGNISED_FORMAT and SF_ERR_UNSUPPORTED_ENCODING of sndfile.h."""

_BAD_FORMAT = 64
"""libsndfile's "Malformed 'fmt ' chunk", which it also reports for every unknown format tag."""

_NO_MEMORY = 17
"""SFE_MALLOC_FAILED of libsndfile's common.h: "Internal malloc () failed"."""

_UNKNOWN_FRAMES = 1 << 60
"""Frame count from which the length is unknown: libsndfile returns SF_COUNT_MAX, 2^63 - 1, for a FLAC whose encoder
did not know it."""


_SOUNDFILE_SLACK_S = 0.1
"""Tolerance for an MP3's own padding; every other length is exact (seen: 0 in 200 whole files)."""

_AV_SLACK_S = 0.25
"""Tolerance of three AAC frames at 16 kHz: Matroska and MP4 count encoder delay and padding (seen: 0.11 s in whole
files)."""


def _too_short(decoded_s: float, stated_s: float) -> RejectedRow:
    return reject(Reason.TRUNCATED, f"{decoded_s:.2f} s could be decoded, but the header states {stated_s:.2f} s")


class _SequentialFile(soundfile.SoundFile):
    """A SoundFile that reads sequentially.

    After every read soundfile seeks to its current position. In an MP3 that resets the decoder (another block then
    begins with other samples than librosa's single read), and in a FLAC of unknown length it fails.
    """

    def seekable(self) -> bool:
        return False


class SoundfileSource:
    """Decoder based on libsndfile: WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF, AU, CAF, W64, SPHERE."""

    def __init__(self, content: Content, container: Container, start: int = 0) -> None:
        self._content_bytes = len(content) - start
        self._stream = as_file(content, start)
        self._file: Any = _SequentialFile(self._stream)
        self._container = container
        num_frames = self._file.frames if self._file.frames < _UNKNOWN_FRAMES else None
        if container.frames and not container.frames.has_index and num_frames is not None:
            # An estimate from the file size, which includes tags: limit it to the frames in the file.
            num_frames = min(num_frames, container.frames.num_samples)
        self.header = AudioHeader(
            container.name, self._file.subtype, self._file.samplerate, self._file.channels, num_frames
        )
        plain = self._file.subtype.startswith("PCM_") or self._file.subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
        self.exact_seek = plain and num_frames is not None and container.name not in ("mp3", "ogg")

    def blocks(self, start: int, stop: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Read from `start` to `stop`. Raises: RejectedRow TRUNCATED or DAMAGED when libsndfile fails."""
        header = self.header
        position, step = start, max(1, _BLOCK_VALUES // header.channels)
        end = stop if stop is not None else _UNKNOWN_FRAMES if header.num_frames is None else header.num_frames
        try:
            if start:
                self._file.seek(start)
            while position < end:
                block = self._file.read(min(step, end - position), dtype="float32", always_2d=True)
                if not len(block):
                    return
                position += len(block)
                yield block.T
        except soundfile.LibsndfileError as error:
            why = Reason.TRUNCATED if self._stream.tell() >= self._content_bytes else Reason.DAMAGED
            why = Reason.OUT_OF_MEMORY if error.code == _NO_MEMORY else why
            raise reject(why, f"{error.error_string} after {position / header.sampling_rate:.2f} s") from error

    def check_end(self, num_frames: int) -> None:
        """Compare with the header. Raises: RejectedRow TRUNCATED."""
        stated, rate = self.header.num_frames, self.header.sampling_rate
        if stated is not None and stated - num_frames > _SOUNDFILE_SLACK_S * rate:
            raise _too_short(num_frames / rate, stated / rate)

    def has_stated_length(self) -> bool:
        """Return True: libsndfile's count is exact, or exact up to an MP3's padding, or absent."""
        return True

    def close(self) -> None:
        """Close the decoder."""
        self._file.close()


def _refuse_io(*_: object) -> io.BytesIO:
    """Refuse to open a file; FFmpeg calls this for every name in the content."""
    raise PermissionError("a container must not open other files")


class AvSource:
    """Decoder based on FFmpeg (PyAV): the first decodable audio track, by one named demuxer, from memory.

    Time stamps do not move samples: a gap between them (packets lost on the network, a muted microphone) and a late
    start are closed, as librosa and FFmpeg's own decoding to WAV close them.
    """

    exact_seek = False

    def __init__(self, content: Content, container: Container) -> None:
        self._content = content
        self._container = container
        self._input: InputContainer | None = None
        self._times: array[int] = array("q")
        self._num_packets = 0
        self._stated_s: float | None = None
        self._begin_s = self._end_s = 0.0
        try:
            self._input = _demux(content, container)
            self.header = self._begin(self._input)
        except _FFMPEG_ERRORS as error:
            self.close()
            raise reject(_why(error), f"the {container.name} file cannot be read: {_said(error)}") from error
        except RejectedRow:
            self.close()
            raise

    def _begin(self, opened: InputContainer) -> AudioHeader:
        """Decode the first frame: only it has the true rate and channels (HE-AAC's header states half the rate)."""
        name = self._container.name
        if not opened.streams.audio:
            raise reject(Reason.NOT_AUDIO, f"the {name} file has no audio track")
        known = [track for track in opened.streams.audio if cast("object | None", track.codec_context) is not None]
        if not known:  # PyAV declares that every track has a context
            raise reject(Reason.NOT_AUDIO, f"no decoder supports the codec of the {name} file")
        stream = known[0]
        context = stream.codec_context
        context.thread_count = 1
        codec = context.name
        if codec in _WITHOUT_DTX and self._has_dtx(stream.index, _WITHOUT_DTX[codec]):
            context = cast(av.AudioCodecContext, av.CodecContext.create(f"libopencore_{codec}", "r"))
            context.sample_rate, context.layout = stream.codec_context.sample_rate, "mono"
        self._index_size = len(stream.index_entries) if self._container.indexed else 0
        self._frames = self._decode(opened, stream, context)
        first = next(self._frames, None)
        if first is None:
            raise reject(Reason.EMPTY, f"the {name} file contains no samples")
        self._frames = itertools.chain([first], self._frames)
        rate = first.sample_rate
        self._begin_s = self._end_s = max(0.0, first.time or 0.0)
        if self._container.frames:
            self._stated_s = self._container.frames.num_samples / self._container.frames.sampling_rate
        elif self._container.states_length:
            self._stated_s = _stated_seconds(opened, stream)
        num_frames = None if self._stated_s is None else max(1, round(self._stated_s * rate))
        return AudioHeader(name, codec, rate, first.layout.nb_channels, num_frames)

    def _has_dtx(self, track: int, last_speech_type: int) -> bool:
        """Return whether an AMR track has frames of types other than speech."""
        with closing(_demux(self._content, self._container)) as opened:
            packets = opened.demux(opened.streams[track])
            return any(packet.size and bytes(packet)[0] >> 3 & 15 > last_speech_type for packet in packets)

    def _packets(self, opened: InputContainer, stream: av.AudioStream) -> Iterator[av.Packet[av.AudioStream]]:
        for packet in opened.demux(stream):
            if packet.size:
                self._num_packets += 1
                if packet.pts is not None:
                    self._times.append(packet.pts)
            yield packet

    def _decode(
        self, opened: InputContainer, stream: av.AudioStream, context: av.AudioCodecContext
    ) -> Iterator[av.AudioFrame]:
        for packet in self._packets(opened, stream):
            yield from context.decode(packet)

    def blocks(self, start: int, stop: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Decode all frames from 0; the caller handles `stop`. Raises: RejectedRow DAMAGED when FFmpeg fails.

        Samples are read interleaved: of a planar frame with eight channels or more PyAV 18.1 reads planes that do
        not exist (`AudioFrame.planes` counts up to a null pointer that FFmpeg does not guarantee), and the process
        crashes.
        """
        to_float = av.AudioResampler(format="flt")
        channels, rate = self.header.channels, self.header.sampling_rate
        pieces: list[NDArray[np.float32]] = []
        held = decoded = 0
        try:
            for frame in self._frames:
                if (frame.sample_rate, frame.layout.nb_channels) != (rate, channels):
                    raise reject(Reason.DAMAGED, "the sampling rate or the channels change inside the file")
                if frame.time is not None:
                    self._end_s = max(self._end_s, frame.time + frame.samples / rate)
                for floats in to_float.resample(frame):
                    pieces.append(cast("NDArray[np.float32]", floats.to_ndarray()).reshape(-1, channels).T)
                    held, decoded = held + floats.samples, decoded + floats.samples
                if held * channels >= _BLOCK_VALUES:
                    yield np.concatenate(pieces, axis=1)
                    pieces, held = [], 0
        except _FFMPEG_ERRORS as error:
            raise reject(_why(error), f"{_said(error)} after {decoded / rate:.2f} s") from error
        if pieces:
            yield np.concatenate(pieces, axis=1)

    def check_end(self, num_frames: int) -> None:
        """Compare the packets or frames read with the file's stated length. Raises: RejectedRow TRUNCATED or DAMAGED.

        With an index, its packets are counted, and a header may then state a wrong length. Without one the length is
        that of the file's clock, which a late start and gaps make longer than the samples.
        """
        if self._index_size:
            if self._num_packets < self._index_size:
                detail = f"{self._num_packets:,} of the {self._index_size:,} packets in its index could be read"
                raise reject(Reason.TRUNCATED, detail)
            return
        if self._stated_s is None:
            return
        decoded_s = num_frames / self.header.sampling_rate
        reached_s = self._begin_s + decoded_s
        if self._container.name in _GAPS and self._end_s - reached_s > _AV_SLACK_S:
            if hole := _GAPS[self._container.name](self._content):
                raise reject(Reason.DAMAGED, f"the timestamps jump, and {hole}")
            reached_s = self._end_s
        if self._stated_s - reached_s > _AV_SLACK_S:
            raise _too_short(decoded_s, self._stated_s)

    def has_stated_length(self) -> bool:
        """Return whether the steps of the time stamps, each capped at twice the median, add up to the stated length."""
        if self._stated_s is None or self._input is None or self._container.frames:
            return True
        stream = next(track for track in self._input.streams.audio if cast("object | None", track.codec_context))
        try:
            for _ in self._packets(self._input, stream):
                pass
        except _FFMPEG_ERRORS:
            return False  # decoding reports the fault
        steps = np.diff(np.sort(np.asarray(self._times)))
        if not len(steps) or stream.time_base is None:
            return False
        usual = float(np.median(steps))
        added_s = (float(np.minimum(steps, 2 * usual).sum()) + usual) * float(stream.time_base)
        return abs(added_s - self._stated_s) <= _AV_SLACK_S

    def close(self) -> None:
        """Close the decoder."""
        if self._input is not None:
            self._input.close()


_GAPS: dict[str, Callable[[Content], str | None]] = {"matroska": matroska_hole, "asf": asf_hole, "mp4": lambda _: None}
"""Containers whose time stamps may jump, each with a function that detects an overwritten part of the file instead."""

_WITHOUT_DTX = {"amrnb": 7, "amrwb": 8}
"""FFmpeg decoders without comfort noise (DTX), each with the last frame type of speech. Sources: 3GPP TS 26.101 and
26.201, table 1a. The reference decoders (opencore) are used only for files with comfort noise: their samples differ."""

_FFMPEG_ERRORS = (av.FFmpegError, PermissionError, ValueError, OverflowError)


def _demux(content: Content, container: Container) -> InputContainer:
    demuxer = container.demuxer or ""
    options = {"format_whitelist": demuxer, "protocol_whitelist": "none"}
    opened = av.open(
        as_file(content), format=demuxer, container_options=options, io_open=_refuse_io, metadata_errors="replace"
    )
    return cast(InputContainer, opened)


def _why(error: Exception) -> Reason:
    """Return the reason for an FFmpeg error. A damaged table that asks for gigabytes also counts as lack of memory."""
    return Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.DAMAGED


def _said(error: Exception) -> str:
    """Return FFmpeg's message without the address of the object it read from."""
    if isinstance(error, av.error.PatchWelcomeError):
        return "FFmpeg does not decode this variant of the codec; convert the file to WAV or FLAC"
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else type(error).__name__


def _stated_seconds(opened: InputContainer, stream: av.AudioStream) -> float | None:
    """Return the length of the audio track itself, which a film may exceed; ASF states only the film's length."""
    if opened.format.name == "asf" and len(opened.streams) > 1:
        return None
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    clock = _CLOCK.fullmatch(stream.metadata.get("DURATION", ""))
    if clock:
        return 3600 * int(clock[1]) + 60 * int(clock[2]) + float(clock[3])
    if opened.duration is not None and len(opened.streams) == 1:
        return opened.duration / 1_000_000
    return None


_CLOCK = re.compile(r"(\d{1,6}):(\d{1,2}):(\d{1,2}(?:\.\d{1,12})?)\s*", re.ASCII)
"""A DURATION tag as FFmpeg and mkvmerge write it. Other writers use the tag for other text."""
