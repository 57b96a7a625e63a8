"""Evaluate the models of an output against the labels and texts of its manifest.

Exit status: 0 evaluated; 1 a store failed, or the results cannot be written; 2 usage, or nothing to compare; 3
evaluated, but --fit-calibration found no temperature that fits the rows; 130 interrupted. The evaluation is printed and
written before any error of the calibration is reported.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from jobs.parser import Parser, run_guarded, whole_number
from jobs.printer import Printer
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.analytics.evaluate.results import FittedCalibration

NOT_FITTED = 3
_DIMENSIONS = ("arousal", "valence", "dominance")


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "evaluate",
        json="print metrics.json on standard output, and no tables",
        usage="%(prog)s OUT [OUT ...] [--labels COLUMN|FILE] [--dimensions NAME=COLUMN ...] [options]",
        description="Accuracy, F1, confusions, calibration and word error rates of outputs of jobs.annotate whose manifest "
        "brought labels; of several, each is compared with the first on the utterances they share. Reads only.",
        epilog="Figures of acted speech do not carry over to calls or meetings: evaluate on the data you mean to annotate. "
        "Exit status: 0 evaluated; 1 a store failed; 2 usage, or nothing to compare; 3 evaluated, but no calibration could be "
        "fitted; 130 interrupted.",
    )
    parser.add_argument("output", nargs="+", metavar="OUT", help="what --output was: a folder, s3://bucket/prefix, ...")
    parser.add_argument(
        "--labels", metavar="COLUMN|FILE", help="manifest column with the true label, or a reviewed file of jobs.review"
    )
    parser.add_argument(
        "--dimensions",
        nargs="+",
        action="extend",
        type=_dimension,
        default=[],
        metavar="NAME=COLUMN",
        help="manifest columns with labels of arousal, valence and dominance, as in arousal=act",
    )
    parser.add_argument(
        "--label-range",
        type=_range,
        default=(0.0, 1.0),
        metavar="LOW:HIGH",
        help="ends of the scale of these labels, as in 1:7 (default: 0:1)",
    )
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="NAME",
        help="further model of the dataset, to compare with its main one; repeatable",
    )
    parser.add_argument(
        "--references",
        metavar="COLUMN",
        help="manifest column with what was said (default: reference, where there is one)",
    )
    parser.add_argument(
        "--slices",
        metavar="COL[,COL]",
        help="columns to look at apart (default: dataset, language, speaker, "
        "sex, duration, text_source, where they are)",
    )
    _resampling_and_files(parser)
    return parser


def _resampling_and_files(parser: Parser) -> None:
    parser.add_argument(
        "--resamples",
        type=whole_number,
        default=1000,
        metavar="N",
        help="of the bootstrap; 0: no intervals (default: 1000)",
    )
    parser.add_argument(
        "--resample-by",
        metavar="COLUMN",
        help="draw all rows of a value together (default: speaker where all outputs have speakers, else recording_id)",
    )
    parser.add_argument(
        "--published-test-set",
        action="store_true",
        help="this is the test set of the published figures; they are shown if its classes agree",
    )
    parser.add_argument(
        "--write",
        metavar="FOLDER",
        help="write metrics.json there, and its tables and every "
        "prediction as Parquet; jobs.report --evaluation makes a page of them",
    )
    parser.add_argument(
        "--fit-calibration",
        metavar="URI",
        help="fit a temperature for each model and language on these rows, for jobs.annotate --calibration",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")


def _dimension(text: str) -> tuple[str, str]:
    name, _, column = text.partition("=")
    if name not in _DIMENSIONS or not column:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=COLUMN with a name of {', '.join(_DIMENSIONS)}")
    return name, column


def _range(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split(":"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not LOW:HIGH, as in 1:7") from None
    if not -math.inf < low < high < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r}: the first number must be below the second")
    return low, high


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the outputs and return the exit status."""
    parser = command_line()
    flags = parser.parse_all(arguments)
    if not flags.labels and not flags.dimensions:
        parser.error("name the columns to compare with: --labels, --dimensions or both")
    if flags.fit_calibration and not flags.labels:
        parser.error("--fit-calibration needs --labels")
    return run_guarded("evaluate", lambda printer: _evaluate(flags, printer), json=flags.json)


def _evaluate(flags: argparse.Namespace, printer: Printer) -> int:
    # imported late: typing errors are reported before scikit-learn is loaded
    try:
        from pipeline.analytics.evaluate.evaluation import Options, evaluate, read
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'speech-emotion-pipeline[analytics]'") from error
    from pipeline.analytics.evaluate.calibration import NoTemperatureError
    from pipeline.analytics.evaluate.fitted import fit_outputs
    from pipeline.analytics.evaluate.lines import lines_of
    from pipeline.analytics.evaluate.tables import tables_of
    from pipeline.redaction import without_query
    from pipeline.storage.files import require_absent, write_file

    folder = flags.write and flags.write.rstrip("/")
    for file in filter(None, [folder and f"{folder}/metrics.json", flags.fit_calibration]):
        require_absent(file, overwrite=flags.overwrite)
    slices = None if flags.slices is None else tuple(name.strip() for name in flags.slices.split(",") if name.strip())
    options = Options(
        labels=flags.labels,
        dimensions=dict(flags.dimensions),
        label_range=flags.label_range,
        models=tuple(flags.model),
        references=flags.references,
        slices=slices,
        resamples=flags.resamples,
        resample_by=flags.resample_by,
        published_test_set=flags.published_test_set,
    )
    outputs = read(flags.output, options)
    fitted: FittedCalibration | None = None
    failure: ConfigError | None = None
    try:
        fitted = fit_outputs(outputs) if flags.fit_calibration else None
    except ConfigError as error:  # reported after the evaluation is printed and written
        failure = error
    evaluation = replace(
        evaluate(outputs, options),
        fitted_calibration=fitted,
        calibration_failure=None if failure is None else str(failure),
    )
    document = json.dumps(evaluation.document(), indent=1, ensure_ascii=False, allow_nan=False)
    for line in lines_of(evaluation):
        printer.line(line)
    printer.document(evaluation.document())
    if folder:
        for name, content in tables_of(evaluation, outputs).items():
            write_file(f"{folder}/{name}", content)
        write_file(f"{folder}/metrics.json", document.encode())  # last: its presence means that the tables exist
        print(f"written to {without_query(folder)}", file=sys.stderr)
    if failure is not None:
        kept = "the evaluation is complete; no calibration was written"
        print(f"python -m jobs.evaluate: --fit-calibration: {failure}\n{kept}", file=sys.stderr)
        return NOT_FITTED if isinstance(failure, NoTemperatureError) else 2
    if fitted is not None:
        write_file(flags.fit_calibration, json.dumps(fitted.document(), indent=1).encode())
        print(f"calibration written to {without_query(flags.fit_calibration)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
