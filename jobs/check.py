"""Test an output against limits: rows, rejects, nulls and column types. For a schedule, after jobs.annotate.

Reads finished runs only. Exit status: 0 every test passed; 1 a file cannot be read; 2 the command line is wrong, or there
is no output; 3 a test failed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded, whole_number
from jobs.printer import Printer
from pipeline.analytics.check import Limits, check, document, read_types
from pipeline.dataset.reader import finished_rows
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.store import open_store

_FAILED = 3
_ALL, _LATEST = "all", "latest"


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "check",
        usage="%(prog)s OUT [--min-rows N] [--max-reject-share SHARE] [--max-null-share COLUMN=SHARE ...] [--schema FILE]",
        description="Test the finished runs of an output. Each limit is one test; one that fails gives exit status 3.",
        epilog="Shares are between 0 and 1, as in emotion=0.05. --json prints the present column types under 'schema', from "
        "which a file for --schema can be made.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--run", default=_ALL, metavar="RUN", help="a run's number, latest, or all (default: all finished runs)"
    )
    parser.add_argument("--min-rows", type=whole_number, metavar="N", help="least number of annotated manifest rows")
    parser.add_argument(
        "--max-reject-share", type=_share, metavar="SHARE", help="largest share of rejected manifest rows"
    )
    parser.add_argument(
        "--max-null-share",
        nargs="+",
        action="extend",
        type=_column_share,
        default=[],
        metavar="COLUMN=SHARE",
        help="largest share of nulls in a column of the utterances, or in a field such as by_model.words.emotion",
    )
    parser.add_argument(
        "--schema",
        metavar="FILE",
        help="JSON object of required columns and their Arrow types; further columns are allowed",
    )
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share between 0 and 1")
    return share


def _column_share(text: str) -> tuple[str, float]:
    column, equals, share = text.rpartition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=SHARE, as in emotion=0.05")
    return column, _share(share)


def main(arguments: Sequence[str] | None = None) -> int:
    """Test an output and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("check", lambda printer: _check(flags, printer), json=flags.json)


def _check(flags: argparse.Namespace, printer: Printer) -> int:
    types = read_types(flags.schema) if flags.schema else {}
    limits = Limits(flags.min_rows, flags.max_reject_share, dict(flags.max_null_share), types)
    if limits == Limits(None, None, {}, {}):
        raise ConfigError("nothing to test: give --min-rows, --max-reject-share, --max-null-share or --schema")
    rows = finished_rows(open_store(flags.output))
    if flags.run != _ALL:
        latest = [plan.plan for plan in rows.plans[-1:]]
        rows = rows.of(latest if flags.run == _LATEST else [flags.run])
    outcomes = []
    for outcome in check(rows, limits):
        outcomes.append(outcome)
        printer.line(f"{'passed' if outcome.passed else 'FAILED'}  {outcome.detail}")
    if rows.unfinished:
        printer.line(f"not finished, so not tested: {', '.join(rows.unfinished)}")
    result = document(outcomes, rows)
    failed = sum(not outcome.passed for outcome in outcomes)
    where = without_query(flags.output)
    printer.line(f"{where}: {failed} of {len(outcomes)} tests failed" if failed else f"{where}: all tests passed")
    printer.document(result)
    return _FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
