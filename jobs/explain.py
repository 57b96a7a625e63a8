"""Explain one recording: the runs that planned it, with models, settings and manifest line, and what became of it.

Reads only. Exit status: 0 a run has planned or refused the recording; 1 a file cannot be read; 2 the command line is wrong,
or there is no output; 3 no run has it; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.dataset.explain import explain
from pipeline.redaction import redacted
from pipeline.storage.store import open_store

_UNKNOWN = 3


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "explain",
        usage="%(prog)s OUT --recording ID [--json]",
        description="Print each run that planned a recording: manifest line, settings, models with hashes, how it was cut and "
        "labelled, or why it was rejected, and which run retried it. Transcripts are not printed.",
        epilog="Reads the ids of all runs. Ids of excluded rows are not recorded: the policies of the runs that excluded rows "
        "are printed. Exit status: 0 found, 1 a store failed, 2 usage, 3 no run has it.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument("--recording", required=True, metavar="ID", help="recording_id, as in utterances/ and rejects/")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the explanation and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("explain", lambda printer: _explain(flags, printer), json=flags.json)


def _explain(flags: argparse.Namespace, printer: Printer) -> int:
    found = explain(open_store(flags.output), flags.recording)
    for each in found["tries"]:
        _print_try(each, printer)
    for each in found["refused"]:
        printer.line(f"run {each['run']}: refused while planning, {each['reason']}: {each['detail']} "
                     f"({each['manifest']}, line {each['line']})")  # fmt: skip
    for each in found["erased"]:
        reason = f": {each['reason']}" if each["reason"] else ""
        printer.line(f"erased at {each['at']} by erasure {each['run']}{reason}")
    if not found["tries"] and not found["refused"] and not found["erased"]:
        printer.line(f"No run has planned or refused a recording {flags.recording!r}.")
    for each in found["policies"]:
        conditions = ", ".join(
            f"--{name.replace('_', '-')} {value}" for name, value in each.items() if name not in ("run", "excluded")
        )
        printer.line(f"run {each['run']} excluded {sum(each['excluded'].values()):,} rows by {conditions}")
    printer.document(found)
    return 0 if found["tries"] or found["refused"] or found["erased"] else _UNKNOWN


def _print_try(each: Mapping[str, Any], printer: Printer) -> None:
    retried = f", retrying a reject of run {', '.join(each['retries'])}" if each["retries"] else ""
    printer.line(f"run {each['run']}, planned {each['planned_at']}{retried}: {_outcome(each)}")
    facts: dict[str, Any] = {
        "manifest": f"{each['manifest']}, line {each['line']}",
        "audio": each["audio"],
        "columns": json.dumps(each["columns"], ensure_ascii=False, default=str),
        "part": each["part"] or "none",
        "configuration": each["config_hash"],
        "settings": json.dumps(each["settings"], ensure_ascii=False),
    }
    facts |= {f"model {role}": f"{pin['spec']} sha256 {pin['sha256']}" for role, pin in each["models"].items()}
    for name, value in facts.items():
        printer.line(redacted(f"    {name}: {value}"))
    for cut in each.get("utterances", ()):
        span = f"{cut['start_s']} to {cut['end_s']} s" + (", truncated" if cut["truncated"] else "")
        printer.line(f"    utterance {cut['segment_index']}: {span}: {cut['emotion']}, confidence {cut['confidence']}")


def _outcome(each: Mapping[str, Any]) -> str:
    if each["outcome"] == "rejected":
        return f"rejected, {each['reason']} in stage {each['stage']}: {each['detail']}"
    if each["outcome"] == "annotated":
        return f"annotated, {len(each['utterances']):,} utterances"
    return "not annotated yet"


if __name__ == "__main__":
    sys.exit(main())
