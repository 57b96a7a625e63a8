"""Write a report on a finished run, a conversation, an evaluation or a summary table, as one HTML file that needs no network.

Exit status: 0 written, or it existed already; 1 a file cannot be read or written; 2 the command line is wrong, or there
is nothing to report on; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, NamedTuple

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.errors import ConfigError
from pipeline.layout import PAGE, run_key
from pipeline.processes import search_path
from pipeline.redaction import without_query

if TYPE_CHECKING:
    from pipeline.analytics.report.page import Page
    from pipeline.dataset.reader import Rows

_PACKAGES = ("duckdb", "jinja2", "matplotlib")
_DRAWN_WITHIN_S = 600.0


def can_draw() -> bool:
    """Return whether the packages that draw pages are installed."""
    return all(map(find_spec, _PACKAGES))


class Drawn(NamedTuple):
    """Result of drawing a page: its location or None, and a line that says where it is or why there is none."""

    page: str | None
    line: str


def draw(output: str, run: str) -> Drawn:
    """Draw the page of a finished run in a separate process, so that a crash there cannot fail the run.

    If that process fails, the store is checked for the page: a process can crash or hang after it wrote the page.

    Costs about three CPU seconds for a small run, half of them for imports.
    """
    again = f"python -m jobs.report {output} {run}"
    if not can_draw():
        return Drawn(None, f"page: none, its packages are not installed; pip install -e '.[analytics]', then {again}")
    words = [sys.executable, "-m", "jobs.report", output, run]
    environment = {**os.environ, "PYTHONPATH": search_path()}
    try:
        done = subprocess.run(
            words, env=environment, capture_output=True, text=True, timeout=_DRAWN_WITHIN_S, check=False
        )
        why = done.stderr.strip().rpartition("\n")[2] or f"status {done.returncode}"
        drawn = done.returncode == 0
    except (OSError, subprocess.TimeoutExpired) as error:
        why, drawn = type(error).__name__, False
    if drawn or _exists(output, page_key(run)):
        page = f"{output.rstrip('/')}/{page_key(run)}"
        return Drawn(page, f"page in {page}")
    return Drawn(None, f"page: none ({why}); {again} tries again")


def _exists(output: str, key: str) -> bool:
    from pipeline.dataset.parts import is_committed
    from pipeline.storage.cleanup import STORE_ERRORS
    from pipeline.storage.store import open_store

    try:
        return is_committed(open_store(output), key)
    except (ConfigError, *STORE_ERRORS):  # the store is out of reach; drawing again does no harm
        return False


def page_key(run: str) -> str:
    """Return the key of the page of a run."""
    return run_key(run, PAGE)


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "report",
        usage="%(prog)s OUT [RUN] [--to FILE] | OUT --recording ID --to FILE | --evaluation FOLDER --to FILE | "
        "--summary FILE --to FILE",
        description="Write a report as one HTML file. Of a run, it goes to OUT/_runs/RUN/report.html unless --to says otherwise.",
        epilog="Labels are a model's estimates; the page says what they may not be used for.",
    )
    parser.add_argument("output", nargs="?", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "run", nargs="?", metavar="RUN", help="number of the run, as in 000007 (default: the last finished run)"
    )
    parser.add_argument("--evaluation", metavar="FOLDER", help="folder that jobs.evaluate --write wrote")
    parser.add_argument("--summary", metavar="FILE", help="file that jobs.summarize --to wrote")
    parser.add_argument(
        "--recording", metavar="ID", help="the conversation of this recording, over time; an id or an audio reference"
    )
    parser.add_argument(
        "--audio",
        choices=("copy", "link"),
        help="make the utterances of --recording playable: copy puts up to 10 minutes of them into the page as MP3, link refers "
        "to local files and http(s); without it a page has no audio",
    )
    parser.add_argument("--to", metavar="FILE", help="file to write the page to")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --to names")
    parser.add_argument(
        "--with-texts",
        action="store_true",
        help="show transcripts, on the page of a run, a conversation or an evaluation; needs --to",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Write a report and return the exit status."""
    parser = command_line()
    flags = parser.parse_all(arguments)
    if sum(map(bool, (flags.output, flags.evaluation, flags.summary))) != 1:
        parser.error("name one of OUT, --evaluation and --summary")
    if not flags.to and (flags.evaluation or flags.summary):
        parser.error("--to is required with --evaluation and --summary: name the file to write the page to")
    if flags.recording and not (flags.output and flags.to):
        parser.error("--recording needs OUT and --to: name the file to write the page to")
    if flags.audio and not flags.recording:
        parser.error("--audio is for the page of a conversation: name one with --recording")
    if flags.with_texts and (flags.summary or not flags.to):
        parser.error(
            "--with-texts is for the page of a run or an evaluation, and needs --to: pages inside an output contain no "
            "transcripts"
        )
    return run_guarded("report", lambda printer: _report(flags, printer), json=flags.json)


def _report(flags: argparse.Namespace, printer: Printer) -> int:
    from pipeline.dataset.reader import optional
    from pipeline.storage.files import require_absent, write_file

    for package in _PACKAGES:
        optional(package, extra="analytics")
    if flags.to:
        require_absent(flags.to, overwrite=flags.overwrite)
    if flags.output and not flags.to:
        return _into_output(flags, printer)
    write_file(flags.to, _page(flags))
    printer.line(f"written to {without_query(flags.to)}")
    printer.document({"page": without_query(flags.to), "written": True})
    return 0


def _page(flags: argparse.Namespace) -> bytes:
    from pipeline.analytics.report.page import render

    if flags.evaluation:
        from pipeline.analytics.report.evaluation import evaluation_page

        return render(evaluation_page(flags.evaluation, with_texts=flags.with_texts))
    if flags.summary:
        from pipeline.analytics.report.summary import summary_page

        return render(summary_page(flags.summary))
    if flags.recording:
        return render(_conversation(flags))
    from pipeline.analytics.report.run import run_page

    return render(run_page(_rows(flags), with_texts=flags.with_texts))


def _conversation(flags: argparse.Namespace) -> Page:
    from pipeline.analytics.report.clips import Audio
    from pipeline.analytics.report.conversation import recording_page
    from pipeline.dataset.reader import finished_rows
    from pipeline.storage.store import open_store

    rows = finished_rows(open_store(flags.output))
    rows = rows.of([flags.run]) if flags.run else rows
    audio = Audio(flags.audio) if flags.audio else None
    return recording_page(rows, flags.recording, with_texts=flags.with_texts, audio=audio)


def _rows(flags: argparse.Namespace) -> Rows:
    from pipeline.dataset.reader import finished_rows
    from pipeline.storage.store import open_store

    rows = finished_rows(open_store(flags.output))
    if not rows.plans and not flags.run:
        raise ConfigError(f"{flags.output} has no finished run; start its jobs.annotate again, then this")
    return rows.of([flags.run or rows.plans[-1].plan])


def _into_output(flags: argparse.Namespace, printer: Printer) -> int:
    """Write the page next to the run's report.json. An existing page is kept."""
    from pipeline.analytics.report.page import render
    from pipeline.analytics.report.run import run_page
    from pipeline.dataset.parts import is_committed
    from pipeline.storage.cleanup import reaching

    rows = _rows(flags)
    key = page_key(rows.plans[0].plan)
    with reaching(rows.store, key):
        exists = is_committed(rows.store, key)
    written = not exists and rows.store.put_if_absent(key, render(run_page(rows)))
    page = f"{without_query(flags.output).rstrip('/')}/{key}"
    printer.line(f"{'written to' if written else 'exists already:'} {page}")
    printer.document({"page": page, "written": bool(written)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
