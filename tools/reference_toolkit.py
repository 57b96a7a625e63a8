"""Predictions of the reference toolkit, from an environment in which it is installed.

usage: PYTHON tools/reference_toolkit.py CASES.jsonl PREDICTIONS.jsonl

PYTHON is the interpreter of that environment; nothing of this project is imported. Each case is a JSON object with `id`,
`mode`, `language`, `audio` (a path), `text` and `model` (a hub id); each prediction repeats it with `label` and `scores`.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock


def toolkit() -> ModuleType:
    """Import the toolkit's `inference` module.

    The packages `datasets` and `evaluate` serve its training code only, and `evaluate` downloads and runs scripts when
    they are imported: empty modules take their place. transformers 5 has no `return_all_scores`, with which text mode asks
    for the scores of all labels: `top_k=None` asks for the same.
    """
    import transformers  # noqa: F401 - looks for `datasets` when imported, so before the empty modules exist

    for name in ("datasets", "evaluate"):
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__getattr__ = lambda attribute, name=name: MagicMock(name=f"{name}.{attribute}")
        sys.modules[name] = module
    inference = importlib.import_module("speech_emotion.inference")
    pipeline = inference.pipeline

    def with_top_k(*arguments: object, return_all_scores: bool = False, **options: object) -> Any:  # noqa: ANN401
        classify = pipeline(*arguments, **options, **({"top_k": None} if return_all_scores else {}))
        return lambda text: classify([text])

    inference.pipeline = with_top_k
    return inference


def predict(inference: ModuleType, case: dict[str, Any]) -> dict[str, Any]:
    """Return the case with the toolkit's label and the score of each of its labels, in fp32 on CPU."""
    result = inference.predict_emotion(
        audio_path=case["audio"],
        text=case["text"],
        model_id=case["model"],
        mode=case["mode"],
        language=case["language"],
        device="cpu",
    )
    return {**case, "label": result["top_label"], "scores": result["scores"]}


def main(cases: Path, predictions: Path) -> None:
    """Predict every case in turn, as the toolkit does: one clip at a time."""
    inference = toolkit()
    with predictions.open("w", encoding="utf-8") as file:
        for line in cases.read_text(encoding="utf-8").splitlines():
            file.write(json.dumps(predict(inference, json.loads(line))) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
