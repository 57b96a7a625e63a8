"""Example of a family of emotion models: a linear classifier of how loud a clip is and how much that changes.

It is no useful recogniser. It shows everything that a package needs: a declaration, a check, a strict load and a forward
pass. Its checkpoint is a folder with

    config.json          {"model_type": "loudness", "id2label": {"0": "calm", "1": "angry"}}
    model.safetensors    weight [num_labels, 2], bias [num_labels]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.models.checkpoints.weights import Checkpoint, check, load_state_dict, load_strict, shapes_only
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import PRECISIONS, Batch, Batching, Declaration, Output, seconds

_FRAME = 400
"""Samples of one frame: 25 ms."""
_BYTES_PER_S = 16_000 * 4 * 4
"""The padded waveform, its squares and two copies."""


class Loudness:
    """A checkpoint of this family, not loaded: `pipeline.models.families.protocol.Family`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from config.json alone."""
        return Declaration(
            inputs=("audio",),
            heads=(head_of(self._checkpoint),),
            embedding_widths={"audio_embedding": 2},
            batching=Batching.PADDED,
            min_samples=2 * _FRAME,
            bytes_per_s=_BYTES_PER_S,
            cpu_batch=8,
        )

    def check(self) -> None:
        """Check every tensor's name and shape, without memory for the weights."""
        check(self._checkpoint, self._build)

    def load(self, *, device: torch.device, precision: str) -> LoadedLoudness:
        """Load the weights strictly."""
        with shapes_only():
            network = self._build()
        state = load_state_dict(self._checkpoint, dtype=PRECISIONS[precision])
        load_strict(network, state, source=self._checkpoint.spec)
        return LoadedLoudness(self.declaration, network.eval().to(device))

    def _build(self) -> nn.Linear:
        return nn.Linear(2, len(head_of(self._checkpoint).names))


class LoadedLoudness:
    """The loaded model: `pipeline.models.families.protocol.EmotionModel`."""

    def __init__(self, declaration: Declaration, network: nn.Linear) -> None:
        self.declaration = declaration
        self._network = network

    def lengths(self, batch: Batch) -> Sequence[float]:
        """Return the seconds of each utterance, by which batches are formed."""
        return seconds(batch, self.declaration)

    def forward(self, batch: Batch) -> Output:
        """Compute one batch. Frames of padding are masked, so that no utterance changes another's result."""
        weight = self._network.weight
        frames = [len(waveform) // _FRAME for waveform in batch.waveforms]
        padded = torch.zeros(len(batch), max(frames), _FRAME)
        for row, waveform in enumerate(batch.waveforms):
            padded[row, : frames[row]] = torch.from_numpy(waveform[: frames[row] * _FRAME]).view(-1, _FRAME)
        levels = padded.to(weight.device).square().mean(dim=2).clamp(min=1e-10).log10()
        real = torch.arange(max(frames)) < torch.tensor(frames)[:, None]
        loudness = _statistics(levels, real.to(weight.device))
        logits = self._network(loudness.to(weight.dtype))
        return Output((logits.float(),), {"audio_embedding": loudness})


def _statistics(levels: Tensor, real: Tensor) -> Tensor:
    """Return the mean and standard deviation [B, 2] of levels [B, T] where `real` is True."""
    count = real.sum(dim=1)
    mean = levels.masked_fill(~real, 0.0).sum(dim=1) / count
    squares = (levels - mean[:, None]).masked_fill(~real, 0.0).square().sum(dim=1)
    return torch.stack((mean, (squares / count).sqrt()), dim=1)
