"""Models that do nothing, for jobs that measure everything else; every Ray worker gets them before it starts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import EMBEDDINGS
from tests.support.checkpoints import materialize
from tests.support.corpus import ROOT

_DEVICE_SECONDS = "NOOP_DEVICE_S_PER_AUDIO_S"
_WIDTHS = "NOOP_EMBEDDING_WIDTHS"
_STEPS = "NOOP_STEPS_FILE"


class NoOpRecogniser:
    """A recogniser that answers at once, or after the time that a device would take for the audio."""

    def __init__(self) -> None:
        self._device_s = float(os.environ[_DEVICE_SECONDS])
        self._widths: dict[str, int] = json.loads(os.environ[_WIDTHS])

    def recognise(self, waveforms: Sequence[NDArray[np.float32]] | None, texts: Sequence[str | None] | None) -> object:
        """Answer like `EmotionRecogniser.recognise`, in a plain namespace: the real class would import torch."""
        count = len(texts or waveforms or ())
        if self._device_s and waveforms is not None:
            time.sleep(self._device_s * sum(map(len, waveforms)) / 16_000)
        names = ("angry", "happy", "neutral", "sad")
        return SimpleNamespace(
            label_names=names,
            emotions=("anger", "joy", "neutral", "sadness"),
            labels=["happy"] * count,
            scores=np.tile(np.array([0.1, 0.6, 0.2, 0.1], np.float32), (count, 1)),
            confidence=np.full(count, 0.6, np.float32),
            margin=np.full(count, 0.4, np.float32),
            above=None,
            dimensions={},
            scales={},
            truncated=np.zeros(count, np.bool_),
            text_truncated=np.zeros(count, np.bool_),
            **dict.fromkeys(EMBEDDINGS)
            | {name: np.zeros((count, width), np.float32) for name, width in self._widths.items()},
        )


def arm() -> None:
    """Replace the models of this process."""
    from pipeline.models import roles

    roles.Loaded.load_recognisers = lambda _: None
    roles.Loaded.recogniser_for = lambda *_: NoOpRecogniser()
    if steps := os.environ.get(_STEPS):
        from pipeline.engine import stages

        stages.prepare, stages.finish = _noting("p", stages.prepare, steps), _noting("c", stages.finish, steps)


def _noting(step: str, function: Callable[..., Any], path: str) -> Callable[..., Any]:
    def noted(*arguments: object, **named: object) -> object:
        with Path(path).open("a", encoding="ascii") as steps:
            steps.write(step)
        return function(*arguments, **named)

    return noted


def models_of(mode: str) -> tuple[list[str], dict[str, int]]:
    """Return the options that name the small checkpoints a plan pins, and the widths of their embeddings."""
    from pipeline.models.checkpoints.modes import embedding_widths
    from pipeline.models.checkpoints.weights import resolve

    fusion, encoder = materialize() / f"{mode}-en", materialize() / "bert-en"
    named = ["--mode", mode, "--emotion-model", f"en={fusion}"]
    if mode in ("audio", "text"):
        return named, embedding_widths(mode, resolve(str(fusion)), None)
    widths = embedding_widths(mode, resolve(str(fusion)), resolve(str(encoder)))
    return [*named, "--sentence-encoder", f"en={encoder}"], widths


def environment(
    widths: Mapping[str, int], *, device_s_per_audio_s: float = 0.0, steps: Path | None = None
) -> Mapping[str, str]:
    """Return the variables with which a job's workers get these models.

    Args:
        steps: file that gets a p for each shard prepared and a c for each shard committed, in their order.
    """
    variables = {
        "PYTHONPATH": str(ROOT),
        _DEVICE_SECONDS: str(device_s_per_audio_s),
        _WIDTHS: json.dumps(widths),
        **({} if steps is None else {_STEPS: str(steps)}),
    }
    hook = {"worker_process_setup_hook": f"{__name__}.arm", "env_vars": variables}
    return {"RAY_JOB_CONFIG_JSON_ENV_VAR": json.dumps({"runtime_env": hook})}
