"""Test how far noise, level, clipping, a narrow band, codecs and reverberation change the labels of a model.

The clips of a manifest are degraded, the ordinary job annotates all of them, and every condition is compared with the clean
run. See docs/stress.md.

Exit status: 0 tested; 1 the job or a store failed, the same command resumes; 2 usage, or nothing to compare; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.config import JobConfig

_FIXED: dict[str, Any] = {
    "limit": None,
    "sample": None,
    "segmentation": "none",
    "embeddings": "none",
    "partition_by": (),
    "audio_root": (),
    "no_page": True,
    "dry_run": False,
}
"""Options of the job that a test decides: one utterance for each clip, and no files that it does not read."""
_OWN = ("manifest", "output", "audio_root")
"""Options of the job that this command has itself."""
_PACKAGES = ("duckdb", "jinja2", "matplotlib", "scipy", "sklearn")
_RESUME = "The files written so far are kept; run the same command again to resume."
_PROGRESS_S = 5.0


def command_line() -> Parser:
    """Return the command line of this job."""
    # imported late, as in jobs.annotate
    from jobs.options import add_options
    from pipeline.config import JobConfig

    parser = Parser(
        "stress",
        json="print results.json on standard output, and no table",
        usage="%(prog)s MANIFEST [MANIFEST ...] --labels COLUMN --output FOLDER [options]",
        description="Annotate the same clips clean and under noise, gain, clipping, 8 kHz, codecs and reverberation, and report "
        "by condition how many labels change and how much UAR, or CCC of dimensions, is lost.",
        epilog="Conditions are synthetic: they rank weaknesses, and do not replace recordings of your own. "
        "Exit status: 0 tested; 1 the job or a store failed, and the same command resumes; 2 usage, or nothing to "
        "compare; 130 interrupted.",
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument("manifest", nargs="+", metavar="MANIFEST", help="manifests as jobs.annotate reads them")
    parser.add_argument(
        "--labels",
        metavar="COLUMN",
        default=None,
        help="manifest column with the true label; without it "
        "only flips, and CCC where the manifest has arousal, valence or dominance",
    )
    parser.add_argument(
        "--output",
        metavar="FOLDER",
        required=True,
        help="folder of the clips, the run and the results; local, or s3://bucket/prefix, ...",
    )
    parser.add_argument(
        "--conditions",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME[=LEVEL,...]",
        help="conditions and levels to test, as in white_noise=20,0 opus (default: all)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of noise, rooms and bootstrap (default: 0)")
    parser.add_argument(
        "--transcribe",
        action="store_true",
        default=False,
        help="ignore the texts of the manifest, so that every clip is transcribed",
    )
    parser.add_argument(
        "--resamples", type=int, default=1000, metavar="N", help="of the bootstrap; 0: no intervals (default: 1000)"
    )
    parser.add_argument(
        "--resample-by",
        default=None,
        metavar="COLUMN",
        help="draw all clips of a value together (default: speaker, where there is one)",
    )
    parser.add_argument("--audio-root", nargs="+", action="extend", metavar="PREFIX", help="as jobs.annotate has it")
    names = [name for name in JobConfig.model_fields if name not in (*_FIXED, *_OWN, "sample_seed")]
    add_options(parser, JobConfig, only=names)
    parser.add_argument("--config", default=None, metavar="URI", help="YAML or TOML file of the job's options")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a stress test and return the exit status."""
    flags = vars(command_line().parse_all(arguments))
    signal.signal(signal.SIGTERM, _interrupt)
    json_result = flags.pop("json", False)
    return run_guarded("stress", lambda printer: _stress(flags, printer), json=json_result, afterwards=_RESUME)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _stress(flags: dict[str, Any], printer: Printer) -> int:
    from pipeline.analytics.stress.conditions import parse_conditions
    from pipeline.config import JobConfig, load_config
    from pipeline.dataset.reader import optional
    from pipeline.engine.destination import require_lasting

    for package in _PACKAGES:
        optional(package, extra="analytics")
    if flags["resamples"] < 0:
        raise ConfigError("--resamples must be 0 or more")
    folder, file = flags["output"].rstrip("/"), flags["config"]
    variants = parse_conditions(flags["conditions"])
    options = {name: value for name, value in flags.items() if name in JobConfig.model_fields}
    config = load_config(file, {**options, **{n: v for n, v in _FIXED.items() if n != "audio_root"}, "output": folder})
    require_lasting(folder)

    # imported late: typing errors are reported before soundfile and scikit-learn are loaded
    from pipeline.analytics.report.page import render
    from pipeline.analytics.stress.clips import CLIPS, claim, digest_of, parquet, prepare, read_rows
    from pipeline.analytics.stress.outcome import RUN, Options, lines_of, outcome_of, truth_of
    from pipeline.analytics.stress.page import stress_page
    from pipeline.api import annotate
    from pipeline.audio.limits import AudioLimits
    from pipeline.redaction import without_query
    from pipeline.shard.checksums import check_content
    from pipeline.storage.files import write_file
    from pipeline.storage.store import open_store

    store = open_store(folder)
    rows = read_rows(config, folder, with_texts=not flags["transcribe"])
    comparison = Options(flags["labels"], flags["resample_by"], flags["resamples"], flags["seed"])
    truth_of(rows.table, comparison)  # refuses a mistyped column before anything is written
    names, digest = [variant.name for variant in variants], digest_of(rows.table)
    claim(store, {"seed": flags["seed"], "conditions": names, "rows": digest, **_deciding(config)})
    limits = AudioLimits(max_duration_s=config.max_duration_s, max_bytes=config.max_bytes)
    progress = _Progress(len(rows.table)).show
    prepare(store, rows, variants, seed=flags["seed"], limits=limits, check=check_content, progress=progress)
    of_job = {name: value for name, value in options.items() if name not in _OWN}
    annotate(f"{folder}/{CLIPS}", f"{folder}/{RUN}", **{**of_job, **_FIXED, "config": file})
    outcome = outcome_of(store, rows, variants, comparison)
    document = json.dumps(outcome.document, indent=1, ensure_ascii=False, allow_nan=False)
    for line in lines_of(outcome.document):
        printer.line(line)
    printer.document(outcome.document)
    write_file(f"{folder}/results.parquet", parquet(outcome.table))
    write_file(f"{folder}/predictions.parquet", parquet(outcome.predictions))
    write_file(f"{folder}/stress.html", render(stress_page(outcome)))
    write_file(f"{folder}/results.json", document.encode())  # last: its presence means that the others exist
    print(f"page in {without_query(folder)}/stress.html", file=sys.stderr)
    return 0


def _deciding(config: JobConfig) -> dict[str, Any]:
    """Return the options that decide the predictions, in the form of JSON."""
    from pipeline.config.option import MODELS, Option

    fields = type(config).model_fields.items()
    names = [name for name, field in fields if any(isinstance(o, Option) and o.group == MODELS for o in field.metadata)]
    return config.model_dump(mode="json", include={*names, "precision", "asr_compute_type"})


class _Progress:
    """Lines on standard error about the clips that are prepared, at most one in five seconds."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._next_s = time.monotonic() + _PROGRESS_S

    def show(self, done: int) -> None:
        """Print how many rows are done."""
        if time.monotonic() >= self._next_s:
            self._next_s = time.monotonic() + _PROGRESS_S
            print(f"degraded {done:,} of {self._rows:,} clips", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
