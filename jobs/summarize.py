"""Summarize an output by speaker, day or any column. Each call adds the finished runs not yet summarized.

Writes OUT/summaries/<columns>/<run>.parquet, one file per run, and prints the groups over all runs: all groups, or the
first 50 on a terminal. docs/summaries.md describes the columns. Exit status: 0 done, or nothing new; 1 a file cannot be
read or written; 2 the command line is wrong, or there is no output; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pyarrow as pa

from jobs.parser import Parser, run_guarded, whole_number
from jobs.printer import Printer
from pipeline.analytics.printed import json_rows, table_lines, terminal_width
from pipeline.analytics.summarize import Groups, merged, parse_groups, summarize, undivided
from pipeline.dataset.plan import parquet_bytes
from pipeline.dataset.reader import asking, finished_rows, quoted
from pipeline.errors import ConfigError
from pipeline.redaction import without_query
from pipeline.schema import DIMENSIONS, EMOTIONS, NULL_REASONS
from pipeline.storage.files import require_absent, write_file
from pipeline.storage.store import open_store

_SHOWN = (
    "SELECT {}, recordings, utterances, round(speech_s) AS speech_s, round(speech_share, 2) AS speech_share, "
    + "".join(f"round(share.{emotion}, 2) AS {emotion}, " for emotion in EMOTIONS)
    + "round(confidence, 2) AS confidence, round(changes, 2) AS changes, opens_with, closes_with{} FROM groups"
)
_DIMENSIONS = "".join(f", round(mean_{name}, 2) AS {name}" for name in DIMENSIONS)
_REASONS = "".join(f", round(null_share.{reason}, 2) AS {reason}" for reason in NULL_REASONS)
_ON_A_TERMINAL = 50
"""Number of groups printed on a terminal without --rows."""


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "summarize",
        usage="%(prog)s OUT --by COLUMN[,COLUMN] [NAME=SQL ...] [--rows N] [--to FILE]",
        description="Emotions, confidence and speech by group, as Parquet that adds up. Reads only new runs.",
        epilog="Groups of few utterances say little, and labels are a model's estimates.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--by",
        nargs="+",
        action="extend",
        required=True,
        metavar="GROUP",
        help="columns, as in recording_id or speaker,channel; or NAME=SQL, as in "
        '"day=strftime(recorded_at::TIMESTAMP, \'%%Y-%%m-%%d\')" or "minute=floor(start_s / 60)"',
    )
    parser.add_argument(
        "--rows",
        type=whole_number,
        metavar="N",
        help=f"print only the first N groups (default: all; on a terminal {_ON_A_TERMINAL})",
    )
    parser.add_argument("--to", metavar="FILE", help="also write the table of all runs to a Parquet file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --to names")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Summarize an output and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("summarize", lambda printer: _summarize(flags, printer), json=flags.json)


def _summarize(flags: argparse.Namespace, printer: Printer) -> int:
    if flags.to:
        if not flags.to.endswith(".parquet"):
            raise ConfigError(
                f"--to {without_query(flags.to)}: the table is Parquet; name a file that ends in .parquet"
            )
        require_absent(flags.to, overwrite=flags.overwrite)
    rows = finished_rows(open_store(flags.output))
    groups = parse_groups(flags.by, rows.schema().names)
    folder, new = f"{without_query(flags.output)}/{groups.folder}", {}
    for plan, count in summarize(rows, groups):
        new[plan] = count
        printer.line(f"run {plan}: {count:,} groups")
    left_out = f"; left out because they are not finished: {', '.join(rows.unfinished)}" if rows.unfinished else ""
    printer.line(f"{len(new) or 'nothing'} new, {len(rows.plans):,} runs in {folder}{left_out}\n")
    table = merged(rows.store, groups) if rows.plans else None
    if table is not None:
        _print(table, groups, flags.rows, printer)
        if flags.to:
            write_file(flags.to, parquet_bytes(table))
            printer.line(f"all columns of {table.num_rows:,} groups written to {without_query(flags.to)}")
    printer.document(
        {
            "folder": folder,
            "new_runs": new,
            "finished_runs": len(rows.plans),
            "unfinished_runs": list(rows.unfinished),
            "written_to": without_query(flags.to) if flags.to and table is not None else None,
            "num_groups": 0 if table is None else table.num_rows,
            "groups": [] if table is None else json_rows(table.slice(0, flags.rows)),
        }
    )
    return 0


def _outputs(table: pa.Table) -> str:
    """Return the SQL of the shares without an emotion and of the mean dimensions, where a group has any."""
    if "null_share" not in table.column_names:
        return ""
    reasons = any(share for shares in table["null_share"].to_pylist() for share in shares.values())
    dimensions = any(table[f"mean_{name}"].null_count < table.num_rows for name in DIMENSIONS)
    return _REASONS * reasons + _DIMENSIONS * dimensions


def _print(table: pa.Table, groups: Groups, rows: int | None, printer: Printer) -> None:
    """Print the groups with all columns, even when the terminal is narrower than the table."""
    width = terminal_width()
    if rows is None:
        rows = table.num_rows if width is None else _ON_A_TERMINAL
    with asking(groups=table.slice(0, rows)) as connection:
        names = ", ".join(map(quoted, groups.by))
        printed = connection.sql(_SHOWN.format(names, _outputs(table))).to_arrow_table()
    for line in table_lines(printed, width=width, keys=len(groups.by)):
        printer.line(line)
    left = table.num_rows - printed.num_rows
    if left:
        printer.line(f"{left:,} more groups; --rows {table.num_rows} prints all, --to FILE writes all")
    for name in undivided(table, groups):
        print(
            f"note: {name} is not a whole number in every group: // rounds integers only. For decimals write floor(a / b), "
            "under another name",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
