"""Comparison of this project with the reference toolkit, on the published weights: `make check-published`.

usage: python -m tools.check_published [--mode MODE ...] [--toolkit PYTHON | --predictions FILE] [--reachable]

Both sides label ten recordings of the demo, with their texts, in fp32 on CPU, one clip at a time, with the published models
of each mode. The table has, for each mode and clip, the difference of every score. Needs the model hub: about 2.5 GB for each
mode and language.

Exit status: 0 where labels agree and scores are within the limits; 1 where they differ; 2 where the comparison could not be made.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import soundfile

from pipeline import Annotator
from pipeline.config.settings import Mode
from pipeline.errors import ConfigError
from pipeline.models.checkpoints.published import EMOTION_MODELS
from pipeline.schema import EMOTIONS, emotion_of

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "build" / "check-published"
TOOLKIT = ROOT / "build" / "reference" / "bin" / "python"
"""Interpreter of the environment in which `make check-published` installs the toolkit."""
MANIFEST = ROOT / "demo" / "corpus" / "manifest.jsonl"
CLIPS = (
    *("ada-prizes", "ada-goodbye", "ben-ticket", "ben-cheese", "cleo-window"),
    *("ines-reloj", "ines-hermana", "ines-cuadro", "mateo-billete", "mateo-carne"),
)
"""Ids of recordings that both sides can decode: 16 kHz and telephone WAV, FLAC at 44.1 kHz, MP3 and Opus."""
EXACT, DECODED = 1e-4, 5e-3
"""Largest difference of a score: for 16 kHz WAV and FLAC, and for others, which two decoders or resamplers read differently."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Label and score by emotion, in the project's vocabulary."""

    label: str
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Compared:
    """One clip in one mode: both labels, the difference of each score, and the limit that the audio's format allows."""

    mode: str
    clip: str
    theirs: str
    ours: str
    differences: dict[str, float]
    limit: float

    @property
    def agrees(self) -> bool:
        """Return whether the labels are equal and every score is within the limit; NaN is not."""
        return self.theirs == self.ours and all(each <= self.limit for each in self.differences.values())


def cases(manifest: Path, ids: Sequence[str], modes: Iterable[str]) -> list[dict[str, str]]:
    """Return a case for each mode and clip: the manifest's row with an absolute path, a text, and the published model."""
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    chosen = {row["id"]: row for row in rows if row["id"] in ids}
    return [
        {
            "id": key,
            "mode": mode,
            "language": row["language"],
            "audio": str(manifest.parent / row["audio"]),
            "text": row["text"] if "text" in row else row["reference"],
            "model": EMOTION_MODELS[row["language"], mode],
        }
        for mode in modes
        for key, row in ((key, chosen[key]) for key in ids)
    ]


def require_hub(model: str) -> None:
    """Ask the hub for a model. Raises: ConfigError."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if constants.HF_HUB_OFFLINE:
        raise ConfigError("HF_HUB_OFFLINE is set, and the published models are on the hub; unset it")
    try:
        HfApi().model_info(model, timeout=20)
    except (
        HfHubHTTPError.__bases__
    ) as error:  # OSError, and the HTTP errors of the client that this version is built on
        raise ConfigError(
            f"the model hub at {constants.ENDPOINT} does not serve {model} ({type(error).__name__}); "
            "run this where a model hub can be reached, or set HF_ENDPOINT to one"
        ) from error


def run_toolkit(given: Sequence[dict[str, str]], python: Path) -> Path:
    """Run the toolkit on cases in its environment. Returns: the file of its predictions. Raises: ConfigError."""
    if not python.exists():
        raise ConfigError(f"the reference toolkit is not installed in {python.parents[1]}; run make check-published")
    FOLDER.mkdir(parents=True, exist_ok=True)
    wanted, predicted = FOLDER / "cases.jsonl", FOLDER / "predictions.jsonl"
    wanted.write_text("".join(json.dumps(case) + "\n" for case in given), encoding="utf-8")
    script = ROOT / "tools" / "reference_toolkit.py"
    status = subprocess.run([str(python), str(script), str(wanted), str(predicted)], check=False).returncode
    if status != 0:
        raise ConfigError(f"the reference toolkit ended with status {status}; its messages are above")
    return predicted


def read_predictions(file: Path) -> dict[tuple[str, str], Prediction]:
    """Read the toolkit's predictions by mode and clip. Raises: ConfigError for a label outside the vocabulary."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {
        (row["mode"], row["id"]): Prediction(
            emotion_of(row["label"]), {emotion_of(label): score for label, score in row["scores"].items()}
        )
        for row in rows
    }


def annotate(given: Sequence[dict[str, str]]) -> dict[tuple[str, str], Prediction]:
    """Label the cases with this project. Raises: ConfigError, also for a clip that is rejected."""
    predictions: dict[tuple[str, str], Prediction] = {}
    for mode in dict.fromkeys(case["mode"] for case in given):
        rows = [
            {key: case[key] for key in ("id", "language", "audio", "text")} for case in given if case["mode"] == mode
        ]
        annotations = Annotator(mode=mode, device="cpu", precision="fp32", segmentation="none").annotate(rows)
        for reject in annotations.rejects:
            raise ConfigError(f"{reject.recording_id} is rejected in mode {mode}: {reject.detail}")
        for row in annotations:
            scores = {emotion: score for emotion, score in row.scores.items() if score is not None}
            predictions[mode, row.recording_id] = Prediction(emotion_of(row.label), scores)
    return predictions


def compare(
    given: Sequence[dict[str, str]],
    theirs: dict[tuple[str, str], Prediction],
    ours: dict[tuple[str, str], Prediction],
) -> list[Compared]:
    """Compare both sides case by case. Raises: ConfigError for a case that the toolkit did not predict."""
    compared = []
    for case in given:
        key = case["mode"], case["id"]
        if key not in theirs:
            raise ConfigError(f"there is no prediction of the toolkit for {case['id']} in mode {case['mode']}")
        one, two = theirs[key].scores, ours[key].scores
        differences = {
            emotion: abs(one.get(emotion, 0.0) - two.get(emotion, 0.0))
            for emotion in EMOTIONS
            if emotion in one or emotion in two
        }
        limit = _limit(Path(case["audio"]), mode=case["mode"])
        compared.append(Compared(*key, theirs[key].label, ours[key].label, differences, limit))
    return compared


def _limit(audio: Path, *, mode: str) -> float:
    if mode == "text":
        return EXACT
    about = soundfile.info(str(audio))
    return EXACT if about.samplerate == 16_000 and about.format in ("WAV", "FLAC") else DECODED


def table(compared: Sequence[Compared]) -> list[str]:
    """Return the table as lines."""
    head = ["mode", "clip", "toolkit", "this", *EMOTIONS, "limit", ""]
    lines = [head]
    for each in compared:
        scores = [f"{each.differences[name]:.1e}" if name in each.differences else "-" for name in EMOTIONS]
        verdict = "" if each.agrees else "DIFFERS"
        lines.append([each.mode, each.clip, each.theirs, each.ours, *scores, f"{each.limit:.0e}", verdict])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.check_published", description=__doc__.partition("\n")[0])
    modes = get_args(Mode)
    parser.add_argument("--mode", nargs="+", choices=modes, default=modes, help="modes to compare (default: all)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--toolkit",
        type=Path,
        default=TOOLKIT,
        metavar="PYTHON",
        help="interpreter of the environment with the toolkit (default: that of make check-published)",
    )
    source.add_argument(
        "--predictions", type=Path, help="compare with these predictions of the toolkit, made elsewhere"
    )
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help="JSONL manifest of the clips, with their texts")
    parser.add_argument("--clips", nargs="+", default=CLIPS, metavar="ID", help="ids of the clips in the manifest")
    parser.add_argument("--reachable", action="store_true", help="check only that the hub can be reached")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the comparison. Returns: the exit status."""
    options = _parser().parse_args(arguments)
    try:
        given = cases(options.manifest, options.clips, options.mode)
        require_hub(given[0]["model"])
        if options.reachable:
            return 0
        theirs = read_predictions(options.predictions or run_toolkit(given, options.toolkit))
        compared = compare(given, theirs, annotate(given))
    except ConfigError as error:
        print(f"check-published: {error}", file=sys.stderr)
        return 2
    for line in table(compared):
        print(line)
    worst = max(max(each.differences.values()) for each in compared)
    different = sum(not each.agrees for each in compared)
    print(f"\n{len(compared)} predictions, {different} differ; largest difference of a score {worst:.1e}")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
