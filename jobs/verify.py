"""Audit an output: every row of every plan is annotated or rejected exactly once, and every file is intact.

Reads only, and can run while a job is running. Exit status: 0 complete and sound; 1 an invariant is violated; 2 the
command line is wrong, or there is no output, or it cannot be read; 3 sound so far, but unfinished; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.invariants import Audit
from pipeline.storage.store import open_store

_STATUS = {"sound": 0, "violated": 1, "unfinished": 3}


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "verify",
        json="print the audit as one JSON document on standard output, and no text",
        usage="%(prog)s OUT [--deep] [--json]",
        description="Audit an output of jobs.annotate, finished, broken or still being written. Reads only.",
        epilog="Exit status: 0 complete and sound, 1 an invariant is broken, 2 usage or access, 3 sound but unfinished.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--deep", action="store_true", help="read every page and check every value, not footers and ids alone"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit and return its exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("verify", lambda printer: _verify(flags, printer), json=flags.json, failed=2)


def _verify(flags: argparse.Namespace, printer: Printer) -> int:
    audited = audit(open_store(flags.output), deep=flags.deep, tell=lambda violation: printer.line(violation.line()))
    status = _STATUS[audited.status]
    _summarise(audited, printer)
    printer.document({"exit_status": status, **audited.as_dict()})
    return status


def _summarise(audited: Audit, printer: Printer) -> None:
    if audited.violations:
        printer.line()
    for plan in audited.plans:
        printer.line(plan.line())
    if audited.retried:
        printer.line(
            f"{audited.retried:,} rejects were retried by later plans; of {audited.rows:,} rows, {audited.rejects:,} are "
            "rejected now"
        )
    if audited.unreadable_plans:
        printer.line(f"{audited.unreadable_plans:,} plans cannot be read")
    if audited.leftovers:
        printer.line(
            f"{audited.leftovers:,} leftovers, {audited.leftover_bytes:,} bytes, of active or killed writers; they do no "
            "harm, and python -m jobs.prune removes them"
        )
    how = "every value was read" if audited.deep else "footers and ids were read; --deep reads every value"
    if audited.violations:
        printer.line(f"violated: {len(audited.violations):,} broken invariants ({how})")
    elif audited.status == "sound":
        printer.line(f"sound: each of {audited.rows:,} rows is annotated once or rejected once ({how})")
    else:
        printer.line(f"unfinished: the part written so far is sound ({how})")


if __name__ == "__main__":
    sys.exit(main())
