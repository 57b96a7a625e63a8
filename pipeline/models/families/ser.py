"""Baselines of the Odyssey 2024 challenge (`model_type: ser`): WavLM, attentive statistics pooling and an MLP.

Their repositories contain code, which is not run: the network is rebuilt here. Sources, read as facts: the model cards
of 3loi/SER-Odyssey-Baseline-WavLM-Categorical and -Multi-Attributes (waveforms standardised by `mean` and `std` of the
config, outputs in `id2label`, dimensions of about 0 to 1); github.com/msplabresearch/MSP-Podcast_Challenge for the
network. The config names the encoder (`ssl_type`) without its config, so that of microsoft/wavlm-large is given here.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline import SAMPLING_RATE
from pipeline.errors import ConfigError
from pipeline.models.checkpoints.weights import Checkpoint, load_state_dict, load_strict, without_values
from pipeline.models.checkpoints.weights import check as check_weights
from pipeline.models.families import waveforms
from pipeline.models.families.heads import head_of
from pipeline.models.families.pooled import with_unit_range
from pipeline.models.families.protocol import PRECISIONS, Declaration, Head
from pipeline.models.families.waveforms import UNEXPECTED, LoadedWaveform
from pipeline.models.networks.pooled import StatisticsClassifier

MODEL_TYPE = "ser"
_ENCODER = "wavlm-large"
_LEAST_DEVIATION = 1e-6
"""Added to `std`, as in the model cards."""


class OdysseyBaseline:
    """A checkpoint of this family. See `protocol.Family`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._given = checkpoint.read_json("config.json")

    @cached_property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from the config alone."""
        return waveforms.declared(self._config, self._head, 2 * int(self._config.hidden_size))

    def check(self) -> None:
        """Check that `load` would succeed: config, every tensor's name and shape."""
        _ = self._standards
        check_weights(self._checkpoint, self._build, allow_unexpected=UNEXPECTED)

    def load(self, *, device: torch.device, precision: str) -> LoadedWaveform:
        """Load the weights strictly."""
        dtype = PRECISIONS[precision]
        mean, deviation = self._standards
        with without_values():
            network = self._build()
        state = load_state_dict(self._checkpoint, dtype=dtype)
        load_strict(network, state, source=self._checkpoint.spec, allow_unexpected=UNEXPECTED)
        declaration = replace(self.declaration, bytes_per_s=waveforms.bytes_per_s(self._config, dtype))

        def one(waveform: NDArray[np.float32]) -> NDArray[np.float32]:
            values: NDArray[np.float32] = (waveform - np.float32(mean)) / np.float32(deviation + _LEAST_DEVIATION)
            return values

        features = waveforms.raw_features(one, waveforms.MAX_SAMPLES)
        return LoadedWaveform(declaration, network.to(device, dtype).eval(), features)

    @cached_property
    def _head(self) -> Head:
        head = with_unit_range(head_of(self._checkpoint))
        if self._given.get("num_classes") != len(head.names):
            raise ConfigError(
                f"config.json of model {self._checkpoint.spec} has num_classes {self._given.get('num_classes')!r} and names "
                f"{len(head.names)} outputs in id2label; they must agree"
            )
        return head

    @cached_property
    def _standards(self) -> tuple[float, float]:
        """Mean and standard deviation of the training corpus."""
        values = self._given.get("mean"), self._given.get("std")
        mean, deviation = values
        if not all(isinstance(value, int | float) for value in values) or not deviation:
            raise ConfigError(f"config.json of model {self._checkpoint.spec} has mean {mean!r} and std {deviation!r}")
        return float(mean or 0.0), float(deviation)

    @cached_property
    def _config(self) -> Any:  # noqa: ANN401 - transformers ships no types
        """The encoder's config: WavLM large, in the sizes that config.json gives."""
        from transformers import WavLMConfig

        given, spec = self._given, self._checkpoint.spec
        encoder, rate = str(given.get("ssl_type")).rpartition("/")[2], given.get("sampling_rate", SAMPLING_RATE)
        if encoder != _ENCODER or rate != SAMPLING_RATE:
            raise ConfigError(
                f"model {spec} has the encoder {encoder} at {rate} Hz; supported is {_ENCODER} at {SAMPLING_RATE} Hz"
            )
        sizes = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "classifier_hidden_layers": 1}
        named = {key: given.get(key, size) for key, size in sizes.items()}
        if not all(isinstance(size, int) and size > 0 for size in named.values()):
            raise ConfigError(f"config.json of model {spec} has sizes that are no positive numbers: {named}")
        return WavLMConfig(
            **named,
            intermediate_size=4 * named["hidden_size"],
            feat_extract_norm="layer",
            do_stable_layer_norm=True,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
        )

    def _build(self) -> nn.Module:
        """Build the network on the default device, without loading weights."""
        encoder = waveforms.build_encoder(self._config, self._checkpoint.spec)
        return StatisticsClassifier(encoder, self._config.classifier_hidden_layers, len(self._head.names))
