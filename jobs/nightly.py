"""Nightly job: list a corpus, annotate new and changed files, and add the run to the summaries. See docs/nightly.md.

    python -m jobs.nightly s3://b/corpus --manifest tonight.jsonl --by language -- --output s3://b/emotions

Options of `jobs.annotate` follow `--`. Exit status: the first nonzero status of jobs.make_manifest, jobs.annotate and
jobs.summarize, else 0; the same command resumes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from jobs import annotate, make_manifest, summarize
from jobs.parser import Parser, run_guarded
from pipeline.dataset.reader import optional
from pipeline.errors import ConfigError


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "nightly",
        usage="%(prog)s CORPUS [CORPUS ...] --manifest FILE [--by GROUP ...] -- OPTIONS OF jobs.annotate",
        description="Annotate what is new or changed below a folder, bucket prefix or glob since the last night, and sum it up.",
        epilog="What was removed from the corpus stays in the output; docs/nightly.md says how to leave it out.",
    )
    parser.add_argument(
        "corpus", nargs="+", metavar="CORPUS", help="folder, prefix or glob of audio; local, s3://... and others"
    )
    parser.add_argument("--manifest", required=True, metavar="FILE",
                        help="where the list of tonight goes, in place of last night's")  # fmt: skip
    parser.add_argument("--by", nargs="+", action="extend", default=[], metavar="GROUP",
                        help="as jobs.summarize has it (default: no summary)")  # fmt: skip
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps of one night and return the exit status."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    split = words.index("--") if "--" in words else len(words)
    flags = command_line().parse_all(words[:split])
    return run_guarded("nightly", lambda: _night(flags, words[split + 1 :]))


def _night(flags: argparse.Namespace, options: list[str]) -> int:
    if "--manifest" in options:
        raise ConfigError("--manifest stands before the --, and once: it is written, then read")
    options = ["--manifest", flags.manifest, *options]
    output = annotate.read_config(options).output
    if flags.by:
        optional("duckdb", extra="analytics")
    steps: list[Callable[[], int]] = [
        lambda: make_manifest.main([*flags.corpus, "--versions", "--overwrite", "--output", flags.manifest]),
        lambda: annotate.main(options),
    ]
    if flags.by:
        steps.append(lambda: summarize.main([output, "--by", *flags.by]))
    for step in steps:
        if status := step():
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
