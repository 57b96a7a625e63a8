"""Generate the small models with espeak-ng alone, in under an hour on two cores.

usage: python -m tools.demo_models [STEP ...]     (default: all of them, in order)

    corpus     synthesise it (2 minutes, 2 GB in build/demo-speech)
    whisper    train the speech recogniser (one core)
    emotion    train sentence encoder, text mode and speech modes (one core; in parallel with `whisper` when both are named)
    recordings write demo/heldout and demo/corpus, with held-out sentences and voices
    quality    measure, and write demo/models/README.md

Training is deterministic on one machine: one thread a model, fixed seeds. Another CPU may give slightly different models.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORPUS = ROOT / "build" / "demo-speech"
MODELS = ROOT / "demo" / "models"
HELDOUT = ROOT / "demo" / "heldout"
DEMO = ROOT / "demo" / "corpus"
STEPS = ("corpus", "whisper", "emotion", "recordings", "quality")
_SEED = 7


def make(step: str, started: float) -> None:
    """Run one step in this process."""
    import torch

    torch.set_num_threads(1)
    if step == "corpus":
        from tools.demo_models import corpus

        for number, made in enumerate(corpus.SETS):
            corpus.write(made, CORPUS, seed=_SEED + 3 + number)
    elif step == "whisper":
        from tools.demo_models import whisper_export, whisper_train
        from tools.demo_models.corpus import read

        model = whisper_train.train(read(CORPUS, "train"), whisper_train.Schedule(), seed=_SEED)
        whisper_export.write(model, MODELS / "whisper")
    elif step == "emotion":
        from tools.demo_models import emotion_export, emotion_train, sentences_train
        from tools.demo_models.corpus import read

        sentences = sentences_train.train(seed=_SEED)
        emotion_export.write_sentences(sentences, MODELS)
        clips = read(CORPUS, "train")
        texts = sentences_train.embed(sentences, [clip.text for clip in clips.clips])
        emotion_export.write_speech(emotion_train.train(clips, texts, seed=_SEED), MODELS)
    elif step == "recordings":
        from tools.demo_models import demo_corpus, heldout

        heldout.write(HELDOUT, seed=_SEED + 4)
        demo_corpus.write(DEMO)
    else:
        from tools.demo_models import quality

        figures = quality.measure(MODELS, CORPUS, seed=_SEED)
        quality.write(figures, MODELS, minutes=(time.time() - started) / 60)


def _in_processes(steps: list[str], started: float) -> None:
    """Run steps in parallel, each in its own process."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "DEMO_MODELS_STARTED": str(started)}
    command = [sys.executable, "-W", "ignore", "-m", "tools.demo_models"]
    running = [subprocess.Popen([*command, step], cwd=ROOT, env=environment) for step in steps]
    for step, process in zip(steps, running, strict=True):
        if process.wait() != 0:
            raise SystemExit(f"step {step} failed with exit status {process.returncode}")


def main() -> None:
    """Run the named steps, or all."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    asked = sys.argv[1:] or list(STEPS)
    if {"-h", "--help"} & set(asked):
        print(__doc__)
        return
    if unknown := [step for step in asked if step not in STEPS]:
        raise SystemExit(f"{__doc__}\nno step is called {unknown[0]!r}")
    started = float(os.environ.get("DEMO_MODELS_STARTED", time.time()))
    if len(asked) == 1:
        make(asked[0], started)
        return
    for group in (["corpus"], ["whisper", "emotion"], ["recordings"], ["quality"]):
        if steps := [step for step in group if step in asked]:
            _in_processes(steps, started)
            logging.info("%s done, %.0f minutes", " and ".join(steps), (time.time() - started) / 60)


if __name__ == "__main__":
    main()
