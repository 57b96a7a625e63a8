"""Whisper's encoder on windows of 30 s, or on the utterance alone, completed with the encoder's output for silence.

Whisper was trained on windows of 30 s, so its decoder needs the output of 30 s: with the utterance's frames alone it
repeats the text until it is stopped. A clip of 4 s, however, is followed by 26 s of frames with one constant value, and
their output depends little on the clip. A short window therefore encodes the utterance and at least a second of the
silence that follows, and takes the rest from the output of a whole window of silence, at the same positions. In noise the
decoder still repeats some texts: the transcriber encodes those again, whole. The error rates and speeds of both windows
are in docs/performance.md, asr_window.

Not measured on a GPU. The output stays on the device there: CTranslate2 and torch exchange it through
`__cuda_array_interface__`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.config.settings import AsrWindow

if TYPE_CHECKING:
    from torch import Tensor

WINDOW_S = 30
"""Length of Whisper's window in seconds. Source: Radford et al. 2022, section 2.2."""
_MARGIN_S = 1.0
"""Least silence after an utterance in a short window. From 0.5 to 4 s the error rate is the same within its
uncertainty."""
_STEP_S = 0.5
"""Steps of the length of a short window. It depends on the utterance alone, so a batch holds windows of one length."""
_LEVEL_STEP = 0.25
"""Steps of the value of silent frames, which is between -1.5 and 0.5; each needs one window of 30 s, once."""


class Encoder:
    """The encoder of one loaded model.

    Args:
        whisper: faster-whisper's `WhisperModel`.
        device: cpu or cuda.
        window: "full" or "short".
    """

    def __init__(self, whisper: Any, *, device: str, window: AsrWindow) -> None:  # noqa: ANN401 - faster-whisper ships no types
        from pipeline.models.networks.logmel import LogMel

        self._whisper = whisper
        self._device = device
        self._short = window == "short"
        self._log_mel = LogMel(whisper.feature_extractor, device=device)
        self._silences: dict[int, Tensor] = {}

    def window_s(self, num_samples: int) -> float:
        """Return the seconds that are encoded for an utterance of at most 30 s."""
        if not self._short:
            return WINDOW_S
        steps = math.ceil((num_samples / SAMPLING_RATE + _MARGIN_S) / _STEP_S)
        return min(steps * _STEP_S, WINDOW_S)

    def __call__(self, waveforms: Sequence[NDArray[np.float32]]) -> Any:  # noqa: ANN401 - as above
        """Return the output for 30 s of each utterance, a StorageView [B, 1500, D] on the model's device.

        The waveforms are padded, not the frames: the log-mel floor of silence is about -1.08, and the frames of 0.0
        that faster-whisper fills in differ from the reference system's input.

        Args:
            waveforms: float32 [num_samples] at 16 kHz, all with the same `window_s`.
        """
        share = max(self.window_s(len(waveform)) for waveform in waveforms) / WINDOW_S
        features = self._log_mel(waveforms, round(share * self._log_mel.num_frames))
        encoded = self._run(features)
        return encoded if share == 1 else self._completed(encoded, features)

    def rows(self, encoded: Any, rows: Sequence[int]) -> Any:  # noqa: ANN401 - as above
        """Return the output for some of the utterances."""
        return encoded if len(rows) == encoded.shape[0] else _view(self._tensor(encoded)[list(rows)].contiguous())

    def _run(self, features: Tensor) -> Any:  # noqa: ANN401 - as above
        return self._whisper.model.encode(_view(features))

    def _completed(self, encoded: Any, features: Tensor) -> Any:  # noqa: ANN401 - as above
        """Append silence of each utterance's own level up to 30 s."""
        import torch

        clips = self._tensor(encoded)
        levels = (features[:, 0, -1] / _LEVEL_STEP).round().int().tolist()
        silences = torch.stack([self._silence(level, features)[clips.shape[1] :] for level in levels])
        return _view(torch.cat([clips, silences], dim=1))

    def _silence(self, level: int, like: Tensor) -> Tensor:
        """Return the output [1500, D] for a window of silent frames; `level` counts steps of their value."""
        if level not in self._silences:
            frames = like.new_full((1, like.shape[1], self._log_mel.num_frames), level * _LEVEL_STEP)
            self._silences[level] = self._tensor(self._run(frames))[0]
        return self._silences[level]

    def _tensor(self, view: Any) -> Tensor:  # noqa: ANN401 - as above
        """Return a StorageView as a tensor that shares its memory; bfloat16, which it cannot share, as float32."""
        import torch
        from ctranslate2 import DataType

        if view.dtype == DataType.bfloat16:
            view = view.to(DataType.float32)
        return (
            torch.as_tensor(view, device=self._device) if self._device != "cpu" else torch.from_numpy(np.asarray(view))
        )


def _view(tensor: Tensor) -> Any:  # noqa: ANN401 - as above
    """Return a tensor as a StorageView that shares its memory, complete, so that any stream may read it."""
    import torch
    from ctranslate2 import StorageView

    if tensor.is_cuda:
        torch.cuda.current_stream(tensor.device).synchronize()
    return StorageView.from_array(tensor if tensor.is_cuda else tensor.numpy())
