"""Export utterances for people to review: CSV, or tasks for Label Studio. jobs.evaluate --labels FILE reads the result.

Reads finished runs only. Exit status: 0 written; 1 a file cannot be read or written; 2 the command line is wrong, or there is
no output or nothing to review; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded, whole_number
from jobs.printer import Printer
from pipeline.analytics.review import ENDINGS, Order, chosen, review_file
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.files import require_absent, write_file
from pipeline.storage.store import open_store


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "review",
        usage="%(prog)s OUT (--uncertain N | --random N) --to FILE",
        description="Export utterances for people to review, to CSV or to tasks for Label Studio (FILE.json).",
        epilog="jobs.evaluate OUT --labels FILE compares the model with the corrections. Figures of the uncertain utterances are "
        "not those of the corpus: review a random sample for these. docs/evaluation.md has the view for Label Studio.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--uncertain", type=whole_number, metavar="N", help="the N utterances with the smallest margin")
    which.add_argument(
        "--random", type=whole_number, metavar="N", help="N random utterances; the same seed, the same ones"
    )
    parser.add_argument("--seed", type=whole_number, default=0, metavar="N", help="seed of --random (default: 0)")
    parser.add_argument(
        "--to", required=True, metavar="FILE", help="file that ends in .csv, or in .json for Label Studio"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --to names")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Export utterances and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("review", lambda printer: _review(flags, printer), json=flags.json)


def _review(flags: argparse.Namespace, printer: Printer) -> int:
    to = without_query(flags.to)
    if not flags.to.endswith(ENDINGS):
        raise ConfigError(f"--to {to}: name a file that ends in .csv, or in .json for Label Studio")
    require_absent(flags.to, overwrite=flags.overwrite)
    order, number = (Order.RANDOM, flags.random) if flags.uncertain is None else (Order.UNCERTAIN, flags.uncertain)
    table = chosen(finished_rows(open_store(flags.output)), order, number, seed=flags.seed)
    if not table.num_rows:
        raise ConfigError(f"{without_query(flags.output)} has no finished run with a labelled utterance")
    write_file(flags.to, review_file(table, flags.to))
    printer.line(f"{table.num_rows:,} utterances to review written to {to}")
    printer.line(f"then: python -m jobs.evaluate {without_query(flags.output)} --labels {to}")
    printer.document({"written_to": to, "utterances": table.num_rows, "order": str(order)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
