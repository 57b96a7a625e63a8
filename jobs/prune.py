"""Remove leftovers of killed or superseded writers that no plan refers to. Without --delete it only lists them.

Safe while a job is running, as long as no writer of that job pauses for longer than --older-than. Exit status: 0 done,
or nothing to do; 1 the store failed; 2 the command line is wrong, or the output cannot be read or deleted from; 130
interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.dataset.prune import Leftover, find_leftovers, remove_leftover
from pipeline.dataset.verify.invariants import printable
from pipeline.storage.store import Store, open_store

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)([smhd])")


def _seconds(text: str) -> float:
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 90s, 30m, 24h or 7d")
    return float(match[1]) * _UNITS_S[match[2]]


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "prune",
        usage="%(prog)s OUT [--delete] [--older-than 24h]",
        description="Remove leftovers from an output of jobs.annotate: shard files of planners that were beaten or killed, "
        "hidden temporaries, probes, multipart uploads nobody completed. Parts, plans and rejects are never touched.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument("--delete", action="store_true", help="delete them; without it they are only listed")
    parser.add_argument(
        "--older-than",
        type=_seconds,
        default="24h",
        metavar="AGE",
        help="keep leftovers younger than this, as in 90s, 30m, 24h or 7d (default: 24h)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Remove or list the leftovers and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded(
        "prune",
        lambda printer: _prune(open_store(flags.output), printer, delete=flags.delete, older_than_s=flags.older_than),
        json=flags.json,
    )


def _prune(store: Store, printer: Printer, *, delete: bool, older_than_s: float) -> int:
    leftovers = sorted(find_leftovers(store, now_s=time.time()), key=lambda leftover: leftover.key)
    old = [leftover for leftover in leftovers if leftover.age_s >= older_than_s]
    gone = []
    for leftover in old:
        if delete and not remove_leftover(store, leftover):
            printer.line(f"kept, a plan names it by now  {printable(leftover.key)}")
            continue
        gone.append(leftover)
        printer.line(f"{'removed' if delete else 'would remove'}  {_line(leftover)}")
    size_bytes, young = sum(leftover.size_bytes or 0 for leftover in gone), len(leftovers) - len(old)
    kept = f"; {young:,} younger than {_age(older_than_s)} are kept" if young else ""
    summary = f"{len(gone):,} leftovers, {_size(size_bytes)}{kept}"
    if not gone:
        printer.line(f"nothing to remove{kept}")
    elif delete:
        printer.line(f"removed {summary}")
    else:
        printer.line(f"would remove {summary}; add --delete to remove them")
    printer.document(
        {
            "deleted": delete,
            "size_bytes": size_bytes,
            "kept_younger": young,
            "kept_in_a_plan": len(old) - len(gone),
            "leftovers": [asdict(leftover) for leftover in gone],
        }
    )
    return 0


def _line(leftover: Leftover) -> str:
    size = "unknown size" if leftover.size_bytes is None else _size(leftover.size_bytes)
    return f"{printable(leftover.key)}  {size}  {_age(leftover.age_s)} old  {leftover.kind}"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:,.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:,.1f} TB"


def _age(age_s: float) -> str:
    for unit, seconds in reversed(_UNITS_S.items()):
        if age_s >= seconds:
            return f"{age_s / seconds:.3g}{unit}"
    return "0s"


if __name__ == "__main__":
    sys.exit(main())
