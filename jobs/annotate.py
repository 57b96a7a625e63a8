"""Annotate a corpus: manifest in, partitioned Parquet of transcripts, emotions, scores and embeddings out.

Exit status: 0 every manifest row is annotated, a counted reject or excluded; 1 the job failed, committed shards are kept and the
same command resumes; 2 the command line, the config or a model cannot be used as requested; 130 interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from jobs.report import can_draw, draw
from pipeline.engine.destination import require_lasting
from pipeline.errors import StuckPlansError
from pipeline.layout import REPORT, rejects_key, run_key
from pipeline.redaction import redacted, without_query

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.engine.run import Driver

_MOST_PAGES = 20
"""Maximum number of earlier runs whose pages one job draws, newest runs first; the next job draws more."""


def command_line() -> Parser:
    """Return the command line of this job."""
    # imported late: typing errors and Ctrl-C are handled before pydantic is loaded
    from jobs.options import add_options
    from pipeline.config import JobConfig

    made = Parser(
        "annotate",
        usage="%(prog)s --manifest URI [URI ...] --output URI [options]",
        description="Read audio manifests, transcribe rows without text, recognise emotion, write Parquet. Run the same "
        "command again to resume after an interruption, or when the manifest has grown.",
        epilog="Emotion labels are a model's estimates of acted speech; do not base decisions about people on them alone.",
        argument_default=argparse.SUPPRESS,
    )
    groups = add_options(made, JobConfig)
    groups["run"].add_argument(
        "--config",
        metavar="URI",
        help="YAML, JSON or TOML file of options by the same names, nested or not, or the reference toolkit's model.json; "
        "options of the command line override it",
    )
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job and return its exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    flags = vars(command_line().parse_all(arguments))
    return run_guarded(
        "annotate",
        lambda printer: _run(_config(flags), printer),
        json=flags.pop("json", False),
        afterwards="Committed shards are kept; run the same command again to resume.",
    )


def read_config(arguments: Sequence[str] | None) -> JobConfig:
    """Read the command line and the file that `--config` names.

    Raises: ConfigError; SystemExit with status 2 for an unknown option.
    """
    flags = vars(command_line().parse_all(arguments))
    flags.pop("json", None)
    return _config(flags)


def _config(flags: dict[str, Any]) -> JobConfig:
    # imported late: --help does not need it, and Ctrl-C during the import has the same effect as later
    from pipeline.config import load_config

    options = dict(flags)
    config = load_config(options.pop("config", None), options)
    require_lasting(config.output)
    return config


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(config: JobConfig, printer: Printer) -> int:
    # imported late: typing errors are reported before torch and ray are loaded
    from pipeline.engine.forking import forked_workers
    from pipeline.models.checkpoints.pinning import prestarted

    with ExitStack() as stack:
        if not config.dry_run:
            stack.enter_context(forked_workers())
            stack.enter_context(prestarted())
        from pipeline.engine.job_log import job_log
        from pipeline.engine.run import Driver

        with job_log(config.log_format) as out:
            return _report(config, Driver(config, out), printer)


def _report(config: JobConfig, driver: Driver, printer: Printer) -> int:
    if config.dry_run:
        description = driver.describe()
        for name, value in description.items():
            printer.line(redacted(f"{name.replace('_', ' ')}: {_plain(value)}"))
        printer.document(description)
        return 0
    try:
        reports = driver.run()
    except StuckPlansError as stuck:
        _show(config, driver, stuck.reports, printer)
        raise
    if not reports:
        chosen = "every row" if config.limit is None and config.sample is None else "every chosen row"
        printer.line(
            f"Nothing new: {chosen} of the manifest is in {without_query(config.output)} already, or in its rejects"
            f"{_excluded(driver.excluded)}."
        )
    _show(config, driver, reports, printer)
    return 0


def _show(config: JobConfig, driver: Driver, reports: Sequence[dict[str, Any]], printer: Printer) -> None:
    """Print the result of each run, and draw the missing pages."""
    output, pages = without_query(config.output), []
    for report in reports:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["rejects_by_reason"].items())
        printer.line(
            f"run {report['run_id']}: {report['rows']:,} rows = {report['recordings_annotated']:,} annotated + "
            f"{report['rejected']:,} rejected{f' ({reasons})' if reasons else ''}"
            f"{_excluded(report.get('excluded', {}))}\n"
            f"{report['utterances']:,} utterances, {report['audio_hours']:.2f} hours of audio, "
            f"{report['parts']:,} files in {output}/utterances"
            + (f"\nrejects in {output}/{rejects_key(report['run_id'])}" if report["rejected"] else "")
            + f"\nreport in {output}/{run_key(report['run_id'], REPORT)}"
        )
        if not config.no_page:
            pages.append(draw(config.output, report["run_id"]))
            printer.line(pages[-1].line)
    if not config.no_page and can_draw():
        for run in driver.undrawn[-_MOST_PAGES:]:
            pages.append(draw(config.output, run))
            printer.line(pages[-1].line)
    printer.document({"output": output, "runs": list(reports), "pages": [drawn.page for drawn in pages if drawn.page]})


def _excluded(counts: Mapping[str, int]) -> str:
    """Return the end of a sentence with the number of excluded rows by option; empty without any."""
    options = ", ".join(f"--{option.replace('_', '-')} {count:,}" for option, count in counts.items())
    return f"; {sum(counts.values()):,} rows excluded ({options})" if counts else ""


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
