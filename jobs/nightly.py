"""Nightly job: list a corpus, annotate new and changed files, and add the run to the summaries. See docs/nightly.md.

    python -m jobs.nightly s3://b/corpus --manifest tonight.jsonl --by language -- --output s3://b/emotions

Options of `jobs.annotate` follow `--`. Exit status: the first nonzero status of jobs.make_manifest, jobs.annotate and
jobs.summarize, else 0; the same command resumes.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

from jobs import annotate, make_manifest, summarize
from jobs.options import add_options
from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.config import JobConfig
from pipeline.dataset.corpus_ids import keep_ids
from pipeline.engine.lineage import Lineage
from pipeline.errors import ConfigError
from pipeline.layout import UTTERANCES
from pipeline.redaction import without_query
from pipeline.storage.store import open_folder_of, open_store

Step = tuple[Callable[[Sequence[str]], int], list[str]]
"""The main function of a job, and its words."""


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "nightly",
        usage="%(prog)s CORPUS [CORPUS ...] --manifest FILE [--by GROUP ...] -- OPTIONS OF jobs.annotate",
        description="Annotate the files of a folder, bucket prefix or glob that are new or changed since the last night, and "
        "summarize them.",
        epilog="Rows of files that were removed from the corpus stay in the output; docs/nightly.md says how to leave them out.",
    )
    parser.add_argument(
        "corpus", nargs="+", metavar="CORPUS", help="folder, prefix or glob of audio; local, s3://... and others"
    )
    parser.add_argument("--manifest", required=True, metavar="FILE", help="manifest to write, in place of last night's")
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        default=[],
        metavar="GROUP",
        help="groups of the summary, as in jobs.summarize --by (default: no summary)",
    )
    make_manifest.add_column_options(parser)
    add_options(parser, JobConfig, only=["log_format"])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps of one night and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    flags = command_line().parse_all(words[:split])
    return run_guarded("nightly", lambda printer: _night(flags, words[split + 1 :], printer), json=flags.json)


def _night(flags: argparse.Namespace, options: list[str], printer: Printer) -> int:
    for option in ("--manifest", "--json"):
        if option in options:
            raise ConfigError(f"give {option} once, before the --: it is an option of the whole night")
    options = ["--manifest", flags.manifest, *_log_format(flags), *options]
    config = annotate.read_config(options)
    output = config.output
    if "retry_rejects" not in config.model_fields_set:
        options += ["--retry-rejects", "transient"]
    steps: dict[str, Step] = {
        "make_manifest": (
            make_manifest.main,
            [*flags.corpus, "--versions", "--overwrite", "--output", flags.manifest, *_columns(flags)],
        ),
        "annotate": (annotate.main, options),
    }
    if flags.by:
        steps["summarize"] = (summarize.main, [output, "--by", *flags.by])
    lineage = Lineage(
        f"nightly:{without_query(output)}", flags.corpus, [flags.manifest, f"{output}/{UTTERANCES}"], sys.stderr
    )
    with lineage, lineage.as_parent():
        status, documents = _steps(steps, flags, output, printer)
        lineage.failure = f"jobs.{next(reversed(documents))} ended with status {status}" if status else ""
    printer.document({"exit_status": status, "steps": documents})
    return status


def _steps(
    steps: Mapping[str, Step], flags: argparse.Namespace, output: str, printer: Printer
) -> tuple[int, dict[str, Any]]:
    """Run the steps until one fails. Returns: the last exit status, and the document of each step."""
    documents: dict[str, Any] = {}
    status = 0
    for name, (step, words) in steps.items():
        status, documents[name] = _step(step, words, printer)
        if status:
            break
        if name == "annotate":
            folder, file = open_folder_of(flags.manifest)
            with folder.open(file) as manifest:
                keep_ids(open_store(output), manifest)
    return status, documents


def _columns(flags: argparse.Namespace) -> list[str]:
    given = {"--pattern": flags.pattern, "--join": flags.join, "--on": flags.on}
    return [word for option, value in given.items() if value is not None for word in (option, value)]


def _log_format(flags: argparse.Namespace) -> list[str]:
    """Return the option as given, so that without it a config file decides."""
    return ["--log-format", flags.log_format] if flags.log_format else []


def _step(step: Callable[[Sequence[str]], int], words: list[str], printer: Printer) -> tuple[int, Any]:
    """Run one step. Returns: its exit status and, with `--json`, its document; None when it printed none."""
    if not printer.json:
        return step(words), None
    with redirect_stdout(io.StringIO()) as captured:
        status = step([*words, "--json"])
    return status, json.loads(captured.getvalue() or "null")


if __name__ == "__main__":
    sys.exit(main())
