"""Erase rows from every file of an output. Without --yes it only counts them.

    python -m jobs.erase out --where "speaker = 'ada'"
    python -m jobs.erase out --recording call-17 call-18 --reason "request of 3 May" --yes
    python -m jobs.erase out --manifest withdrawn.jsonl --yes
    python -m jobs.erase out --older-than 365 --by recorded_at --yes

Exit status: 0 done, or nothing to erase; 1 the store failed, and the same command continues; 2 the command line is wrong, a
run is unfinished, or the bucket keeps old versions; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded, whole_number
from jobs.printer import Printer
from pipeline.analytics.erased_copies import erase_copies
from pipeline.analytics.erased_tables import erase_from_table, require_table
from pipeline.analytics.hub import repositories
from pipeline.dataset.erase.choice import Chosen, find, require_finished, rows_where
from pipeline.dataset.erase.protocol import Changes, begin, finish, pending
from pipeline.dataset.erase.retention import expired
from pipeline.dataset.erase.rewrite import rewrite
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import committed_rows
from pipeline.dataset.tombstones import read_tombstones
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.read import expand, read_ids
from pipeline.redaction import without_query
from pipeline.storage.cleanup import reaching
from pipeline.storage.store import Store, open_store
from pipeline.storage.versions import require_unversioned

_REPEAT = "Run the same command again: it finishes the erasure. Until then no job starts on this output."


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "erase",
        usage="%(prog)s OUT (--where SQL | --recording ID... | --manifest LIST | --older-than DAYS [--by COLUMN] | --finish) "
        "[--table FORMAT:TABLE]... [--reason TEXT] [--yes]",
        description="Erase rows from every file of an output of jobs.annotate: utterances, rejects, plans, compacted files, "
        "summaries and reports. A salted hash of each id stays, so that no later run adds the row again. All other rows "
        "keep their values.",
        epilog="Erased is the whole recording. Folder names of --partition-by keep their values, and so do names of columns. "
        "docs/erase.md explains what stays and what else has to be done.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    rows = parser.add_mutually_exclusive_group(required=True)
    rows.add_argument(
        "--where", metavar="SQL", help="a condition on columns of utterances, current rejects and the manifest"
    )
    rows.add_argument("--recording", nargs="+", metavar="ID", help="values of recording_id")
    rows.add_argument(
        "--manifest", nargs="+", metavar="LIST", help="manifests with the rows, or with a column id alone"
    )
    rows.add_argument(
        "--older-than", type=whole_number, metavar="DAYS", help="rows of runs that were planned before, or see --by"
    )
    rows.add_argument(
        "--finish", action="store_true", help="only finish an erasure that was interrupted; implies --yes"
    )
    parser.add_argument("--by", metavar="COLUMN", help="with --older-than: the column with the date of a row")
    parser.add_argument(
        "--table",
        action="append",
        default=[],
        metavar="FORMAT:TABLE",
        help="erase from this table of jobs.compact --publish too, as delta:URI, iceberg:NAMESPACE.NAME or lance:URI; repeatable",
    )
    parser.add_argument(
        "--skip-table",
        action="append",
        default=[],
        metavar="FORMAT:TABLE",
        help="leave out a table that an interrupted erasure names and that does not exist any more; repeatable",
    )
    parser.add_argument("--reason", default="", metavar="TEXT", help="a reason to record; without personal data")
    parser.add_argument("--yes", action="store_true", help="erase them; without it they are only counted")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Erase or count the rows and return the exit status."""
    parser = command_line()
    flags = parser.parse_all(arguments)
    if flags.by and flags.older_than is None:
        parser.error("--by needs --older-than DAYS")
    return run_guarded("erase", lambda printer: _erase(flags, printer), json=flags.json, afterwards=_REPEAT)


def _erase(flags: argparse.Namespace, printer: Printer) -> int:
    store = open_store(flags.output)
    require_unversioned(store, "jobs.erase cannot erase old versions")
    with reaching(store):
        plans, entry = pending(store)
    if entry is not None:
        if not (flags.yes or flags.finish):
            printer.line(
                f"erasure {entry.plan} was interrupted, or runs now; with --yes or --finish it is finished first"
            )
            printer.document({"erased": False, "unfinished": entry.plan})
            return 0
        _carry_out(Changes(store), plans, entry, flags, printer)
        plans, _ = pending(store)
    finished = entry.plan if entry is not None else None
    if flags.finish:
        printer.line("no erasure is unfinished" if entry is None else f"erasure {finished} is finished")
        printer.document({"erased": entry is not None, "finished": finished})
        return 0
    for table in flags.table:
        require_table(table)
    chosen = _choose(store, flags, printer)
    _show(chosen, printer)
    copies = repositories(store)
    for name in copies if chosen.plans else ():
        printer.line(f"not erased: the copies in hub dataset {name}, and in its history; see docs/erase.md")
    erasure = None
    if chosen.plans and flags.yes:
        erasure = begin(Changes(store), plans, chosen, flags.reason, flags.table)
        _carry_out(Changes(store), plans, erasure, flags, printer)
        printer.line(f"erased; the erasure has number {erasure.plan}")
    elif chosen.plans:
        printer.line("add --yes to erase them")
    printer.document(
        {
            "erased": erasure is not None,
            "finished": finished,
            "erasure": erasure and erasure.plan,
            "recordings": chosen.recordings,
            "utterances": chosen.utterances,
            "rows_by_run": {name: lost.rows + lost.rejects for name, lost in chosen.plans.items()},
            "copies_on_a_hub": copies,
        }
    )
    return 0


def _choose(store: Store, flags: argparse.Namespace, printer: Printer) -> Chosen:
    rows = committed_rows(store)
    require_finished(rows)
    if flags.recording or flags.manifest:
        manifests = expand(flags.manifest, output=flags.output) if flags.manifest else []
        wanted = {*(flags.recording or ()), *(name for manifest in manifests for name in read_ids(manifest))}
        chosen = find(rows, wanted, id_keys([]))
        if len(wanted) > chosen.recordings:
            printer.line(f"{len(wanted) - chosen.recordings:,} of {len(wanted):,} ids are not in this output")
        return chosen
    condition = flags.where
    if flags.older_than is not None:
        condition = expired(rows, flags.older_than, flags.by)
    return find(rows, *rows_where(rows, condition))


def _carry_out(changes: Changes, plans: list[Plan], entry: Plan, flags: argparse.Namespace, printer: Printer) -> None:
    gone = read_tombstones(changes.store, entry)
    for run in rewrite(changes, entry, plans, gone):
        printer.line(f"run {run}: erased")
    erase_copies(changes, entry, gone)
    for table in entry.erasure.tables if entry.erasure else ():
        if table in flags.skip_table:
            printer.line(f"table {without_query(table)}: left out")
            continue
        printer.line(f"table {without_query(table)}: {erase_from_table(table, gone):,} recordings erased")
    finish(changes, entry)


def _show(chosen: Chosen, printer: Printer) -> None:
    for name, lost in chosen.plans.items():
        refused = f" and {lost.rejects:,} rejects of planning" if lost.rejects else ""
        printer.line(f"run {name}: {lost.rows:,} rows{refused}")
    printer.line(
        f"{chosen.recordings:,} recordings with {chosen.utterances:,} utterances" if chosen.plans else "no row to erase"
    )


if __name__ == "__main__":
    sys.exit(main())
