"""UMUTeam's speech models: Wav2Vec2-BERT alone, or fused with a frozen sentence encoder by mean, concat or multihead.

Costs at the published size: 2.8 GB of memory, and 2.1 s of one CPU thread for a clip of 3.5 s, nearly all of it the
encoder. Source: NLP-UMUTeam/umuteam-speech-emotion at 3859029, read as facts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch

from pipeline import SAMPLING_RATE
from pipeline.errors import ConfigError
from pipeline.models.checkpoints.configs import building, transformers_config
from pipeline.models.checkpoints.weights import Checkpoint, load_state_dict, load_strict, shapes_only
from pipeline.models.checkpoints.weights import check as check_weights
from pipeline.models.families.heads import head_of
from pipeline.models.families.protocol import PRECISIONS, Batch, Batching, Declaration, Output, seconds
from pipeline.models.networks.fbank import HOP, WINDOW, FilterBanks
from pipeline.models.networks.fusion import UNEXPECTED_ALLOWED, FusionModel, fused_width
from pipeline.models.networks.quantised import quantise
from pipeline.models.sentence import TextModel, check_text_model, text_width

MAX_MEL_FRAMES = 16_000
"""The reference's `max_length`: 160 s of 10 ms frames. Longer audio is cut, and the row is flagged."""

MIN_SAMPLES = WINDOW + HOP
"""Two mel frames: fewer make no model frame and have no variance for the normalisation."""

MAX_SAMPLES = WINDOW + MAX_MEL_FRAMES * HOP - 1
"""Largest number of samples that makes `MAX_MEL_FRAMES`."""

_NARROW, _NARROW_BATCH = 512, 8
"""Width below which a CPU uses batches of `_NARROW_BATCH`. At the published width of 1,024 one layer keeps a core
busy, and a batch gains nothing; at 96 it gains 1.25x."""
_FRAMES_PER_S = 50


class UMUTeam:
    """A checkpoint of one of the speech modes. See `protocol.Family`.

    Args:
        mode: audio, mean, concat or multihead.
        sentence_encoder: a BERT or RoBERTa whose [CLS] is fused; audio mode ignores it.
    Raises: ConfigError for a fusion mode without a sentence encoder.
    """

    def __init__(self, mode: str, fusion: Checkpoint, sentence_encoder: Checkpoint | None = None) -> None:
        if mode != "audio" and sentence_encoder is None:
            raise ConfigError(f"mode {mode} fuses audio with text and needs a sentence encoder")
        self._mode, self._fusion = mode, fusion
        self._encoder = sentence_encoder if mode != "audio" else None

    @cached_property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from configs alone."""
        head, config = head_of(self._fusion), self._config()
        audio = int(config.classifier_proj_size)
        widths = {"audio_embedding": audio, "fused_embedding": audio}
        if self._encoder is not None:
            text = text_width(self._encoder)
            fused = fused_width(self._mode, audio, text)
            widths = {"audio_embedding": audio, "text_embedding": text, "fused_embedding": fused}
        return Declaration(
            inputs=("audio",) if self._encoder is None else ("audio", "text"),
            heads=(head,),
            embedding_widths=widths,
            min_samples=MIN_SAMPLES,
            max_samples=MAX_SAMPLES,
            cpu_batch=_NARROW_BATCH if config.hidden_size < _NARROW else 1,
            precisions=tuple(PRECISIONS),
        )

    def check(self) -> None:
        """Check that `load` would succeed: configs, labels, tokenizers, every tensor's name and shape."""
        if self._encoder is not None:
            check_text_model(self._encoder, classify=False)
        self._feature_extractor()
        check_weights(self._fusion, self.build, allow_unexpected=UNEXPECTED_ALLOWED)

    def build(self) -> FusionModel:
        """Build the module on the default device, without loading weights."""
        config = self._config()
        config.num_labels = len(head_of(self._fusion).names)
        with building(f"model {self._fusion.spec}"):
            return FusionModel(config, self._mode, None if self._encoder is None else text_width(self._encoder))

    def load(self, *, device: torch.device, precision: str) -> LoadedUMUTeam:
        """Load the weights strictly. bf16 and fp16 apply to the audio encoder; the rest stays in fp32."""
        text = None if self._encoder is None else TextModel(self._encoder, classify=False, device=device)
        features = FilterBanks(self._feature_extractor(), max_frames=MAX_MEL_FRAMES, device=device)
        with shapes_only():
            network = self.build()
        state = load_state_dict(self._fusion)
        load_strict(network, state, source=self._fusion.spec, allow_unexpected=UNEXPECTED_ALLOWED)
        network.fold()
        network.set_precision(PRECISIONS[precision])
        network = network.eval().to(device)
        declaration = replace(self.declaration, bytes_per_s=_FRAMES_PER_S * network.bytes_per_frame)
        if precision == "int8":
            quantise(network.wav2vec2_bert)
            declaration = replace(declaration, batching=Batching.ALONE)
        return LoadedUMUTeam(declaration, network, features, text)

    def _config(self) -> Any:  # noqa: ANN401 - transformers ships no types
        """Return the `Wav2Vec2BertConfig`. Raises: ConfigError for another model type."""
        model_type = self._fusion.read_json("config.json").get("model_type")
        if model_type != "wav2vec2-bert":
            raise ConfigError(
                f"model {self._fusion.spec} is of type {model_type!r}; mode {self._mode} needs wav2vec2-bert"
            )
        return transformers_config(self._fusion)

    def _feature_extractor(self) -> Any:  # noqa: ANN401 - as above
        return seamless_extractor(self._fusion, self._config().feature_projection_input_dim)


def seamless_extractor(checkpoint: Checkpoint, input_width: int) -> Any:  # noqa: ANN401 - as above
    """Return a checkpoint's `SeamlessM4TFeatureExtractor`. Raises: ConfigError when it does not fit the model."""
    from transformers import SeamlessM4TFeatureExtractor

    try:
        extractor = SeamlessM4TFeatureExtractor.from_pretrained(checkpoint.directory, local_files_only=True)
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"the feature extractor of model {checkpoint.spec} cannot be loaded: {error}") from error
    width = extractor.num_mel_bins * extractor.stride
    if width != input_width or extractor.sampling_rate != SAMPLING_RATE:
        raise ConfigError(
            f"the feature extractor of model {checkpoint.spec} makes frames of {width} values at "
            f"{extractor.sampling_rate} Hz; {input_width} at {SAMPLING_RATE} Hz are needed"
        )
    return extractor


class LoadedUMUTeam:
    """A loaded model of one of the speech modes. See `protocol.EmotionModel`."""

    def __init__(
        self, declaration: Declaration, network: FusionModel, features: FilterBanks, text: TextModel | None
    ) -> None:
        self.declaration = declaration
        self.network, self.features, self.text = network, features, text

    def lengths(self, batch: Batch) -> Sequence[float]:
        """Return the seconds of each utterance that the model uses."""
        return seconds(batch, self.declaration)

    def forward(self, batch: Batch) -> Output:
        """Compute one batch. The sentence encoder runs on the texts of the batch first."""
        embeddings, truncated, vectors = {}, (), None
        features, mask = self.features(batch.waveforms)
        if self.text is not None:
            read = self.text.run(batch.texts)
            vectors = torch.from_numpy(read.embedding).to(features.device)
            embeddings, truncated = {"text_embedding": vectors}, tuple(read.truncated.tolist())
        output = self.network(features, mask, vectors)
        embeddings |= {"audio_embedding": output.audio_embedding, "fused_embedding": output.fused_embedding}
        return Output((output.logits,), embeddings, truncated)
