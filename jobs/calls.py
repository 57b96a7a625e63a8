"""Measure conversations: talk, silence, interruptions, speed, loudness and emotion, per call and per speaker.

Writes OUT/summaries/@calls/<columns>/<run>.parquet, one file per run, and prints the calls of all runs: all calls, or the
first 50 rows on a terminal. docs/calls.md describes the columns and the JSON. Exit status: 0 done, or nothing new; 1 a file
cannot be read or written; 2 the command line is wrong, or there is no output; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from jobs.table_options import ON_A_TERMINAL, add_table_options, progress_line, require_table_file
from pipeline.analytics.calls.columns import CALL
from pipeline.analytics.calls.document import (
    by_call,
    document,
    emotion_shares,
    loudness_dbfs,
    talk_share,
    words_per_minute,
)
from pipeline.analytics.calls.metrics import Calls, call_rows, default_speaker, measure_calls, parse_calls
from pipeline.analytics.printed import table_lines, terminal_width
from pipeline.dataset.plan import parquet_bytes
from pipeline.dataset.reader import finished_rows
from pipeline.redaction import without_query
from pipeline.schema import DIMENSIONS
from pipeline.storage.files import write_file
from pipeline.storage.store import open_store


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "calls",
        usage="%(prog)s OUT [--by COLUMN[,COLUMN] [NAME=SQL ...]] [--speaker COLUMN] [--rows N] [--to FILE]",
        description="Talk, silence, interruptions, speed, loudness and emotion, per call and per speaker. Reads only new runs.",
        epilog="Times are those of the utterances, which begin and end 0.2 s outside speech; labels are a model's estimates.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        metavar="CALL",
        help="columns that identify a call, or NAME=SQL (default: audio, the recording's URI)",
    )
    parser.add_argument(
        "--speaker",
        metavar="COLUMN",
        help="column that tells the speakers of a call apart, such as channel or speaker (default: speaker_id where the output "
        "was made with speakers, else channel)",
    )
    add_table_options(parser, "rows")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the calls of an output and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("calls", lambda printer: _calls(flags, printer), json=flags.json)


def _calls(flags: argparse.Namespace, printer: Printer) -> int:
    require_table_file(flags)
    rows = finished_rows(open_store(flags.output))
    calls = parse_calls(flags.by or ["audio"], flags.speaker or default_speaker(rows), rows.schema().names)
    folder, new = f"{without_query(flags.output)}/{calls.folder}", {}
    for plan, count in measure_calls(rows, calls):
        new[plan] = count
        printer.line(f"run {plan}: {count:,} calls")
    printer.line(progress_line(len(new), rows, folder))
    table = call_rows(rows.store, calls) if rows.plans else None
    names = list(calls.groups.by)
    if table is not None:
        _print(table, calls, flags.rows, printer)
        if flags.to:
            write_file(flags.to, parquet_bytes(table))
            printer.line(f"all columns of {table.num_rows:,} rows written to {without_query(flags.to)}")
    printer.document(
        {
            "folder": folder,
            "new_runs": new,
            "finished_runs": len(rows.plans),
            "unfinished_runs": list(rows.unfinished),
            "written_to": without_query(flags.to) if flags.to and table is not None else None,
            "calls": [] if table is None else [document(*each, names) for each in by_call(table, names)][: flags.rows],
        }
    )
    return 0


def _print(table: pa.Table, calls: Calls, rows: int | None, printer: Printer) -> None:
    """Print a row for each call and each of its speakers; a call whose one speaker has no name has the first alone."""
    width, names = terminal_width(), list(calls.groups.by)
    if rows is None:
        rows = table.num_rows if width is None else ON_A_TERMINAL
    lines = [
        _line(row, names, sum(each["talk_s"] for each in speakers))
        for call, speakers in by_call(table.slice(0, _whole_calls(table, rows)), names)
        for row in (call, *(speakers if len(speakers) > 1 or speakers[0]["speaker"] is not None else ()))
    ]
    if not lines:
        printer.line("no utterance belongs to a call: the columns of --by are null")
        return
    for line in table_lines(pa.Table.from_pylist(lines[:rows]), width=width, keys=len(names) + 1):
        printer.line(line)
    if table.num_rows > rows:
        printer.line(f"{table.num_rows - rows:,} more rows; --rows {table.num_rows} prints all, --to FILE writes all")


def _whole_calls(table: pa.Table, rows: int) -> int:
    """Return the number of rows up to the end of the call that has the last of the first `rows` rows."""
    scopes = table["scope"].to_pylist()
    return next((number for number in range(rows, len(scopes)) if scopes[number] == CALL), len(scopes))


def _line(row: Any, names: list[str], total_s: float) -> dict[str, object]:  # noqa: ANN401 - a row of any columns
    """Return the printed columns of one row."""
    is_call = row["scope"] == CALL
    shares = emotion_shares(row["by_emotion"])
    most = max(shares, key=lambda emotion: shares[emotion]) if shares else None
    values = {
        **{name: row[name] for name in names},
        "speaker": "(all)" if is_call else row["speaker"],
        "length_s": _rounded(row["length_s"], 1) if is_call else None,
        "talk_s": _rounded(row["talk_s"], 1),
        "talk_share": None if is_call else _rounded(talk_share(row, total_s), 2),
        "silence_s": _rounded(row["silence_s"], 1) if is_call else None,
        "overlap_s": _rounded(row["overlap_s"], 1),
        "interruptions": row["interruptions"],
        "words_per_minute": _rounded(words_per_minute(row), 0),
        "loudness_dbfs": _rounded(loudness_dbfs(row), 1),
        "first": row["first_emotion"],
        "last": row["last_emotion"],
        "most": most,
        "share": _rounded(shares[most], 2) if most else None,
    }
    dimensions = {
        name: _rounded(row[f"{name}_sum"] / row[f"{name}_count"], 2) for name in DIMENSIONS if row[f"{name}_count"]
    }
    return values | dimensions


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


if __name__ == "__main__":
    sys.exit(main())
