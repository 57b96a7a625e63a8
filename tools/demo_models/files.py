"""Writing of recordings in the formats of corpora."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import av
import numpy as np
import soundfile
import soxr
from av.codec.context import Flags
from numpy.typing import NDArray

from tools.demo_models.acting import SAMPLING_RATE

_LOSSY = {
    ".mp3": ("mp3", "libmp3lame", 16_000, 32_000),
    ".opus": ("ogg", "libopus", 48_000, 24_000),
    ".m4a": ("ipod", "aac", 16_000, 32_000),
}
"""Container, codec, sampling rate in Hz and bits per second, by suffix."""
TELEPHONE_HZ = 8_000
_RECORDER_HZ = 44_100


def write(path: Path, waveform: NDArray[np.float32], *, telephone: bool = False) -> None:
    """Write a recording in the format of its suffix, without dates or serial numbers.

    Args:
        waveform: float32 [num_samples] or [num_samples, channels] at 16 kHz.
        telephone: WAV as a telephone exchange stores it, 8 kHz mu-law; otherwise 16 kHz PCM. FLAC is as a stereo recorder
            leaves it: 44.1 kHz, the speaker a little to the left.
    """
    if path.suffix == ".wav":
        rate_hz = TELEPHONE_HZ if telephone else SAMPLING_RATE
        resampled = soxr.resample(waveform, SAMPLING_RATE, rate_hz) if telephone else waveform
        soundfile.write(path, np.clip(resampled, -1, 1), rate_hz, "ULAW" if telephone else "PCM_16")
    elif path.suffix == ".flac":
        left = soxr.resample(waveform, SAMPLING_RATE, _RECORDER_HZ)
        soundfile.write(path, np.clip(np.stack([left, left / 2], axis=1), -1, 1), _RECORDER_HZ, "PCM_16")
    else:
        _encode(path, np.round(np.clip(waveform, -1, 1) * 32767).astype(np.int16))


def _encode(path: Path, samples: NDArray[np.int16]) -> None:
    form, codec, rate_hz, bit_rate = _LOSSY[path.suffix]
    with av.open(str(path), "w", format=form, options={"fflags": "+bitexact"}) as container:
        stream = cast(av.AudioStream, container.add_stream(codec, rate=rate_hz, layout="mono"))
        stream.bit_rate = bit_rate
        stream.codec_context.flags |= Flags.bitexact
        frame = av.AudioFrame.from_ndarray(samples[np.newaxis], format="s16", layout="mono")
        frame.sample_rate, frame.pts = SAMPLING_RATE, 0
        for converted in av.AudioResampler(stream.codec_context.format, "mono", rate_hz).resample(frame):
            container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
