"""Single command for all jobs: `speech-emotion COMMAND`, or `python -m jobs COMMAND`.

`speech-emotion` alone lists the commands; `speech-emotion completion bash` prints a completion script for the shell.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from jobs.interrupts import CONSOLE_SCRIPT
from pipeline import __version__
from pipeline.errors import did_you_mean

COMMANDS = {
    "annotate": "annotate a corpus: transcripts, emotions, scores and embeddings as Parquet",
    "nightly": "annotate what is new in a growing corpus, and add it to the summaries",
    "submit": "run a job on a Ray cluster, follow it and retry it",
    "verify": "audit an output: every row exactly once, every file whole",
    "explain": "explain one recording: runs, models, settings, manifest line, outcome",
    "check": "test an output against limits: rows, rejects, nulls, column types",
    "make_manifest": "make a manifest from audio files, a known corpus or another toolkit's manifests",
    "prepare_models": "fetch, verify and store the models of a job for use without a hub",
    "report": "draw the page of a run, an evaluation or a summary",
    "summarize": "sum up an output by speaker, day or any column",
    "calls": "measure conversations: talk, silence, interruptions and emotion, per call and speaker",
    "review": "export uncertain or random utterances for people to review, as CSV or for Label Studio",
    "evaluate": "compare an output with labels and reference texts",
    "stress": "compare the labels of clean clips with those under noise, codecs and reverberation",
    "drift": "compare the last run with the runs before it",
    "search": "find the utterances nearest to an utterance, a recording or a sentence",
    "compact": "merge small files, or publish finished runs as a Delta, Iceberg or Lance table",
    "erase": "erase rows from every file of an output, by condition, id, list or age",
    "prune": "remove what killed writers left behind",
    "completion": "print a completion script for the shell",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; 2 for an unknown command."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = words[0].replace("-", "_") if words else "help"
    if name in ("help", "_h", "__help"):
        print(_overview())
        return 0
    if name == "__version":
        print(__version__)
        return 0
    if name not in COMMANDS:
        known = [each.replace("_", "-") for each in COMMANDS]
        hint = did_you_mean(words[0], known)
        print(f"{CONSOLE_SCRIPT}: unknown command {words[0]!r}{hint}\n{_overview()}", file=sys.stderr)
        return 2
    status: int = importlib.import_module(f"jobs.{name}").main(words[1:])
    return status


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name.replace('_', '-'):<{width}}{about}" for name, about in COMMANDS.items()]
    return "\n".join([f"usage: {CONSOLE_SCRIPT} COMMAND [options]; COMMAND --help describes its options", "", *lines])


if __name__ == "__main__":
    sys.exit(main())
