"""Merge the small files of finished runs into few large ones, in a separate folder; or publish the runs as a table, or on a hub.

Writes to OUT/compacted/ and changes no existing file. Each call takes the finished runs that no earlier call took.

Exit status: 0 done, or nothing new; 1 a file cannot be read or written; 2 the command line is wrong, there is no
output, or a package is not installed; 130 interrupted. The same command resumes after 1 and 130.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.analytics.compact import compact
from pipeline.analytics.hub import Publication, publish_to_hub
from pipeline.analytics.indexed import bring_up_to_date
from pipeline.analytics.publish import FORMATS, publish
from pipeline.dataset.reader import Rows, finished_rows
from pipeline.errors import ConfigError
from pipeline.layout import COMPACTED
from pipeline.redaction import without_query
from pipeline.storage.store import open_store


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "compact",
        usage="%(prog)s OUT [--target-mb N] | OUT --publish FORMAT --table TABLE | OUT --publish hf --repo ID",
        description="Merge the small files of finished runs per partition into OUT/compacted. The small files stay: read one "
        "folder or the other; each holds every row once.",
    )
    parser.add_argument("output", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument("--target-mb", type=float, default=256, metavar="N", help="size of a large file (default: 256)")
    parser.add_argument(
        "--publish",
        choices=(*FORMATS, "hf"),
        help="instead, commit each finished run to a table of this format, or to a dataset of the Hugging Face hub; "
        "lance and iceberg: one publisher at a time",
    )
    parser.add_argument(
        "--table", metavar="TABLE", help="folder or URI; iceberg: namespace.name in pyiceberg's catalog"
    )
    parser.add_argument(
        "--repo",
        metavar="ID",
        help="hf: name/dataset on the hub, created private if it does not exist; the token is that of HF_TOKEN",
    )
    parser.add_argument(
        "--license", metavar="LICENSE", help="hf: license of a new dataset card, as in cc-by-4.0 (default: none)"
    )
    parser.add_argument(
        "--leave-out",
        nargs="+",
        action="extend",
        default=[],
        metavar="COLUMN",
        help="hf: columns not to publish, as in text audio",
    )
    parser.add_argument(
        "--index",
        action="store_true",
        help="with --publish lance: then make an index for each embedding, or "
        "bring it up to date, for jobs.search --lance",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Compact or publish the runs and return the exit status."""
    flags = command_line().parse_all(arguments)
    return run_guarded("compact", lambda printer: _compact(flags, printer), json=flags.json)


def _compact(flags: argparse.Namespace, printer: Printer) -> int:
    if not flags.target_mb > 0:
        raise ConfigError("--target-mb must be more than 0")
    _require_destination(flags)
    if flags.index and flags.publish != "lance":
        raise ConfigError("--index goes with --publish lance alone: the other formats have none")
    rows = finished_rows(open_store(flags.output))
    if flags.publish == "hf":
        return _publish_to_hub(rows, flags, printer)
    if flags.publish:
        return _publish(rows, flags, printer)
    folder, generations = f"{without_query(flags.output)}/{COMPACTED}", []
    for made in compact(rows, target_bytes=int(flags.target_mb * 1e6)):
        runs, files = made.generation.plans, len(made.generation.files)
        which = f"run {runs[0]}" if len(runs) == 1 else f"{len(runs):,} runs, {runs[0]} to {runs[-1]}"
        printer.line(
            f"generation {made.generation.name}: {which}: {made.rows:,} rows, {made.parts:,} files merged into {files:,} "
            f"in {folder}"
        )
        generations.append(
            {
                "generation": made.generation.name,
                "runs": list(runs),
                "rows": made.rows,
                "merged_files": made.parts,
                "files": files,
            }
        )
    if not generations:
        printer.line(f"nothing new: {len(rows.plans):,} finished runs are compacted")
    if rows.unfinished:
        printer.line(f"left out because they are not finished: {', '.join(rows.unfinished)}")
    printer.document(
        {
            "folder": folder,
            "generations": generations,
            "finished_runs": len(rows.plans),
            "unfinished_runs": list(rows.unfinished),
        }
    )
    return 0


def _require_destination(flags: argparse.Namespace) -> None:
    on_hub = flags.publish == "hf"
    if bool(flags.publish and not on_hub) != bool(flags.table):
        raise ConfigError("--publish and --table go together")
    if on_hub != bool(flags.repo):
        raise ConfigError("--publish hf and --repo go together")
    if (flags.license or flags.leave_out) and not on_hub:
        raise ConfigError("--license and --leave-out go with --publish hf alone")


def _publish_to_hub(rows: Rows, flags: argparse.Namespace, printer: Printer) -> int:
    size, runs = int(flags.target_mb * 1e6), []
    for plan in publish_to_hub(rows, Publication(flags.repo, flags.license, tuple(flags.leave_out), size)):
        runs.append(plan.plan)
        printer.line(f"run {plan.plan} is in hub dataset {flags.repo}")
    printer.line(f"{len(runs) or 'nothing'} new, {len(rows.plans):,} finished runs in hub dataset {flags.repo}")
    printer.document({"repository": flags.repo, "format": "hf", "runs": runs, "finished_runs": len(rows.plans)})
    return 0


def _publish(rows: Rows, flags: argparse.Namespace, printer: Printer) -> int:
    table, runs = without_query(flags.table), []
    for plan in publish(rows, flags.publish, flags.table):
        runs.append(plan.plan)
        printer.line(f"run {plan.plan} is in {table}")
    index = list(bring_up_to_date(flags.table)) if flags.index and rows.plans else []
    for sentence in index:
        printer.line(sentence)
    printer.line(f"{len(runs) or 'nothing'} new, {len(rows.plans):,} finished runs in {flags.publish} table {table}")
    printer.document(
        {"table": table, "format": flags.publish, "runs": runs, "finished_runs": len(rows.plans), "index": index}
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
