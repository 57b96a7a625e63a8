"""Waveforms as inputs of transformers' speech encoders: features, padding, limits and memory, by model type.

Which types may be padded was measured on random checkpoints of each (tests/models/families): with a mask, padding
changes wav2vec2, hubert, wavlm and unispeech-sat by 1e-8 with feature-extractor norm `layer`, and by 6e-4 to 5e-3 with
`group`, which normalises over the padding. data2vec-audio, wav2vec2-conformer, sew and sew-d have convolutions that
cross from padding into the clip with either norm.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline import SAMPLING_RATE
from pipeline.errors import ConfigError
from pipeline.models.checkpoints.configs import building
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.models.families.protocol import Batch, Batching, Declaration, Head, Output, seconds
from pipeline.models.networks.fbank import HOP, WINDOW

Features = Callable[[Sequence[NDArray[np.float32]]], dict[str, Tensor]]
"""Computation of a network's keyword arguments for a batch of waveforms."""

ENCODERS = (
    *("wav2vec2", "hubert", "wavlm", "unispeech-sat"),
    *("data2vec-audio", "wav2vec2-conformer", "sew", "sew-d"),
)
"""Model types that take raw waveforms."""
_PADDABLE = ENCODERS[:4]

MAX_SAMPLES = 160 * SAMPLING_RATE
"""Limit of models without one of their own, as in UMUTeam's: memory of WavLM's attention grows with the square."""

_ROWS_PER_FRAME = 20
"""Vectors of the hidden width kept for a frame within one layer: attention, feed-forward of four widths, residuals."""
_COPIES = 3
"""Copies of the widest convolution's output: before and after normalisation, and after the activation."""
_MATRICES = {"wavlm": 5, "wav2vec2-conformer": 4, "sew-d": 6}
"""Matrices over all pairs of frames that a layer keeps for each head. The other types keep none."""
_PAIRS_S = 30
"""Length of the clips for which those matrices, which grow with the square of the length, are estimated."""

UNEXPECTED = ("*masked_spec_embed",)
"""Tensors that a checkpoint may also contain: SpecAugment's vector is used only in training."""


def declared(config: Any, head: Head, width: int) -> Declaration:  # noqa: ANN401 - transformers ships no types
    """Return the declaration of a raw-waveform encoder with one head on pooled frames of a width."""
    return Declaration(
        inputs=("audio",),
        heads=(head,),
        embedding_widths={"audio_embedding": width, "fused_embedding": width},
        batching=batching(config),
        min_samples=min_samples(config),
        max_samples=MAX_SAMPLES,
    )


def build_encoder(config: Any, spec: str) -> Any:  # noqa: ANN401 - as above
    """Build transformers' encoder of a config on the default device. Raises: ConfigError when it cannot be built."""
    from transformers import MODEL_MAPPING

    with building(f"model {spec}"):
        return MODEL_MAPPING[type(config)](config)


def batching(config: Any) -> Batching:  # noqa: ANN401 - as above
    """Return the batching policy of a raw-waveform encoder."""
    padded = config.model_type in _PADDABLE and config.feat_extract_norm == "layer"
    return Batching.PADDED if padded else Batching.EQUAL


def min_samples(config: Any) -> int:  # noqa: ANN401 - as above
    """Return the samples of which a raw-waveform encoder makes one frame."""
    samples = int(getattr(config, "squeeze_factor", 1))
    for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
        samples = (samples - 1) * stride + kernel
    return samples


def bytes_per_s(config: Any, dtype: torch.dtype) -> float:  # noqa: ANN401 - as above
    """Estimate the peak memory of one padded second in a raw-waveform encoder.

    The estimate for wav2vec2 large is 23.8 MB (23.1 measured), and for WavLM large at 30 s 28.1 MB (25.6 measured).
    """
    rate, widest = float(SAMPLING_RATE), 0.0
    for width, stride in zip(config.conv_dim, config.conv_stride, strict=True):
        rate /= stride
        widest = max(widest, rate * width)
    frames = rate / getattr(config, "squeeze_factor", 1)
    layers = config.num_hidden_layers + 1 if config.use_weighted_layer_sum else 0
    hidden = rate * config.hidden_size * (_ROWS_PER_FRAME + 2 * layers)
    pairs = _MATRICES.get(config.model_type, 0) * config.num_attention_heads * frames * frames * _PAIRS_S
    return float(dtype.itemsize * (hidden + max(_COPIES * widest, pairs)))


def extractor(checkpoint: Checkpoint, kind: type) -> Any:  # noqa: ANN401 - as above
    """Load a checkpoint's feature extractor.

    Raises: ConfigError when its file is missing or damaged, is of another kind, or is for another sampling rate.
    """
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((checkpoint.directory / name).is_file() for name in names):
        raise ConfigError(
            f"model {checkpoint.spec} has no feature extractor: {names[0]} is not in {checkpoint.directory}"
        )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="At least one mel filter")  # AST's published 128 bands
            loaded: Any = kind.from_pretrained(checkpoint.directory, local_files_only=True)  # type: ignore[attr-defined]
    except (ValueError, TypeError, OSError, KeyError) as error:
        raise ConfigError(f"the feature extractor of model {checkpoint.spec} cannot be loaded: {error}") from error
    given = getattr(loaded, "feature_extractor_type", None) or kind.__name__
    if given != kind.__name__ or loaded.sampling_rate != SAMPLING_RATE:
        raise ConfigError(
            f"the feature extractor of model {checkpoint.spec} is {given} at {loaded.sampling_rate} Hz; "
            f"{kind.__name__} at {SAMPLING_RATE} Hz is needed"
        )
    return loaded


def raw_features(one: Callable[[NDArray[np.float32]], NDArray[np.float32]], max_samples: int) -> Features:
    """Return the features of raw waveforms: each clip cut and normalised by `one`, zeros and a mask where padded."""

    def features(waveforms: Sequence[NDArray[np.float32]]) -> dict[str, Tensor]:
        values = [torch.from_numpy(one(waveform[:max_samples])) for waveform in waveforms]
        longest = max(len(value) for value in values)
        padded = torch.zeros(len(values), longest)
        mask = torch.zeros(len(values), longest, dtype=torch.long)
        for row, value in enumerate(values):
            padded[row, : len(value)] = value
            mask[row, : len(value)] = 1
        return {"input_values": padded} if bool(mask.all()) else {"input_values": padded, "attention_mask": mask}

    return features


def fixed_features(loaded: Any, name: str, max_samples: int) -> Features:  # noqa: ANN401 - as above
    """Return the features of a window of one length, to which each clip is cut or padded on its own."""

    def features(waveforms: Sequence[NDArray[np.float32]]) -> dict[str, Tensor]:
        made = [
            loaded(waveform[:max_samples], sampling_rate=SAMPLING_RATE, return_tensors="pt")[name]
            for waveform in waveforms
        ]
        return {name: torch.cat(made)}

    return features


def normalised_by(loaded: Any) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:  # noqa: ANN401 - as above
    """Return the normalisation of one clip that a `Wav2Vec2FeatureExtractor` is configured for."""

    def one(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
        values: NDArray[np.float32] = loaded(waveform, sampling_rate=SAMPLING_RATE, return_tensors="np")[
            "input_values"
        ][0]
        return values.astype(np.float32, copy=False)

    return one


def window_samples(frames: int) -> int:
    """Return the largest number of samples that makes this many 10 ms Kaldi frames."""
    return WINDOW + frames * HOP - 1


class LoadedWaveform:
    """A loaded network over waveforms. See `protocol.EmotionModel`.

    Args:
        network: returns logits [B, num_labels] and pooled frames [B, D] for the arguments that `features` returns.
        fixed: True for a network whose input is one window of `max_samples`, whatever the clip's length.
    """

    def __init__(
        self, declaration: Declaration, network: nn.Module, features: Features, *, fixed: bool = False
    ) -> None:
        self.declaration = declaration
        self.network, self._features, self._fixed = network, features, fixed

    def lengths(self, batch: Batch) -> Sequence[float]:
        """Return the seconds of each utterance after padding."""
        if self._fixed and self.declaration.max_samples:
            return [self.declaration.max_samples / SAMPLING_RATE] * len(batch)
        return seconds(batch, self.declaration)

    def forward(self, batch: Batch) -> Output:
        """Compute one batch. The embedding is the clip's pooled frames, which the head takes."""
        first = next(self.network.parameters())
        inputs = {
            name: values.to(first.device, first.dtype if values.is_floating_point() else None)
            for name, values in self._features(batch.waveforms).items()
        }
        with warnings.catch_warnings():
            # WavLM in transformers 5.23 passes a boolean mask beside its float position bias
            warnings.filterwarnings("ignore", message="Support for mismatched key_padding_mask")
            logits, pooled = self.network(**inputs)
        return Output((logits,), {"audio_embedding": pooled, "fused_embedding": pooled})
