"""Annotate a corpus: manifest in, partitioned Parquet of transcripts, emotions, scores and embeddings out.

Exit status: 0 every manifest row is an utterance or a counted reject; 1 the job failed, what was committed stays and the
same command goes on; 2 the command line, the config or a model cannot be used as asked; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs.parser import Parser, add_named_models
from jobs.report import can_draw, draw
from pipeline import __version__
from pipeline.engine.destination import require_lasting
from pipeline.errors import ConfigError, JobError, StuckPlansError
from pipeline.layout import REPORT, rejects_key, run_key
from pipeline.redaction import redacted, without_query

if TYPE_CHECKING:
    from pipeline.config import JobConfig
    from pipeline.engine.run import Driver

_MOST_PAGES = 20
"""Of earlier runs that one job draws, the newest; the next job draws more."""


def _parser() -> Parser:
    parser = Parser(
        prog="python -m jobs.annotate",
        usage="%(prog)s --manifest URI [URI ...] --output URI [options]",
        description="Read audio manifests, transcribe what has no text, recognise emotion, write Parquet. "
        "Run the same command again to go on after an interruption, or after the manifest has grown.",
        epilog="Emotion labels are a model's estimates of acted speech; do not base decisions about people on them alone.",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=34, width=110),
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--manifest", nargs="+", action="extend", metavar="URI", help="JSONL, CSV or Parquet; files, globs, folders"
    )
    data.add_argument(
        "--output",
        metavar="URI",
        help="location of the dataset: a folder or s3://bucket/prefix; in a job submitted to Ray, an absolute one",
    )
    data.add_argument("--audio-root", nargs="+", action="extend", metavar="PREFIX",
                      help="open audio only under these prefixes (default: the manifest's own store)")  # fmt: skip
    data.add_argument("--partition-by", metavar="COL[,COL]", help="manifest columns, or language, that become folders")
    data.add_argument(
        "--embeddings", metavar="all|none|LIST", help="which of audio, text, fused to write (default: all)"
    )
    data.add_argument("--embedding-dtype", choices=["float32", "float16"], help="default: float32")

    model = parser.add_argument_group("models", "X is a hub id, id@revision, local directory or object-store URI")
    model.add_argument("--models", metavar="URI",
                       help="folder that jobs.prepare_models wrote; what is not named below comes from there alone")  # fmt: skip
    model.add_argument(
        "--mode",
        choices=["mean", "concat", "multihead", "audio", "text"],
        help="how voice and words are fused (default: mean)",
    )
    model.add_argument("--language", metavar="CODE", help="for every row; auto lets Whisper decide for rows that bring none "
                       "(default: the row's own, else en)")  # fmt: skip
    model.add_argument("--allowed-languages", metavar="CODE[,CODE]",
                       help="the languages that --language auto may choose from (default: all that Whisper knows)")  # fmt: skip
    add_named_models(model)
    model.add_argument("--segmentation", choices=["auto", "none", "vad"],
                       help="auto: rows with text or up to 30 s are one utterance, longer ones are cut by voice activity; "
                       "none: whole files; vad: always cut (default: auto)")  # fmt: skip
    model.add_argument(
        "--beam-size", type=int, metavar="N", help="of the transcription (default: 1, greedy as the reference)"
    )

    model.add_argument("--calibration", metavar="URI", help="divide each model's logits by its temperature, as jobs.evaluate "
                       "--fit-calibration wrote it; labels stay, scores and confidence are the calibrated ones")  # fmt: skip
    model.add_argument("--min-confidence", type=float, metavar="SHARE",
                       help="below it the emotion is null and abstained is true; label and scores stay")  # fmt: skip

    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", choices=["auto", "cpu", "cuda"], help="default: cuda where there are GPUs at the start; "
                         "cuda on a cluster without any waits for them")  # fmt: skip
    machine.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16", "int8"],
        help="of the emotion models; int8: audio encoder on CPU (default: fp32)",
    )
    machine.add_argument(
        "--asr-compute-type", metavar="TYPE", help="CTranslate2 type (default: float32 on cpu, float16 on cuda)"
    )
    machine.add_argument("--asr-actors", type=int, metavar="N",
                         help="transcription actors: so many on one machine; at most so many on a cluster, whose pools follow "
                         "the nodes that join and leave (default: as many as fit)")  # fmt: skip
    machine.add_argument("--emotion-actors", type=int, metavar="N", help="recognition actors, likewise")
    machine.add_argument("--asr-gpus", type=float, metavar="F", help="GPUs of one transcription actor (default: 0.5)")
    machine.add_argument(
        "--emotion-gpus", type=float, metavar="F", help="GPUs of one recognition actor (default: 0.5, or 1 without ASR)"
    )
    machine.add_argument(
        "--shard-rows", type=int, metavar="N", help="rows of a shard at most (default: 64 on cpu, 1024 on cuda)"
    )
    machine.add_argument(
        "--shard-audio-s", type=float, metavar="S", help="audio seconds of a shard at most (default: 600, 3600)"
    )
    machine.add_argument(
        "--max-batch-s",
        type=float,
        metavar="S",
        help="padded audio seconds of one recognition batch (default: what its part of a GPU holds, at most 960)",
    )
    machine.add_argument(
        "--max-duration-s", type=float, metavar="S", help="longest recording accepted (default: 14400)"
    )
    machine.add_argument("--max-bytes", type=int, metavar="N", help="largest audio object accepted (default: 2 GiB)")

    run = parser.add_argument_group("run")
    run.add_argument("--config", metavar="URI", help="YAML or TOML with the same names, nested or not; flags win")
    run.add_argument("--max-reject-rate", type=float, metavar="SHARE",
                     help="stop when, after 100 rows, more are rejected, for whatever reason (default: never for the data's own "
                     "faults; for forbidden or unreachable audio half of "
                     "them, for models that fail a tenth of a shard; 1: never)")  # fmt: skip
    run.add_argument("--wait-for-workers-s", type=float, metavar="S",
                     help="end the job after so long in which no worker could start or go on, for want of machines or a "
                     "broken environment; raise it where an autoscaler needs longer (default: 3600; 0: for ever)")  # fmt: skip
    run.add_argument("--give-up", nargs="+", action="extend", metavar="RUN",
                     help="reject what is left of these unfinished runs, such as 000007, for good; then go on")  # fmt: skip
    run.add_argument("--no-page", action="store_true", help="leave out report.html; jobs.report draws it any time")
    run.add_argument("--dry-run", action="store_true", help="print what would be done; decode nothing, write nothing")
    run.add_argument("--version", action="version", version=__version__)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        return _run(read_config(arguments))
    except ConfigError as error:
        print(f"python -m jobs.annotate: {error}", file=sys.stderr)
        return 2
    except (JobError, OSError) as error:
        print(
            f"\nThe job failed: {redacted(str(error))}\nWhat was committed stays; the same command goes on from there.",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. What was committed stays; the same command goes on from there.", file=sys.stderr)
        return 130


def read_config(arguments: Sequence[str] | None) -> JobConfig:
    """Read the command line and the file that `--config` names.

    Raises: ConfigError; SystemExit with status 2 for an unknown option.
    """
    # imported late: the help does not need it, and Ctrl-C meanwhile ends as Ctrl-C later does
    from pipeline.config import load_config

    flags = vars(_parser().parse_all(arguments))
    config = load_config(flags.pop("config", None), flags)
    require_lasting(config.output)
    return config


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _run(config: JobConfig) -> int:
    # imported late: a typing error is answered before torch and ray are loaded
    from pipeline.engine.run import Driver
    from pipeline.engine.shard_log import logging_to

    # a stream of its own: Ray's writing to file descriptor 2 is kept back while the job runs
    with os.fdopen(os.dup(2), "w", buffering=1) as terminal, logging_to(terminal):
        return _report(config, Driver(config, terminal))


def _report(config: JobConfig, driver: Driver) -> int:
    if config.dry_run:
        for name, value in driver.describe().items():
            print(redacted(f"{name.replace('_', ' ')}: {_plain(value)}"))
        return 0
    try:
        reports = driver.run()
    except StuckPlansError as stuck:
        _show(config, driver, stuck.reports)
        raise
    if not reports:
        print(
            f"Nothing new: every row of the manifest is in {without_query(config.output)} already, or in its rejects."
        )
    _show(config, driver, reports)
    return 0


def _show(config: JobConfig, driver: Driver, reports: Sequence[dict[str, Any]]) -> None:
    """Print what became of each run, and draw the pages that are missing."""
    output = without_query(config.output)
    for report in reports:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in report["rejects_by_reason"].items())
        print(
            f"run {report['run_id']}: {report['rows']:,} rows = {report['recordings_annotated']:,} annotated + "
            f"{report['rejected']:,} rejected{f' ({reasons})' if reasons else ''}\n"
            f"{report['utterances']:,} utterances, {report['audio_hours']:.2f} hours of audio, "
            f"{report['parts']:,} files in {output}/utterances"
            + (f"\nrejects in {output}/{rejects_key(report['run_id'])}" if report["rejected"] else "")
            + f"\nreport in {output}/{run_key(report['run_id'], REPORT)}",
            flush=True,
        )
        if not config.no_page:
            print(draw(config.output, report["run_id"]))
    if not config.no_page and can_draw():
        for run in driver.undrawn[-_MOST_PAGES:]:
            print(draw(config.output, run))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items()) or "none"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
