"""The two decoders: libsndfile (soundfile) and FFmpeg (PyAV), each as a stream of blocks from memory.

Both are given bytes and one named format; neither is given anything it could open by name.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import av
import numpy as np
import soundfile
from av.container import InputContainer
from numpy.typing import NDArray

from pipeline.audio.container import Container
from pipeline.errors import Reason, RejectedRow, Stage

_MPEG_SLACK_FRAMES = 5
"""The Xing frame, encoder delay and padding are counted as MPEG frames but never heard: at most four, and one cut."""

_BLOCK_VALUES = 1 << 20
"""Values (frames x channels) decoded at once: 4 MiB."""


def reject(reason: Reason, detail: str) -> RejectedRow:
    """A row rejected while decoding."""
    return RejectedRow(reason, detail, Stage.DECODE)


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """What the header says, before decoding. `num_frames` (samples per channel) is None where nothing states it."""

    container: str
    codec: str
    sampling_rate: int
    channels: int
    num_frames: int | None

    @property
    def duration_s(self) -> float | None:
        """Seconds, or None where the header states no length."""
        return None if self.num_frames is None else self.num_frames / self.sampling_rate


class Source(Protocol):
    """An opened file.

    Attributes:
        exact_seek: `blocks` may begin in the middle and give the same samples.
        length_slack_s: what a whole file may hold less than its header says.
    """

    header: AudioHeader
    exact_seek: bool
    length_slack_s: float

    def blocks(self, start: int, stop: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Decode from frame `start` to `stop`, or past it, or to the end, in pieces [channels, n]."""

    def close(self) -> None:
        """Let go of the decoder."""


def open_container(content: bytes, container: Container) -> Source:
    """Open by the reader the container names, and by FFmpeg where libsndfile cannot read it, or not to its end.

    Raises: RejectedRow DAMAGED for a header that cannot be read; NOT_AUDIO for a film without sound; EMPTY.
    """
    if container.reader == "av":
        return AvSource(content, container)
    try:
        source = SoundfileSource(content, container)
    except soundfile.LibsndfileError as error:
        if error.code in (_UNRECOGNISED, _UNSUPPORTED) and container.demuxer:
            return AvSource(content, container)
        why = Reason.OUT_OF_MEMORY if error.code == _NO_MEMORY else Reason.DAMAGED
        raise reject(why, f"the {container.name} header cannot be read: {error.error_string}") from error
    frames, known = container.frames, source.header.num_frames
    if frames and known is not None and known < frames.num_samples - _MPEG_SLACK_FRAMES * frames.frame_samples:
        source.close()  # it would stop there: see pipeline/audio/mpeg.py
        return AvSource(content, container)
    return source


_UNRECOGNISED, _UNSUPPORTED = 1, 4
"""SF_ERR_UNRECOGNISED_FORMAT and SF_ERR_UNSUPPORTED_ENCODING of sndfile.h."""

_NO_MEMORY = 17
"""SFE_MALLOC_FAILED of libsndfile's common.h: "Internal malloc () failed"."""

_UNKNOWN_FRAMES = 1 << 60
"""libsndfile says SF_COUNT_MAX, 2^63 - 1, for a FLAC whose encoder did not know its length."""


class _SequentialFile(soundfile.SoundFile):
    """A SoundFile that only reads on.

    soundfile seeks to where it already is after every read; in an MP3 that resets the decoder (another block then
    begins with other samples than librosa's single read), and in a FLAC of unknown length it fails.
    """

    def seekable(self) -> bool:
        return False


class SoundfileSource:
    """libsndfile: WAV, FLAC, MP3, Ogg Vorbis, Opus, AIFF, AU, CAF, W64, SPHERE."""

    def __init__(self, content: bytes, container: Container) -> None:
        self._content_bytes = len(content)
        self._stream = io.BytesIO(content)
        self._file: Any = _SequentialFile(self._stream)
        self._container = container
        self.exact_seek = container.name not in ("mp3", "ogg")
        self.length_slack_s = 0.1  # an MP3's own padding; every other length is exact (seen: 0 in 200 whole files)
        num_frames = self._file.frames if self._file.frames < _UNKNOWN_FRAMES else None
        if container.frames and not container.frames.has_index and num_frames is not None:
            # An estimate from the file size: tags are in it, so hold it to the frames that are there.
            num_frames = min(num_frames, container.frames.num_samples)
        self.header = AudioHeader(
            container.name, self._file.subtype, self._file.samplerate, self._file.channels, num_frames
        )

    def blocks(self, start: int, stop: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Read from `start` to `stop`. Raises: RejectedRow TRUNCATED or DAMAGED where libsndfile gives up."""
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

    def close(self) -> None:
        """Let go of the decoder."""
        self._file.close()


def _refuse_io(*_: object) -> io.BytesIO:
    """FFmpeg asks here before it opens anything the content names."""
    raise PermissionError("a container may not open other files")


class AvSource:
    """FFmpeg through PyAV: the first audio track, by one named demuxer, from memory."""

    exact_seek = False
    length_slack_s = 0.25
    """Three AAC frames at 16 kHz: Matroska and MP4 count encoder delay and padding (seen: 0.11 s in whole files)."""

    def __init__(self, content: bytes, container: Container) -> None:
        self._container = container
        self._input: InputContainer | None = None
        demuxer = container.demuxer or ""
        options = {"format_whitelist": demuxer, "protocol_whitelist": "none"}
        try:
            self._input = cast(
                InputContainer,
                av.open(
                    io.BytesIO(content),
                    format=demuxer,
                    container_options=options,
                    io_open=_refuse_io,
                    metadata_errors="replace",
                ),
            )
            self.header = self._begin()
        except (av.FFmpegError, PermissionError, ValueError, OverflowError) as error:
            self.close()
            raise reject(_why(error), f"the {container.name} file cannot be read: {_said(error)}") from error
        except RejectedRow:
            self.close()
            raise

    def _begin(self) -> AudioHeader:
        """Decode the first frame: only it has the true rate and channels (HE-AAC's header states half the rate)."""
        opened, name = self._input, self._container.name
        if opened is None or not opened.streams.audio:
            raise reject(Reason.NOT_AUDIO, f"the {name} file has no audio track")
        stream = opened.streams.audio[0]
        context = cast("av.AudioCodecContext | None", stream.codec_context)  # PyAV's types promise one
        if context is None:
            raise reject(Reason.NOT_AUDIO, f"no decoder knows the codec of the {name} file")
        context.thread_count = 1
        codec = context.name
        self._frames: Iterator[av.AudioFrame] = opened.decode(stream)
        first = next(self._frames, None)
        if first is None:
            raise reject(Reason.EMPTY, f"a {name} file without a sample")
        self._frames = itertools.chain([first], self._frames)
        rate, seconds = first.sample_rate, None
        if self._container.frames:
            seconds = self._container.frames.num_samples / self._container.frames.sampling_rate
        elif self._container.states_length:
            seconds = _stated_seconds(opened, stream)
        num_frames = None if seconds is None else max(1, round(seconds * rate))
        return AudioHeader(name, codec, rate, first.layout.nb_channels, num_frames)

    def blocks(self, start: int, stop: int | None = None) -> Iterator[NDArray[np.float32]]:
        """Decode it all; `start` is 0, `stop` the caller's. Raises: RejectedRow DAMAGED where FFmpeg gives up.

        Samples are taken interleaved: of a planar frame with eight channels or more PyAV 18.1 reads planes that are not
        there (`AudioFrame.planes` counts up to a null pointer that FFmpeg does not promise), and the process dies.
        """
        to_float = av.AudioResampler(format="flt")
        channels = self.header.channels
        pieces: list[NDArray[np.float32]] = []
        held = decoded = 0
        try:
            for frame in self._frames:
                if (frame.sample_rate, frame.layout.nb_channels) != (self.header.sampling_rate, channels):
                    raise reject(Reason.DAMAGED, "the sampling rate or the channels change inside the file")
                for floats in to_float.resample(frame):
                    pieces.append(cast("NDArray[np.float32]", floats.to_ndarray()).reshape(-1, channels).T)
                    held, decoded = held + floats.samples, decoded + floats.samples
                if held * channels >= _BLOCK_VALUES:
                    yield np.concatenate(pieces, axis=1)
                    pieces, held = [], 0
        except (av.FFmpegError, PermissionError, ValueError, OverflowError) as error:
            detail = f"{_said(error)} after {decoded / self.header.sampling_rate:.2f} s"
            raise reject(_why(error), detail) from error
        if pieces:
            yield np.concatenate(pieces, axis=1)

    def close(self) -> None:
        """Let go of the decoder."""
        if self._input is not None:
            self._input.close()


def _why(error: Exception) -> Reason:
    """FFmpeg's lack of memory is one of its errors too. A damaged table that asks for gigabytes also comes to this."""
    return Reason.OUT_OF_MEMORY if isinstance(error, MemoryError) else Reason.DAMAGED


def _said(error: Exception) -> str:
    """What FFmpeg said, without the address of the object it read from."""
    return str(error.strerror) if isinstance(error, OSError) and error.strerror else type(error).__name__


def _stated_seconds(opened: InputContainer, stream: av.AudioStream) -> float | None:
    """The length of the audio track itself; a film may outlast it."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    if (clock := stream.metadata.get("DURATION", "").split(":")) and len(clock) == 3:  # as FFmpeg and mkvmerge write it
        return 3600 * float(clock[0]) + 60 * float(clock[1]) + float(clock[2])
    if opened.duration is not None and len(opened.streams) == 1:
        return opened.duration / 1_000_000
    return None
