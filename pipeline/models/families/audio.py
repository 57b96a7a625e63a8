"""transformers' audio classification: speech encoders and spectrogram models with a head on the mean of their frames.

The networks are transformers' own classes, built from the config and loaded strictly; transformers itself would fill a
head that the checkpoint lacks with random numbers and log a line.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.configs import building, transformers_config
from pipeline.models.checkpoints.weights import Checkpoint, load_state_dict, load_strict, without_values
from pipeline.models.checkpoints.weights import check as check_weights
from pipeline.models.families import waveforms
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import PRECISIONS, Declaration
from pipeline.models.families.umuteam import MAX_MEL_FRAMES, seamless_extractor
from pipeline.models.families.umuteam import MAX_SAMPLES as MAX_MEL_SAMPLES
from pipeline.models.families.umuteam import MIN_SAMPLES as MIN_MEL_SAMPLES
from pipeline.models.families.waveforms import UNEXPECTED, Features, LoadedWaveform
from pipeline.models.networks.fbank import WINDOW, FilterBanks

SPECTROGRAMS = ("wav2vec2-bert", "whisper", "audio-spectrogram-transformer")
"""Model types that take filter banks or spectrograms."""
TYPES = (*waveforms.ENCODERS, *SPECTROGRAMS)
"""Model types of this family."""


class AudioClassification:
    """A checkpoint of one of `TYPES`. See `protocol.Family`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @cached_property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from configs alone."""
        config, kind = self._config, self._config.model_type
        width = int(config.hidden_size if kind == "audio-spectrogram-transformer" else config.classifier_proj_size)
        head = head_of(self._checkpoint)
        if kind in waveforms.ENCODERS:
            return waveforms.declared(config, head, width)
        widths = {"audio_embedding": width, "fused_embedding": width}
        declared = Declaration(inputs=("audio",), heads=(head,), embedding_widths=widths)
        if kind == "wav2vec2-bert":
            return replace(declared, min_samples=MIN_MEL_SAMPLES, max_samples=MAX_MEL_SAMPLES)
        if kind == "whisper":
            return replace(declared, max_samples=int(self._extractor.n_samples))
        longest = waveforms.window_samples(int(config.max_length))
        return replace(declared, min_samples=WINDOW, max_samples=longest)

    def check(self) -> None:
        """Check that `load` would succeed: config, feature extractor, every tensor's name and shape."""
        head_of(self._checkpoint)
        _ = self._extractor
        check_weights(self._checkpoint, self._build, allow_unexpected=UNEXPECTED)

    def load(self, *, device: torch.device, precision: str) -> LoadedWaveform:
        """Load the weights strictly."""
        dtype = PRECISIONS[precision]
        with without_values():
            network = self._build()
        state = load_state_dict(self._checkpoint, dtype=dtype)
        load_strict(network, state, source=self._checkpoint.spec, allow_unexpected=UNEXPECTED)
        network = network.to(device, dtype).eval()
        declaration = replace(self.declaration, bytes_per_s=self._bytes_per_s(dtype))
        return LoadedWaveform(
            declaration, _Stock(network), self._features(device), fixed=self._config.model_type in SPECTROGRAMS[1:]
        )

    @cached_property
    def _config(self) -> Any:  # noqa: ANN401 - transformers ships no types
        """The transformers config, without SpecAugment."""
        config = transformers_config(self._checkpoint)
        config.mask_time_prob = config.mask_feature_prob = 0.0
        return config

    def _build(self) -> nn.Module:
        """Build the network on the default device, without loading weights."""
        from transformers import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING

        with building(f"model {self._checkpoint.spec}"):
            network: nn.Module = MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING[type(self._config)](self._config)
        return network

    @cached_property
    def _extractor(self) -> Any:  # noqa: ANN401 - as above
        """The feature extractor that preprocessor_config.json describes."""
        from transformers import ASTFeatureExtractor, Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

        config = self._config
        if config.model_type == "wav2vec2-bert":
            return seamless_extractor(self._checkpoint, config.feature_projection_input_dim)
        kinds = {"whisper": WhisperFeatureExtractor, "audio-spectrogram-transformer": ASTFeatureExtractor}
        loaded = waveforms.extractor(self._checkpoint, kinds.get(config.model_type, Wav2Vec2FeatureExtractor))
        bands = getattr(config, "num_mel_bins", None)
        made = getattr(loaded, "num_mel_bins", getattr(loaded, "feature_size", None))
        if config.model_type in kinds and bands != made:
            raise ConfigError(
                f"the feature extractor of model {self._checkpoint.spec} makes {made} mel bands; its config needs {bands}"
            )
        return loaded

    def _features(self, device: torch.device) -> Features:
        kind, longest = self._config.model_type, self.declaration.max_samples or 0
        if kind == "wav2vec2-bert":
            banks = FilterBanks(self._extractor, max_frames=MAX_MEL_FRAMES, device=device)
            return lambda clips: dict(zip(("input_features", "attention_mask"), banks(clips), strict=True))
        if kind in SPECTROGRAMS:
            name = "input_features" if kind == "whisper" else "input_values"
            return waveforms.fixed_features(self._extractor, name, longest)
        return waveforms.raw_features(waveforms.normalised_by(self._extractor), longest)

    def _bytes_per_s(self, dtype: torch.dtype) -> float:
        config = self._config
        if config.model_type in waveforms.ENCODERS:
            return waveforms.bytes_per_s(config, dtype)
        return float(dtype.itemsize * 100 * config.hidden_size * 20)  # at most 100 frames a second


class _Stock(nn.Module):
    """One of transformers' audio classifiers as a network of logits and pooled frames."""

    def __init__(self, network: Any) -> None:  # noqa: ANN401 - as above
        super().__init__()
        self.network = network
        self._pooled: list[Tensor] = []
        network.classifier.register_forward_pre_hook(lambda _, inputs: self._pooled.append(inputs[0]))

    def forward(self, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and the classifier's input, which is the mean over the clip's frames."""
        self._pooled.clear()
        logits = self.network(**inputs).logits
        (pooled,) = self._pooled
        return logits, pooled
