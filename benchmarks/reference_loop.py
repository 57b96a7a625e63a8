"""The reference toolkit in a loop over files, as a process that `benchmarks.reference` starts.

usage: python -m benchmarks.reference_loop JOB.json

The checkout is imported as it is and stays untouched. Patched from outside: the name of the sentence encoder and, where it
transcribes, of Whisper, which it would ask a hub for; two packages that serve its training scripts only, `datasets` and
`evaluate`, of which one asks a hub at import; and in `kept` its loaders, so that they load once.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np


def main() -> None:
    """Do one job and write its result beside the job file."""
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    loop = {"shipped": _toolkit, "kept": _toolkit, "floor": _floor}[job["kind"]](job)
    seconds, labels, scores, texts = [], {}, {}, {}
    for clip in job["clips"]:
        begun = time.perf_counter()
        result = loop(clip)
        seconds.append(time.perf_counter() - begun if not isinstance(result, float) else result)
        if isinstance(result, dict):
            labels[clip["id"]], scores[clip["id"]] = result["top_label"], result["scores"]
            texts[clip["id"]] = result["text"]
    found = {"clip_s": seconds, "labels": labels, "scores": scores, "texts": texts}
    path.with_suffix(".found").write_text(json.dumps(found), encoding="utf-8")


def _toolkit(job: dict[str, Any]) -> Callable[[dict[str, Any]], object]:
    """Run its `predict_emotion`, with torch's default number of threads."""
    import transformers  # noqa: F401 - looks for `datasets`, so before there is a stand-in

    for name in ("datasets", "evaluate"):
        sys.modules[name] = _stand_in(name)
    sys.path.insert(0, str(Path(job["checkout"]) / "src"))
    from speech_emotion import inference

    inference.get_default_bert = lambda _language: job["encoder"]
    inference.DEFAULT_WHISPER_MODEL = job["whisper"]
    transcripts = []
    transcribe = inference.get_transcription
    inference.get_transcription = lambda *where: transcripts.append(transcribe(*where)) or transcripts[-1]
    if job["kind"] == "kept":
        _keep_loaded(inference)

    def loop(clip: dict[str, Any]) -> object:
        given = None if job["whisper"] else clip["text"]
        result = inference.predict_emotion(
            audio_path=clip["audio"],
            text=given,
            model_id=job["fusion"],
            mode="mean",
            language="en",
            device="cpu",
        )
        return {**result, "text": given or transcripts.pop()}

    return loop


def _stand_in(name: str) -> ModuleType:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__getattr__ = lambda attribute: MagicMock(name=f"{name}.{attribute}")
    return module


def _keep_loaded(inference: ModuleType) -> None:
    """Load the classifier and the feature extractor once; the toolkit itself keeps its BERT."""
    find = inference._lazy_import_multimodal_cls
    loaded: dict[str, Any] = {}

    def keeping(language: str, variant: str) -> SimpleNamespace:
        def from_pretrained(model_id: str, **options: Any) -> Any:  # noqa: ANN401 - a torch module
            if model_id not in loaded:
                loaded[model_id] = find(language, variant).from_pretrained(model_id, **options)
            return loaded[model_id]

        return SimpleNamespace(from_pretrained=from_pretrained)

    def no_other_weights(*_: object) -> None:
        raise FileNotFoundError

    inference._lazy_import_multimodal_cls = keeping
    inference._load_state_from_hf = no_other_weights
    inference.AutoFeatureExtractor = SimpleNamespace(
        from_pretrained=cache(inference.AutoFeatureExtractor.from_pretrained)
    )


def _floor(job: dict[str, Any]) -> Callable[[dict[str, Any]], float]:
    """Time only the forward passes of the two stock encoders; features and tokens are made before."""
    import torch
    from transformers import AutoFeatureExtractor, AutoTokenizer, BertModel, Wav2Vec2BertModel

    from pipeline.audio.decode import decode

    torch.set_num_threads(job["threads"])
    extractor = AutoFeatureExtractor.from_pretrained(job["fusion"])
    tokenizer = AutoTokenizer.from_pretrained(job["encoder"])
    speech = Wav2Vec2BertModel.from_pretrained(job["fusion"], attn_implementation="sdpa").eval()
    text = BertModel.from_pretrained(job["encoder"], add_pooling_layer=False).eval()

    @torch.inference_mode()
    def loop(clip: dict[str, Any]) -> float:
        waveform: np.ndarray = decode(Path(clip["audio"]).read_bytes())
        features = extractor(waveform, sampling_rate=16_000, return_tensors="pt")
        read = tokenizer(clip["text"], return_tensors="pt")
        begun = time.perf_counter()
        speech(**features)
        text(**read)
        return time.perf_counter() - begun

    return loop


if __name__ == "__main__":
    main()
