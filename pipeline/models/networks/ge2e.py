"""The GE2E speaker encoder: three LSTM layers over mel powers, whose last state becomes a unit vector.

Source: Wan et al. 2018, "Generalized End-to-End Loss for Speaker Verification"; the sizes are those of Resemblyzer's weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_MELS, _WIDTH, _LAYERS = 40, 256, 3
_FFT, HOP = 400, 160
"""Samples of an analysis window and between two of them, at 16 kHz."""
WINDOW_FRAMES = 160
"""Frames of an embedding, 1.6 s, as in training."""
_WINDOWS_AT_ONCE = 256


class Ge2e(nn.Module):
    """Encoder of one window, [B, 160, 40] mel powers to [B, 256] unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(_MELS, _WIDTH, _LAYERS, batch_first=True)
        self.linear = nn.Linear(_WIDTH, _WIDTH)

    def forward(self, mels: Tensor) -> Tensor:
        """Return unit vectors [B, 256] of mel powers [B, T, 40]."""
        _, (states, _) = self.lstm(mels)
        return nn.functional.normalize(torch.relu(self.linear(states[-1])))


class SpeakerEncoder:
    """Embeddings of windows of 1.6 s.

    Args:
        state: the network's tensors by name. Others are ignored.
    Raises: KeyError, RuntimeError for tensors that are missing or of other sizes.
    """

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        from faster_whisper.feature_extractor import FeatureExtractor

        self._network = Ge2e()
        self._network.load_state_dict({name: state[name] for name in self._network.state_dict()})
        self._network.eval()
        # Slaney's filters, area-normalised, are Whisper's too
        self._filters = torch.from_numpy(np.asarray(FeatureExtractor(_MELS, n_fft=_FFT).mel_filters, np.float32)).T
        self._window = torch.hann_window(_FFT)

    @torch.inference_mode()
    def embed(self, waveform: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float32]:
        """Embed windows of a waveform.

        Args:
            waveform: float32 [num_samples] at 16 kHz, of the loudness of the training data.
            starts: first samples of the windows; a window beyond the end is filled with zeros.
        Returns: float32 [N, 256], unit vectors.
        """
        length = WINDOW_FRAMES * HOP
        embedded = [np.empty((0, _WIDTH), np.float32)]
        for first in range(0, len(starts), _WINDOWS_AT_ONCE):
            some = starts[first : first + _WINDOWS_AT_ONCE]
            pieces = np.zeros((len(some), length), np.float32)
            for row, start in enumerate(some):
                piece = waveform[start : start + length]
                pieces[row, : len(piece)] = piece
            embedded.append(self._network(self._mels(torch.from_numpy(pieces))).numpy())
        return np.concatenate(embedded)

    def _mels(self, waveforms: Tensor) -> Tensor:
        spectrum = torch.stft(
            waveforms, _FFT, HOP, window=self._window, center=True, pad_mode="constant", return_complex=True
        )
        powers = spectrum.real.square() + spectrum.imag.square()
        return (powers[:, :, :WINDOW_FRAMES].transpose(1, 2) @ self._filters).contiguous()
