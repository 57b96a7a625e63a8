"""Protocol of an emotion model: a declaration of inputs and outputs, and a forward pass over one batch.

`pipeline.models.runner` forms the batches, handles shortages of memory, and applies softmax and sigmoid. A model
computes one batch and knows nothing of shards, labels' meaning, files or Ray.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import SAMPLING_RATE
from pipeline.errors import ConfigError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.float32}
"""Types in which weights are loaded; int8 rounds the matrices of UMUTeam's audio encoder afterwards."""


class HeadKind(StrEnum):
    """Meaning of a head's outputs: one of several classes, independent classes, or values on a scale."""

    SOFTMAX = "softmax"
    SIGMOID = "sigmoid"
    REGRESSION = "regression"


class Batching(StrEnum):
    """Utterances that may share a forward pass without a change of their results.

    - `PADDED`: any; the model masks its padding (differences of 3e-8 with feature-extractor norm `layer`).
    - `EQUAL`: those of exactly one length, because padding changes results even under a mask (by 2e-2 with
      feature-extractor norm `group`).
    - `ALONE`: one at a time.
    """

    PADDED = "padded"
    EQUAL = "equal"
    ALONE = "alone"


@dataclass(frozen=True, slots=True)
class Head:
    """One group of outputs.

    Attributes:
        kind: meaning of the outputs.
        names: names of the outputs as in the checkpoint: classes, or dimensions such as `arousal`.
        range: the model's own scale of a regression, lowest and highest value; None when it states none.
    """

    kind: HeadKind
    names: tuple[str, ...]
    range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Declaration:
    """Description of a model, known before its weights are loaded.

    Attributes:
        inputs: `audio`, `text` or both.
        heads: the heads, in the order of `Output.logits`.
        embedding_widths: embedding columns with their widths, in `schema.EMBEDDINGS` order.
        batching: utterances that may share a pass.
        min_samples: samples at 16 kHz below which the model cannot run.
        max_samples: samples that the model uses; it ignores the rest, and the row is flagged. None for no limit.
        bytes_per_s: peak memory of one padded second of audio in a pass, without the weights; 0 for a text model, and
            before loading where it depends on the precision.
        cpu_batch: utterances in one pass on a CPU; more than 1 pays for narrow models only.
        precisions: those of `PRECISIONS` in which the model can be loaded.
    """

    inputs: tuple[str, ...]
    heads: tuple[Head, ...]
    embedding_widths: Mapping[str, int]
    batching: Batching = Batching.PADDED
    min_samples: int = 1
    max_samples: int | None = None
    bytes_per_s: float = 0.0
    cpu_batch: int = 1
    precisions: tuple[str, ...] = ("fp32", "bf16", "fp16")

    @property
    def max_duration_s(self) -> float | None:
        """Seconds of audio that the model uses; None for no limit."""
        return None if self.max_samples is None else self.max_samples / SAMPLING_RATE


@dataclass(frozen=True, slots=True)
class Batch:
    """Utterances of one forward pass.

    Attributes:
        waveforms: float32 [num_samples] at 16 kHz for each utterance, of `min_samples` or more; empty for a model
            without audio.
        texts: a text for each utterance, possibly empty; empty for a model without text.
    """

    waveforms: Sequence[NDArray[np.float32]] = ()
    texts: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.waveforms) or len(self.texts)

    def take(self, indices: Sequence[int]) -> Batch:
        """Return the utterances at the indices."""
        waveforms = [self.waveforms[i] for i in indices] if self.waveforms else ()
        return Batch(waveforms, [self.texts[i] for i in indices] if self.texts else ())


@dataclass(frozen=True, slots=True)
class Output:
    """Results of one forward pass, in the order of the batch.

    Attributes:
        logits: float32 [B, len(head.names)] for each head: before softmax or sigmoid, or the values of a regression.
        embeddings: float32 [B, width] for each declared embedding column.
        text_truncated: for each utterance, True when the end of its text was ignored; empty for a model without text.
    """

    logits: tuple[Tensor, ...]
    embeddings: Mapping[str, Tensor]
    text_truncated: Sequence[bool] = ()


class EmotionModel(Protocol):
    """A loaded model."""

    @property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits."""

    def lengths(self, batch: Batch) -> Sequence[float]:
        """Return the length of each utterance after the model's own padding: seconds, or tokens for a text model."""

    def forward(self, batch: Batch) -> Output:
        """Compute one batch. Each utterance's result equals its result alone, to 1e-4 in fp32."""


class Family(Protocol):
    """A checkpoint recognised as one of a family, not loaded."""

    @property
    def declaration(self) -> Declaration:
        """Inputs, outputs and limits, from configs alone. Raises: ConfigError for a config that cannot be used."""

    def check(self) -> None:
        """Check that `load` would succeed, without memory for the weights. Raises: ConfigError as `load` does."""

    def load(self, *, device: torch.device, precision: str) -> EmotionModel:
        """Load the weights strictly.

        Raises: ConfigError naming every tensor that is missing, extra or misshapen, and for other faults of the files.
        """


def require_declared(declaration: Declaration, precision: str, spec: str) -> None:
    """Check that a model can be loaded in a precision. Raises: ConfigError when it does not declare it."""
    if precision not in declaration.precisions:
        only = "int8 is for UMUTeam's speech models; " if precision == "int8" else ""
        raise ConfigError(
            f"model {spec} has no precision {precision}: {only}give --precision {' or '.join(declaration.precisions)}"
        )


def seconds(batch: Batch, declaration: Declaration) -> list[float]:
    """Return the seconds of each utterance that a model uses: the usual `lengths` of an audio model."""
    longest = declaration.max_samples
    used = (len(waveform) if longest is None else min(len(waveform), longest) for waveform in batch.waveforms)
    return [samples / SAMPLING_RATE for samples in used]
