"""Segmentation of a recording into utterances by voice activity, and speech detection.

Voice activity is Silero VAD v6 as faster-whisper ships it: one ONNX session with one thread, so the same waveform
always gives the same cuts. It costs about 2 ms of CPU per second of audio, and 180 MB for a recording of any length.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline import MAX_SEGMENT_S, SAMPLING_RATE
from pipeline.errors import Reason, RejectedRow, Stage

_MIN_SILENCE_MS = 500
"""Shortest pause that ends an utterance. Of 180 concatenated RAVDESS sentences, 179 were found whole and separate,
none merged."""

_PADDING_MS = 200
"""Audio kept around speech, so that soft onsets and endings are not lost. Neighbours closer than twice this share
the gap."""

_MIN_SPEECH_MS = 250
"""Shortest speech: anything shorter is a click or a cough. The default of Silero's own get_speech_timestamps."""

_CUT_THRESHOLD = 0.5
"""Speech probability for cutting. Silero's default."""

_PRESENCE_THRESHOLD = 0.3
_PRESENCE_WINDOWS = 3
"""Windows above `_PRESENCE_THRESHOLD` that count as speech. `speech_seconds` is lenient: losing a shout costs more
than passing noise to Whisper's own checks. The weakest of 143 acted clips (happy and angry, strong) have 4 windows
of 32 ms over 0.36, white noise at -10 dBFS none over 0.25."""

_WINDOW = 512
"""Samples per probability of Silero VAD at 16 kHz."""

_CHUNK = 600 * SAMPLING_RATE // _WINDOW * _WINDOW
"""Samples processed at once (ten minutes): faster-whisper's VAD holds about four copies of its input."""

_LEAD_IN = 2 * SAMPLING_RATE
"""Samples processed again before each further chunk, back to the last cut at most, because the model starts without
state."""


@dataclass(frozen=True, slots=True)
class Span:
    """Samples [start, end) of a 16 kHz waveform. Samples are exact; seconds would be rounded."""

    start: int
    end: int

    @property
    def start_s(self) -> float:
        """Start in seconds from the beginning of the waveform."""
        return self.start / SAMPLING_RATE

    @property
    def end_s(self) -> float:
        """End in seconds from the beginning of the waveform."""
        return self.end / SAMPLING_RATE


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """How recordings are cut into utterances.

    Attributes:
        segmentation: "none" keeps them whole; "vad" always cuts by voice activity; "auto" cuts those that are longer than
            `max_s` and have no text, which could not be assigned to the pieces.
        max_s: longest utterance by voice activity; at most 30 s.
        min_s: utterances by voice activity that are shorter are joined to a neighbour where both fit into `max_s`.
        window_s: length of windows, into which every recording is cut instead. None for no windows.
        hop_s: time between the starts of two windows.
    """

    segmentation: Literal["auto", "none", "vad"] = "auto"
    max_s: float = MAX_SEGMENT_S
    min_s: float = 0.0
    window_s: float | None = None
    hop_s: float | None = None


def cut(waveform: NDArray[np.float32], cuts: Cuts, *, has_text: bool) -> list[Span]:
    """Cut a recording into utterances.

    Args:
        waveform: [num_samples] at 16 kHz.
        has_text: the manifest gives a transcript of the whole recording.

    Returns: spans in order; by voice activity they do not overlap.

    Raises: RejectedRow NO_SPEECH when cutting finds no speech.
    """
    if cuts.window_s is not None:
        return _windows(len(waveform), cuts.window_s, cuts.hop_s or cuts.window_s)
    short = len(waveform) <= cuts.max_s * SAMPLING_RATE
    if cuts.segmentation == "none" or (cuts.segmentation == "auto" and (has_text or short)):
        return [Span(0, len(waveform))]
    spans = _joined(speech_spans(waveform, cuts.max_s), cuts)
    if not spans:
        duration_s = len(waveform) / SAMPLING_RATE
        raise RejectedRow(Reason.NO_SPEECH, f"no speech was detected in {duration_s:.1f} s of audio", Stage.SEGMENT)
    return spans


def speech_seconds(waveform: NDArray[np.float32]) -> float:
    """Count the seconds that may contain speech, leniently; 0.0 for silence, DC, hum and noise.

    Called before Whisper, which produces words for silence. Ten minutes are processed at once; fewer than three windows in
    them do not count. waveform: [num_samples] at 16 kHz.
    """
    counted = 0
    for start in range(0, len(waveform), _CHUNK):
        windows = int(np.count_nonzero(speech_frames(waveform[start : start + _CHUNK])))
        if windows >= _PRESENCE_WINDOWS:
            counted += windows
    return counted * _WINDOW / SAMPLING_RATE


SPEECH_FRAME_S = _WINDOW / SAMPLING_RATE
"""Seconds of one of the frames of `speech_frames`."""


def speech_frames(waveform: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for each frame of a waveform of up to ten minutes whether it may contain speech, leniently."""
    from faster_whisper.vad import get_vad_model

    return np.asarray(get_vad_model()(np.pad(waveform, (0, -len(waveform) % _WINDOW))) >= _PRESENCE_THRESHOLD)


def _windows(num_samples: int, window_s: float, hop_s: float) -> list[Span]:
    """Return windows that cover a recording. The last one ends with it, and may begin less than a hop after the one before."""
    window, hop = round(window_s * SAMPLING_RATE), round(hop_s * SAMPLING_RATE)
    last = max(num_samples - window, 0)
    starts = [*range(0, last, hop), last]
    return [Span(start, min(start + window, num_samples)) for start in starts]


def _joined(spans: Iterable[Span], cuts: Cuts) -> list[Span]:
    """Join spans that are shorter than `min_s` to the one before or after."""
    shortest, longest = cuts.min_s * SAMPLING_RATE, cuts.max_s * SAMPLING_RATE
    joined: list[Span] = []
    for span in spans:
        before = joined[-1] if joined else span
        is_short = min(span.end - span.start, before.end - before.start) < shortest
        if joined and is_short and span.end - before.start <= longest:
            joined[-1] = Span(before.start, span.end)
        else:
            joined.append(span)
    return joined


def speech_spans(
    waveform: NDArray[np.float32], max_s: float, *, pause_s: float = _MIN_SILENCE_MS / 1000
) -> Iterator[Span]:
    """Yield spans of speech, chunk by chunk; a span that touches the end of a chunk is left to the next chunk.

    Args:
        max_s: longest span.
        pause_s: shortest pause that ends a span. Of a shorter one than usual, half is kept around speech.
    """
    from faster_whisper.vad import VadOptions, get_speech_timestamps

    options = VadOptions(
        threshold=_CUT_THRESHOLD,
        min_speech_duration_ms=_MIN_SPEECH_MS,
        max_speech_duration_s=max_s,
        min_silence_duration_ms=round(1000 * pause_s),
        speech_pad_ms=min(_PADDING_MS, round(500 * pause_s)),
    )
    begin = kept_until = 0
    while True:
        chunk = waveform[begin : begin + _CHUNK]
        found = [Span(begin + each["start"], begin + each["end"]) for each in get_speech_timestamps(chunk, options)]
        found = [span for span in found if span.start >= kept_until]
        until = begin + len(chunk)
        if until == len(waveform):
            yield from found
            return
        if found and found[-1].end == until:
            until = found.pop().start
        yield from found
        kept_until = found[-1].end if found else kept_until
        begin = -(-max(kept_until, until - _LEAD_IN) // _WINDOW) * _WINDOW
