"""Audit an output: every row of every plan is annotated or rejected exactly once, and every file is intact.

Reads only, and can run while a job is running. Exit status: 0 complete and sound; 1 an invariant is violated; 2 the
command line is wrong, or there is no output, or it cannot be read; 3 sound so far, but unfinished; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from jobs.parser import Parser, program
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.invariants import Audit, Violation
from pipeline.errors import ConfigError
from pipeline.storage.store import open_store

_STATUS = {"sound": 0, "violated": 1, "unfinished": 3}


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "verify",
        usage="%(prog)s OUT [--deep] [--json]",
        description="Audit an output of jobs.annotate, finished, broken or still being written. Reads only.",
        epilog="Exit status: 0 complete and sound, 1 an invariant is broken, 2 usage or access, 3 sound but unfinished.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--deep", action="store_true", help="read every page and check every value, not footers and ids alone"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of lines")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the audit and return its exit status."""
    flags = command_line().parse_all(arguments)
    try:
        found = audit(open_store(flags.output), deep=flags.deep, tell=_quiet if flags.json else _tell)
    except ConfigError as error:
        print(f"{program('verify')}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    status = _STATUS[found.status]
    if flags.json:
        print(json.dumps({"exit_status": status, **found.as_dict()}, indent=1))
    else:
        _summarise(found)
    return status


def _tell(violation: Violation) -> None:
    print(violation.line(), flush=True)


def _quiet(_: Violation) -> None:
    pass


def _summarise(found: Audit) -> None:
    if found.violations:
        print()
    for plan in found.plans:
        print(plan.line())
    if found.unreadable_plans:
        print(f"{found.unreadable_plans:,} plans cannot be read")
    if found.leftovers:
        print(
            f"{found.leftovers:,} leftovers, {found.leftover_bytes:,} bytes, of writers at work or killed; harmless, "
            "see python -m jobs.prune"
        )
    how = "every value was read" if found.deep else "footers and ids were read; --deep reads every value"
    if found.violations:
        print(f"violated: {len(found.violations):,} broken invariants ({how})")
    elif found.status == "sound":
        rows = sum(plan.rows for plan in found.plans)
        print(f"sound: each of {rows:,} rows is annotated once or rejected once ({how})")
    else:
        print(f"unfinished: what is there is sound ({how})")


if __name__ == "__main__":
    sys.exit(main())
