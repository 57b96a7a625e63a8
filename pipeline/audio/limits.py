"""What one recording may cost, apart from the decoders: whoever only passes limits on loads no FFmpeg."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import SAMPLING_RATE

LONGEST_SPAN_S = 1e13
"""At any sampling rate so many samples still fit 64 bits. A manifest may say more, up to 1e308, which is no span of audio."""
_SLOWEST_SPEED = 20.0
"""Seconds of audio per second. The slowest codec, stereo Opus at 48 kHz, gave 97 on a shared core."""

_SLOWEST_BYTES_PER_S = 10_000.0
"""Of a file. The least was silence in FLAC, 53 bytes a second of audio, at 70,000."""


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Bounds on one file.

    Attributes:
        max_bytes: 2 GiB, the content is held in memory; an hour of CD audio is 0.6 GB.
        max_duration_s: 4 h, past most meetings, hearings and podcasts; 0.9 GB of waveform, once.
        min_duration_s: 560 samples. SeamlessM4TFeatureExtractor gives no frame below 400 samples and NaN at 400; 560
            is the first length found fine. Checked here because one short clip spoils its whole batch.
        min_sampling_rate, max_sampling_rate: in Hz. Below 1 kHz there is no speech, and a "1 Hz" WAV would grow
            16,000-fold; above 768 kHz no converter exists.
        max_channels: 64, a seventh-order ambisonic array.
        timeout_s: how long a decoder may take over a short file, see `patience_s`. 120 s: a clip takes milliseconds,
            and a machine that pages or starts forty workers at once must not lose rows for it.
    """

    max_bytes: int = 2 * 1024**3
    max_duration_s: float = 4 * 3600.0
    min_duration_s: float = 560 / SAMPLING_RATE
    min_sampling_rate: int = 1_000
    max_sampling_rate: int = 768_000
    max_channels: int = 64
    timeout_s: float = 120.0

    def patience_s(self, content_bytes: int) -> float:
        """After how long a decoder counts as hung: `timeout_s`, and more for a file that may hold hours."""
        return self.timeout_s + min(content_bytes / _SLOWEST_BYTES_PER_S, self.max_duration_s / _SLOWEST_SPEED)


DEFAULT_LIMITS = AudioLimits()
