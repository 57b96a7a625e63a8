"""Codec round trips: a waveform is encoded by FFmpeg's libraries or libsndfile and decoded as the job decodes files.

The delay of a codec is removed by its container (pre-skip in Ogg, LAME's tag in MP3), so the result is in time with the
original and of the same length. Costs about 10 ms for 4 s of speech.
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soundfile

from pipeline import SAMPLING_RATE
from pipeline.analytics.stress.signals import Waveform, from_rate, to_rate
from pipeline.audio.decode import decode
from pipeline.errors import ConfigError

_TELEPHONE_KHZ = 8.0


def opus(waveform: Waveform, kbit_s: float, _random: np.random.Generator) -> Waveform:
    """Encode as Opus for speech (`application=voip`, variable bit rate, the libopus of PyAV), and decode."""
    return _through(waveform, "ogg", "libopus", kbit_s, application="voip")


def mp3(waveform: Waveform, kbit_s: float, _random: np.random.Generator) -> Waveform:
    """Encode as MP3 at a constant bit rate (LAME in PyAV), and decode."""
    return _through(waveform, "mp3", "libmp3lame", kbit_s)


def mu_law(waveform: Waveform, _kbit_s: float, _random: np.random.Generator) -> Waveform:
    """Encode as G.711 mu-law at 8 kHz (libsndfile), and decode."""
    return _telephone(waveform, "ULAW")


def a_law(waveform: Waveform, _kbit_s: float, _random: np.random.Generator) -> Waveform:
    """Encode as G.711 A-law at 8 kHz (libsndfile), and decode."""
    return _telephone(waveform, "ALAW")


def _telephone(waveform: Waveform, subtype: str) -> Waveform:
    file = io.BytesIO()
    soundfile.write(file, to_rate(waveform, _TELEPHONE_KHZ), int(_TELEPHONE_KHZ * 1000), format="WAV", subtype=subtype)
    file.seek(0)
    narrow, _ = soundfile.read(file, dtype="float32")
    return from_rate(narrow, _TELEPHONE_KHZ, len(waveform))


def encoded(waveform: Waveform, container: str, codec: str, kbit_s: float, **options: str) -> bytes:
    """Encode by a library in PyAV. Raises: ConfigError if it has no such encoder."""
    file = io.BytesIO()
    limited = np.ascontiguousarray(np.clip(waveform, -1, 1)[np.newaxis])
    try:
        with av.open(file, "w", format=container) as writer:
            stream: Any = writer.add_stream(codec, rate=SAMPLING_RATE, layout="mono", options=options)
            stream.bit_rate = round(kbit_s * 1000)
            frame = av.AudioFrame.from_ndarray(limited, format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = SAMPLING_RATE, 0, Fraction(1, SAMPLING_RATE)
            writer.mux(stream.encode(frame))
            writer.mux(stream.encode(None))
    except av.codec.codec.UnknownCodecError as error:
        raise ConfigError(f"this PyAV has no encoder {codec}") from error
    return file.getvalue()


def _through(waveform: Waveform, container: str, codec: str, kbit_s: float, **options: str) -> Waveform:
    decoded = decode(encoded(waveform, container, codec, kbit_s, **options))
    return np.pad(decoded, (0, max(0, len(waveform) - len(decoded))))[: len(waveform)]
