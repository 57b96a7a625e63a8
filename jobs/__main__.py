"""Single command for all jobs: `speech-emotion COMMAND`, or `python -m jobs COMMAND`.

`speech-emotion` alone lists the commands; `speech-emotion completion bash` prints a completion script for the shell.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from jobs.parser import CONSOLE_SCRIPT
from pipeline import __version__
from pipeline.errors import did_you_mean

COMMANDS = {
    "annotate": "annotate a corpus: transcripts, emotions, scores and embeddings as Parquet",
    "nightly": "annotate what is new in a growing corpus, and add it to the summaries",
    "submit": "run a job on a Ray cluster, follow it and retry it",
    "verify": "audit an output: every row exactly once, every file whole",
    "make_manifest": "make a manifest from audio files, a known corpus or another toolkit's manifests",
    "prepare_models": "fetch, verify and store the models of a job for use without a hub",
    "report": "draw the page of a run, an evaluation or a summary",
    "summarize": "sum up an output by speaker, day or any column",
    "evaluate": "compare an output with labels and reference texts",
    "stress": "compare the labels of clean clips with those under noise, codecs and reverberation",
    "drift": "compare the last run with the runs before it",
    "search": "find the utterances nearest to an utterance, a recording or a sentence",
    "compact": "merge small files, or publish finished runs as a Delta, Iceberg or Lance table",
    "prune": "remove what killed writers left behind",
}
_SHELLS = ("bash", "zsh", "tcsh")


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
    if name == "completion" and len(words) == 2 and words[1] in _SHELLS:
        return _completion(words[1])
    if name not in COMMANDS:
        known = [*COMMANDS, "completion"]
        what = f"usage: completion {{{','.join(_SHELLS)}}}" if name == "completion" else f"unknown command {words[0]!r}"
        print(
            f"{CONSOLE_SCRIPT}: {what}{did_you_mean(name, known) if name != 'completion' else ''}\n{_overview()}",
            file=sys.stderr,
        )
        return 2
    status: int = importlib.import_module(f"jobs.{name}").main(words[1:])
    return status


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name.replace('_', '-'):<{width}}{about}" for name, about in COMMANDS.items()]
    lines.append(f"  {'completion':<{width}}print a completion script: completion {{{','.join(_SHELLS)}}}")
    return "\n".join([f"usage: {CONSOLE_SCRIPT} COMMAND [options]; COMMAND --help describes its options", "", *lines])


def command_lines() -> argparse.ArgumentParser:
    """Return a parser with the command lines of all jobs, for shell completion and the command reference."""
    whole = argparse.ArgumentParser(prog=CONSOLE_SCRIPT)
    commands = whole.add_subparsers()
    for name, about in COMMANDS.items():
        made = importlib.import_module(f"jobs.{name}").command_line()
        made.prog = f"{CONSOLE_SCRIPT} {name.replace('_', '-')}"
        added = commands.add_parser(
            name.replace("_", "-"), help=about, parents=[made], add_help=False, conflict_handler="resolve"
        )
        added.description = made.description
    return whole


def _completion(shell: str) -> int:
    # imported late: no other command needs it
    import shtab

    print(shtab.complete(command_lines(), shell=shell))
    return 0


if __name__ == "__main__":
    sys.exit(main())
