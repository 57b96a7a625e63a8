"""Options and messages of the jobs that print a table of all runs and write it to a file: summarize and calls."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from jobs.parser import Parser, whole_number
from pipeline.errors import ConfigError
from pipeline.redaction import without_query

if TYPE_CHECKING:
    from pipeline.dataset.reader import Rows

ON_A_TERMINAL = 50
"""Number of rows printed on a terminal without --rows."""


def add_table_options(parser: Parser, what: str) -> None:
    """Add `--rows`, `--to` and `--overwrite`. Args: what: the rows of the table, as in "groups"."""
    parser.add_argument(
        "--rows",
        type=whole_number,
        metavar="N",
        help=f"print only the first N {what} (default: all; on a terminal {ON_A_TERMINAL})",
    )
    parser.add_argument("--to", metavar="FILE", help="also write the table of all runs to a Parquet file")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --to names")


def require_table_file(flags: argparse.Namespace) -> None:
    """Check `--to` before any work. Raises: ConfigError when it names no new Parquet file."""
    from pipeline.storage.files import require_absent

    if flags.to:
        if not flags.to.endswith(".parquet"):
            raise ConfigError(
                f"--to {without_query(flags.to)}: the table is Parquet; name a file that ends in .parquet"
            )
        require_absent(flags.to, overwrite=flags.overwrite)


def progress_line(new: int, rows: Rows, folder: str) -> str:
    """Return the line about the runs that are new, present and not finished."""
    left_out = f"; left out because they are not finished: {', '.join(rows.unfinished)}" if rows.unfinished else ""
    return f"{new or 'nothing'} new, {len(rows.plans):,} runs in {folder}{left_out}\n"
