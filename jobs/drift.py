"""Detect drift: compare the last finished run with the runs before it, or any two windows. Reads only.

Exit status: 0 within the limits, or nothing to compare yet; 1 a file cannot be read; 2 the command line is wrong, there
is no output, or a window is empty; 3 drift; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded
from pipeline.analytics.drift import LIMITS, Compared, Window, compare
from pipeline.dataset.reader import Rows, finished_rows
from pipeline.errors import ConfigError
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
        description="Compare emotion, confidence, duration, language, reject reasons and embeddings of two windows.",
        epilog="Exit status: 0 within the limits, 3 drift. What chance alone could give is never called drift.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument("--current", metavar="WINDOW",
                        help="runs, as 000007 or 000005-000007, or a condition in SQL (default: the last run)")  # fmt: skip
    parser.add_argument("--reference", metavar="WINDOW", help="likewise (default: all runs before the current ones)")
    parser.add_argument("--reference-output", metavar="OUT", help="the reference lies in another output")
    for name, meaning in _LIMITS.items():
        parser.add_argument(
            f"--max-{name}", type=float, default=LIMITS[name], metavar="X", help=f"{meaning} (default: {LIMITS[name]})"
        )
    parser.add_argument(
        "--no-embeddings", action="store_true", help="leave embeddings unread, which are most of the bytes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare two windows and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("drift", lambda: _drift(flags))


def _drift(flags: argparse.Namespace) -> int:
    windows = _windows(flags)
    if windows is None:
        nothing = f"nothing to compare: {flags.output} has one finished run at most"
        print(json.dumps({"verdict": "nothing to compare", "measures": []}) if flags.json else nothing)
        return 0
    limits = {name: vars(flags)[f"max_{name}"] for name in LIMITS}
    compared = compare(*windows, limits=limits, embeddings=not flags.no_embeddings)
    if flags.json:
        document = {
            "verdict": compared.verdict,
            "reference": windows[0].as_dict(),
            "current": windows[1].as_dict(),
            "recordings": compared.recordings,
            "measures": [measure.as_dict() for measure in compared.measures],
            "left_out": compared.left_out,
        }
        print(json.dumps(document, indent=1))
    else:
        _tell(compared)
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


def _window(rows: Rows, asked: str | None) -> Window:
    if not asked or not _RUNS.fullmatch(asked):
        return Window(rows, asked)
    names: list[str] = []
    for word in asked.split(","):
        first, _, last = word.partition("-")
        names += [f"{number:06d}" for number in range(int(first), int(last or first) + 1)]
    return Window(rows.of(names))


def _tell(compared: Compared) -> None:
    print("{:,} recordings in the reference, {:,} in the current window\n".format(*compared.recordings))
    line = "{:<16} {:<6} {:>8} {:>8} {:>8}  {:<8} {}"
    print(line.format("column", "", "value", "limit", "noise", "", "what changed most"))
    for found in compared.measures:
        part = f"  [{found.part}]" if found.part else ""
        numbers = (f"{number:.3f}" for number in (found.value, found.limit, found.noise))
        print(line.format(found.column, found.measure, *numbers, found.verdict, found.change + part))
    for sentence in compared.left_out:
        print(f"not compared: {sentence}")
    drifted = sorted({found.column for found in compared.measures if found.drifted})
    unsure = sorted({found.column for found in compared.measures if found.verdict == "too few"})
    print(f"\n{'drift: ' + ', '.join(drifted) if drifted else 'no drift'}"
          + (f"; too few recordings to see one as large as the limit: {', '.join(unsure)}" if unsure else ""))  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
