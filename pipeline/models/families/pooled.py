"""Speech encoders with a pooled head of two layers: audEERING's dimensions, soxan's and ehcalabres' classes.

Stock transformers takes these for its own audio classification and fills the head with random numbers. Sources: the
model card of audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim (`classifier.dense`, `classifier.out_proj`, outputs
of about 0 to 1); github.com/m3hrdadfi/soxan (the same names, `pooling_mode`). ehcalabres' checkpoint has
`classifier.dense` and `classifier.output`; its activation is not published, and tanh is assumed as in soxan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.configs import transformers_config
from pipeline.models.checkpoints.weights import Checkpoint, load_state_dict, load_strict, without_values
from pipeline.models.checkpoints.weights import check as check_weights
from pipeline.models.families import waveforms
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import PRECISIONS, Declaration, Head, HeadKind
from pipeline.models.families.waveforms import UNEXPECTED, LoadedWaveform
from pipeline.models.networks.pooled import POOLINGS, PooledClassifier

_ARCHITECTURE = "ForSpeechClassification"
_TASKS = ("wav2vec2_clf", "wav2vec2_reg")
"""`finetuning_task` of soxan's and audEERING's configs."""
_KNOWN = ("ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition",)
"""Repositories whose config may name a stock class."""


def is_pooled(checkpoint: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Return whether a config describes this family."""
    architectures = config.get("architectures") or [""]
    return (
        str(architectures[0]).endswith(_ARCHITECTURE)
        or config.get("finetuning_task") in _TASKS
        or "pooling_mode" in config
        or checkpoint.spec.partition("@")[0] in _KNOWN
    )


class PooledHeads:
    """A checkpoint of this family, of one of `waveforms.ENCODERS`. See `protocol.Family`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    @cached_property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from configs alone."""
        config = self._config
        head = with_unit_range(head_of(self._checkpoint))
        return waveforms.declared(config, head, int(config.hidden_size))

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
        declaration = replace(self.declaration, bytes_per_s=waveforms.bytes_per_s(self._config, dtype))
        features = waveforms.raw_features(waveforms.normalised_by(self._extractor), waveforms.MAX_SAMPLES)
        return LoadedWaveform(declaration, network.to(device, dtype).eval(), features)

    @cached_property
    def _config(self) -> Any:  # noqa: ANN401 - transformers ships no types
        """The encoder's transformers config, without SpecAugment."""
        config = transformers_config(self._checkpoint)
        config.mask_time_prob = config.mask_feature_prob = 0.0
        return config

    @cached_property
    def _extractor(self) -> Any:  # noqa: ANN401 - as above
        from transformers import Wav2Vec2FeatureExtractor

        return waveforms.extractor(self._checkpoint, Wav2Vec2FeatureExtractor)

    def _build(self) -> nn.Module:
        """Build the network on the default device, without loading weights."""
        pooling = self._checkpoint.read_json("config.json").get("pooling_mode") or "mean"
        if pooling not in POOLINGS:
            raise ConfigError(
                f"model {self._checkpoint.spec} has pooling_mode {pooling!r} in its config.json; known are {', '.join(POOLINGS)}"
            )
        encoder = waveforms.build_encoder(self._config, self._checkpoint.spec)
        return PooledClassifier(encoder, len(head_of(self._checkpoint).names), pooling)


def with_unit_range(head: Head) -> Head:
    """Return a head of dimensions with the range of 0 to 1 in which models trained on MSP-Podcast state them."""
    return replace(head, range=(0.0, 1.0)) if head.kind is HeadKind.REGRESSION else head
