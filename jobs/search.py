"""Find the utterances of an output nearest to an utterance, a recording or a sentence. Reads only.

Exit status: 0 done, also when there is no match; 1 a file cannot be read; 2 the command line is wrong, there is no
output, or it has no such embedding; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.analytics.indexed import nearest_in_lance
from pipeline.analytics.nearest import SHOWN, nearest, shown_columns
from pipeline.analytics.printed import json_rows, table_lines, terminal_width
from pipeline.analytics.search import Query, query_by_audio, query_by_text, query_by_utterance
from pipeline.dataset.reader import Rows, finished_rows
from pipeline.errors import ConfigError
from pipeline.schema import EMBEDDINGS
from pipeline.storage.store import open_store


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "search",
        json="print one line of JSON for each utterance on standard output, and no table",
        usage="%(prog)s OUT (--like ID | --audio FILE | --text WORDS) [--where SQL] [--top N] [options]",
        description="Nearest utterances by the cosine of an embedding: exact, over all finished runs.",
        epilog="Rows of other models or languages are never compared: their embeddings share no space.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    query = parser.add_mutually_exclusive_group(required=True)
    query.add_argument("--like", metavar="ID", help="an utterance_id of the output")
    query.add_argument("--audio", metavar="FILE", help="any audio file or URI; the output's model embeds the voice")
    query.add_argument("--text", metavar="WORDS", help="a sentence; the output's model embeds it")
    parser.add_argument(
        "--language",
        metavar="CODE",
        help="language of --audio or --text, if the output has models of several languages",
    )
    parser.add_argument(
        "--embedding",
        choices=EMBEDDINGS,
        help="embedding to compare (default: that of the voice; with --text, that of the words)",
    )
    parser.add_argument(
        "--where",
        metavar="SQL",
        help="search only the utterances that satisfy this condition, as in \"emotion = 'anger' AND speaker <> 'ada'\" or "
        "\"by_model.words.emotion = 'joy'\"",
    )
    parser.add_argument("--top", type=int, default=10, metavar="N", help="number of utterances (default: 10)")
    parser.add_argument(
        "--columns",
        metavar="LIST",
        help="columns to print, or fields such as by_model.words.emotion "
        f"(default: {','.join(SHOWN)}, as far as the output has words)",
    )
    parser.add_argument(
        "--lance",
        metavar="TABLE",
        help="search this table, made by jobs.compact --publish lance; with its --index the search is approximate and fast",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Search an output and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("search", lambda printer: _search(flags, printer), json=flags.json)


def _search(flags: argparse.Namespace, printer: Printer) -> int:
    if flags.top < 1:
        raise ConfigError("--top must be 1 or more")
    rows = finished_rows(open_store(flags.output))
    query, columns = _query(rows, flags), flags.columns.split(",") if flags.columns else shown_columns(rows)
    if flags.lance:
        matches = nearest_in_lance(flags.lance, query, top=flags.top, where=flags.where, columns=columns)
    else:
        matches = nearest(rows, query, top=flags.top, where=flags.where, columns=columns)
    if printer.json:
        for row in json_rows(matches):
            printer.document(row, indent=None)
        return 0
    printer.line(f"nearest by {query.column} of {query.model}\n")
    rounded = pc.round(matches["similarity"].cast(pa.float64()), 4)
    for line in table_lines(matches.set_column(0, "similarity", rounded), width=terminal_width(), keys=2):
        printer.line(line)
    return 0


def _query(rows: Rows, flags: argparse.Namespace) -> Query:
    if flags.like is not None:
        return query_by_utterance(rows, flags.like, flags.embedding)
    if flags.audio is not None:
        return query_by_audio(rows, flags.audio, flags.language, flags.embedding)
    return query_by_text(rows, flags.text, flags.language, flags.embedding)


if __name__ == "__main__":
    sys.exit(main())
