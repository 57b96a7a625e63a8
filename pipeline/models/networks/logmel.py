"""Whisper's log-mel spectrogram in torch: a batch at a time, on any device, without computing the padding.

Equal to faster-whisper's extractor on a waveform padded with zeros to the window, within 2e-5 (features are between
-1.5 and 2.5): this one is in double precision throughout, the other rounds its spectrum to single. Frames that
contain only padding all have one value and are filled in: a clip of 4 s costs 2.5 ms of a CPU thread instead of 19,
one of 30 s 11 instead of 16.

Source: Radford et al. 2022, section 2.2; faster-whisper 1.2.1, `feature_extractor.py`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_FLOOR = 1e-10
"""Smallest power of a mel band before the logarithm."""
_DYNAMIC_RANGE = 8.0
"""Decades below the loudest band of the clip to which quieter values are raised."""
_FRAMES_AT_ONCE = 256
"""Frames of each clip computed at once. With their spectra (1.6 MB) they fit a CPU's cache, which halves the time of
a clip of 30 s."""


class LogMel:
    """Feature extraction of a Whisper model.

    Args:
        extractor: the loaded model's faster-whisper `FeatureExtractor`, which provides mel filters, transform, hop
            and window.
        device: device on which the features are computed and kept.
    """

    def __init__(self, extractor: Any, *, device: torch.device | str = "cpu") -> None:  # noqa: ANN401 - faster-whisper ships no types
        self._device = torch.device(device)
        self._filters = torch.from_numpy(np.asarray(extractor.mel_filters, np.float64).T.copy()).to(self._device)
        self._num_samples, self._hop, self._fft = (
            int(extractor.n_samples),
            int(extractor.hop_length),
            int(extractor.n_fft),
        )
        # single precision, as in the reference
        window = np.hanning(self._fft + 1)[:-1].astype(np.float32).astype(np.float64)
        self._window = torch.from_numpy(window).to(self._device)

        self.num_frames = self._num_samples // self._hop
        """Number of frames of the model's window."""

    @torch.inference_mode()
    def __call__(self, waveforms: Sequence[NDArray[np.float32]], num_frames: int | None = None) -> Tensor:
        """Compute the features of a batch, each clip independently of the others.

        Args:
            waveforms: float32 [num_samples] at the model's sampling rate, none longer than its window.
            num_frames: number of frames to return, from the first. Default: the whole window.
        Returns: float32 [B, num_mels, num_frames], contiguous on the device and complete, so that any stream may
            read it.
        Raises: ValueError for a waveform longer than the window.
        """
        num_frames = num_frames or self.num_frames
        logs = self._log_mels(self._framed(waveforms))
        floor = logs.amax(dim=(1, 2), keepdim=True) - _DYNAMIC_RANGE
        clip_features = _scaled(torch.maximum(logs, floor)).transpose(1, 2)[:, :, :num_frames]
        silence = _scaled(floor.clamp(min=math.log10(_FLOOR)))
        features = silence.repeat(1, clip_features.shape[1], num_frames)
        features[:, :, : clip_features.shape[2]] = clip_features
        if features.is_cuda:
            torch.cuda.current_stream(features.device).synchronize()
        return features

    def _framed(self, waveforms: Sequence[NDArray[np.float32]]) -> Tensor:
        """Return frames [B, T, n_fft] around every hop, mirrored at the edges.

        T ends where the longest clip is silent, or with the window.
        """
        longest = max(len(waveform) for waveform in waveforms)
        # n_fft zeros after the last sample: their frames, and the mirrored ones, contain the silence that follows
        held = max(longest, min(longest + self._fft, self._num_samples))
        samples = np.zeros((len(waveforms), held), np.float32)
        if held > self._num_samples:
            raise ValueError(f"a waveform of {longest} samples does not fit the window of {self._num_samples}")
        for row, waveform in enumerate(waveforms):
            samples[row, : len(waveform)] = waveform
        half = self._fft // 2
        given = torch.from_numpy(samples).to(self._device).double()
        mirrored = torch.nn.functional.pad(given, (half, half), mode="reflect")
        return mirrored.unfold(1, self._fft, self._hop)[:, : self.num_frames]

    def _log_mels(self, frames: Tensor) -> Tensor:
        """Compute the logarithm of the power in each mel band, [B, T, num_mels]."""
        powers = []
        for some in torch.split(frames, _FRAMES_AT_ONCE, dim=1):
            spectrum = torch.fft.rfft(some * self._window)
            powers.append((spectrum.real.square() + spectrum.imag.square()) @ self._filters)
        return torch.cat(powers, dim=1).clamp(min=_FLOOR).log10()


def _scaled(logs: Tensor) -> Tensor:
    """Scale to the range Whisper was trained with, in its single precision."""
    return ((logs + 4.0) / 4.0).float()
