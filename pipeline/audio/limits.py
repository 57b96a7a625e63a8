"""Resource limits for one audio file, in a module that imports no decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline import SAMPLING_RATE

LONGEST_SPAN_S = 1e13
"""Largest offset or duration accepted, in seconds: at any sampling rate its sample count fits 64 bits. A manifest may
contain values up to 1e308."""
_SLOWEST_SPEED = 20.0
"""Slowest decoding speed, in seconds of audio per second. The slowest codec, stereo Opus at 48 kHz, reached 97 on a
shared core."""

_SLOWEST_BYTES_PER_S = 10_000.0
"""Slowest decoding speed, in file bytes per second. The slowest was silence in FLAC, 53 bytes a second of audio, at
70,000."""


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Bounds on one file.

    Attributes:
        max_bytes: 2 GiB, because the content is held in memory; an hour of CD audio is 0.6 GB.
        max_duration_s: 4 h, longer than most meetings, hearings and podcasts; 0.9 GB of waveform, once.
        min_duration_s: 560 samples. SeamlessM4TFeatureExtractor returns no frame below 400 samples and NaN at 400;
            560 is the shortest length found to work. Checked here because one short clip spoils its whole batch.
        min_sampling_rate, max_sampling_rate: in Hz. Below 1 kHz there is no speech, and a "1 Hz" WAV would grow
            16,000-fold; above 768 kHz no converter exists.
        max_channels: 64, a seventh-order ambisonic array.
        timeout_s: decoding time allowed for a short file, see `patience_s`. 120 s: a clip takes milliseconds, and a
            machine that pages or starts forty workers at once must not lose rows because of it.
    """

    max_bytes: int = 2 * 1024**3
    max_duration_s: float = 4 * 3600.0
    min_duration_s: float = 560 / SAMPLING_RATE
    min_sampling_rate: int = 1_000
    max_sampling_rate: int = 768_000
    max_channels: int = 64
    timeout_s: float = 120.0

    def patience_s(self, content_bytes: int) -> float:
        """Return the seconds after which a decoder counts as hung: `timeout_s`, plus time for a large file."""
        return self.timeout_s + min(content_bytes / _SLOWEST_BYTES_PER_S, self.max_duration_s / _SLOWEST_SPEED)

    def of_channels(self, channels: int) -> AudioLimits:
        """Return the limits on one of several channels that are decoded apart: together at most twice `max_duration_s`."""
        return replace(self, max_duration_s=self.max_duration_s * min(1.0, 2 / channels))


DEFAULT_LIMITS = AudioLimits()
