"""Detect drift: compare the last finished run with the runs before it, or any two windows. Reads only.

Exit status: 0 within the limits, or nothing to compare yet; 1 a file cannot be read; 2 the command line is wrong, there
is no output, or a window is empty; 3 drift; 130 interrupted.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.analytics.drift import LIMITS, Compared, Window, compare
from pipeline.dataset.reader import Rows, finished_rows
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.storage.store import open_store

DRIFTED = 3
_LIMITS = {
    "psi": "population stability index",
    "js": "Jensen-Shannon distance",
    "shift": "of an embedding's centroid, in spreads of the reference",
}
_RUNS = re.compile(r"[0-9]{6,}(-[0-9]{6,})?(,[0-9]{6,}(-[0-9]{6,})?)*")


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "drift",
        usage="%(prog)s OUT [--current WINDOW] [--reference WINDOW] [options]",
        description="Compare emotion, labels, dimensions, confidence, duration, language, reject reasons and embeddings of two "
        "windows, and the same of further models.",
        epilog="Exit status: 0 within the limits, 3 drift. What chance alone could give is never called drift.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--current",
        metavar="WINDOW",
        help="runs, as 000007 or 000005-000007, or a condition in SQL (default: the last run)",
    )
    parser.add_argument("--reference", metavar="WINDOW", help="likewise (default: all runs before the current ones)")
    parser.add_argument("--reference-output", metavar="OUT", help="the reference lies in another output")
    for name, meaning in _LIMITS.items():
        parser.add_argument(
            f"--max-{name}", type=float, default=LIMITS[name], metavar="X", help=f"{meaning} (default: {LIMITS[name]})"
        )
    parser.add_argument(
        "--no-embeddings", action="store_true", help="leave embeddings unread, which are most of the bytes"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two windows and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("drift", lambda printer: _drift(flags, printer), json=flags.json)


def _drift(flags: argparse.Namespace, printer: Printer) -> int:
    windows = _windows(flags)
    if windows is None:
        printer.line(f"nothing to compare: {without_query(flags.output)} has one finished run at most")
        printer.document({"verdict": "nothing to compare", "measures": []})
        return 0
    limits = {name: vars(flags)[f"max_{name}"] for name in LIMITS}
    compared = compare(*windows, limits=limits, embeddings=not flags.no_embeddings)
    _print(compared, printer)
    printer.document(
        {
            "verdict": compared.verdict,
            "reference": windows[0].as_dict(),
            "current": windows[1].as_dict(),
            "recordings": compared.recordings,
            "measures": [measure.as_dict() for measure in compared.measures],
            "left_out": compared.left_out,
        }
    )
    return DRIFTED if compared.verdict == "drift" else 0


def _windows(flags: argparse.Namespace) -> tuple[Window, Window] | None:
    """Return the reference and the current window, or None when neither is given and there are too few runs."""
    rows = finished_rows(open_store(flags.output))
    elsewhere = finished_rows(open_store(flags.reference_output)) if flags.reference_output else None
    if not flags.current and not flags.reference and len(rows.plans) < (1 if elsewhere else 2):
        return None
    current = _window(rows, flags.current or max((plan.plan for plan in rows.plans), default=""))
    if flags.reference or elsewhere:
        return _window(elsewhere or rows, flags.reference), current
    if current.where:
        raise ConfigError("say with --reference what to compare the condition of --current with")
    first = min(plan.plan for plan in current.rows.plans)
    return _window(rows.of(plan.plan for plan in rows.plans if plan.plan < first), None), current


def _window(rows: Rows, window: str | None) -> Window:
    if not window or not _RUNS.fullmatch(window):
        return Window(rows, window)
    names: list[str] = []
    for word in window.split(","):
        first, _, last = word.partition("-")
        names += [f"{number:06d}" for number in range(int(first), int(last or first) + 1)]
    return Window(rows.of(names))


def _print(compared: Compared, printer: Printer) -> None:
    printer.line("{:,} recordings in the reference, {:,} in the current window\n".format(*compared.recordings))
    longest = max((len(measure.column) for measure in compared.measures), default=0)
    line = f"{{:<{max(16, longest)}}} {{:<6}} {{:>8}} {{:>8}} {{:>8}}  {{:<8}} {{}}"
    printer.line(line.format("column", "", "value", "limit", "noise", "", "largest change"))
    for measure in compared.measures:
        part = f"  [{measure.part}]" if measure.part else ""
        numbers = (f"{number:.3f}" for number in (measure.value, measure.limit, measure.noise))
        printer.line(line.format(measure.column, measure.measure, *numbers, measure.verdict, measure.change + part))
    for sentence in compared.left_out:
        printer.line(f"not compared: {sentence}")
    drifted = sorted({measure.column for measure in compared.measures if measure.drifted})
    unsure = sorted({measure.column for measure in compared.measures if measure.verdict == "too few"})
    verdict = f"drift: {', '.join(drifted)}" if drifted else "no drift"
    hint = f"; too few recordings to see a drift as large as the limit: {', '.join(unsure)}" if unsure else ""
    printer.line(f"\n{verdict}{hint}")


if __name__ == "__main__":
    sys.exit(main())
