"""Summarize an output by speaker, day or any column. Each call adds the finished runs not yet summarized.

Writes OUT/summaries/<columns>/<run>.parquet, one file per run, and prints the groups over all runs: all groups, or the
first 50 on a terminal. docs/summaries.md describes the columns. Exit status: 0 done, or nothing new; 1 a file cannot be
read or written; 2 the command line is wrong, or there is no output; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence

import pyarrow as pa

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from jobs.table_options import ON_A_TERMINAL, add_table_options, progress_line, require_table_file
from pipeline.analytics.printed import json_rows, table_lines, terminal_width
from pipeline.analytics.summarize import Groups, merged, parse_groups, summarize, undivided
from pipeline.config.further import BY_MODEL
from pipeline.dataset.plan import parquet_bytes
from pipeline.dataset.reader import asking, finished_rows, quoted
from pipeline.redaction import without_query
from pipeline.schema import DIMENSIONS, EMOTIONS, NULL_REASONS
from pipeline.storage.files import write_file
from pipeline.storage.store import open_store

_SHOWN = (
    "SELECT {}, recordings, utterances, round(speech_s) AS speech_s, round(speech_share, 2) AS speech_share, "
    + "".join(f"round(share.{emotion}, 2) AS {emotion}, " for emotion in EMOTIONS)
    + "round(confidence, 2) AS confidence, round(changes, 2) AS changes, opens_with, closes_with{} FROM groups"
)
_OF_FURTHER = (
    "SELECT {}, "
    + "".join(f"round({{of}}share.{emotion}, 2) AS {emotion}, " for emotion in EMOTIONS)
    + "round({of}confidence, 2) AS confidence, round({of}agreement, 2) AS agreement{} FROM groups"
)
_DIMENSIONS = "".join(f", round({{of}}mean_{name}, 2) AS {name}" for name in DIMENSIONS)
_REASONS = "".join(f", round({{of}}null_share.{reason}, 2) AS {reason}" for reason in NULL_REASONS)


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
    add_table_options(parser, "groups")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Summarize an output and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("summarize", lambda printer: _summarize(flags, printer), json=flags.json)


def _summarize(flags: argparse.Namespace, printer: Printer) -> int:
    require_table_file(flags)
    rows = finished_rows(open_store(flags.output))
    groups = parse_groups(flags.by, rows.schema().names)
    folder, new = f"{without_query(flags.output)}/{groups.folder}", {}
    for plan, count in summarize(rows, groups):
        new[plan] = count
        printer.line(f"run {plan}: {count:,} groups")
    printer.line(progress_line(len(new), rows, folder))
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


def _outputs(columns: Mapping[str, pa.Array | pa.ChunkedArray], of: str = "") -> str:
    """Return the SQL of the shares without an emotion and of the mean dimensions, where a group has any.

    Args:
        columns: columns of the groups, or fields of a further model by their names.
        of: prefix of these names in SQL.
    """
    if "null_share" not in columns:
        return ""
    reasons = any(share for shares in columns["null_share"].to_pylist() for share in shares.values())
    means = [columns[f"mean_{name}"] for name in DIMENSIONS]
    dimensions = any(mean.null_count < len(mean) for mean in means)
    return (_REASONS * reasons + _DIMENSIONS * dimensions).format(of=of)


def _printed(table: pa.Table, groups: Groups) -> Iterator[tuple[str, pa.Table]]:
    """Yield the printed table of the main model, without a name, and that of each further model with its name."""
    names = ", ".join(map(quoted, groups.by))
    with asking(groups=table) as connection:
        main = dict(zip(table.column_names, table.columns, strict=True))
        yield "", connection.sql(_SHOWN.format(names, _outputs(main))).to_arrow_table()
        for name in [field.name for field in table.field(BY_MODEL).type] if BY_MODEL in main else ():
            struct = main[BY_MODEL].combine_chunks().field(name)
            fields = {field.name: struct.field(field.name) for field in struct.type}
            of = f"{BY_MODEL}.{name}."
            yield name, connection.sql(_OF_FURTHER.format(names, _outputs(fields, of), of=of)).to_arrow_table()


def _print(table: pa.Table, groups: Groups, rows: int | None, printer: Printer) -> None:
    """Print the groups with all columns, even when the terminal is narrower than the table."""
    width = terminal_width()
    if rows is None:
        rows = table.num_rows if width is None else ON_A_TERMINAL
    for name, printed in _printed(table.slice(0, rows), groups):
        if name:
            printer.line(f"\nfurther model {name}; agreement is with the emotions of the main model\n")
        for line in table_lines(printed, width=width, keys=len(groups.by)):
            printer.line(line)
    left = table.num_rows - rows
    if left > 0:
        printer.line(f"{left:,} more groups; --rows {table.num_rows} prints all, --to FILE writes all")
    for name in undivided(table, groups):
        print(
            f"note: {name} is not a whole number in every group: // rounds integers only. For decimals write floor(a / b), "
            "under another name",
            file=sys.stderr,
        )


if __name__ == "__main__":
    sys.exit(main())
