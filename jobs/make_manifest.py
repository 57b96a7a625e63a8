"""Make a manifest of audio files, of a known corpus, or of another toolkit's manifests.

Exit status: 0 the manifest is written; 1 it cannot be written, or the source's store failed; 2 usage, or a source
without usable rows; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

from jobs.parser import Parser, run_guarded
from jobs.printer import Printer
from pipeline.errors import ConfigError
from pipeline.manifest.fields import derived_id, version_id
from pipeline.manifest.sources.annotated import read_meacorpus, read_meld
from pipeline.manifest.sources.columns import add_from_paths, compile_pattern, join
from pipeline.manifest.sources.corpus import Corpus
from pipeline.manifest.sources.diarised import rttm, textgrids
from pipeline.manifest.sources.exchange import (
    complete,
    json_lines,
    lhotse_lines,
    nemo_lines,
    read_lhotse,
    read_rows,
    require_unique_ids,
)
from pipeline.manifest.sources.files import audio_of, list_files, list_versions
from pipeline.manifest.sources.kaldi import read_kaldi
from pipeline.manifest.sources.named import CREMA_D, EMO_DB, RAVDESS, SAVEE, TESS, read_named
from pipeline.manifest.sources.nemo_tars import use_tars
from pipeline.redaction import without_query
from pipeline.storage.files import require_absent, write_file
from pipeline.storage.listing import LeftOut, printable

_NAMED = {naming.dataset: naming for naming in (RAVDESS, TESS, SAVEE, CREMA_D, EMO_DB)}
_TABLED = {"meld": read_meld, "meacorpus": read_meacorpus}
_FOLDERS = {"lhotse": read_lhotse, "kaldi": read_kaldi}
_LAYOUTS = ("files", *_NAMED, *_TABLED, "nemo", *_FOLDERS, "manifest", "output")
_NAMES_SHOWN = 3


def command_line() -> Parser:
    """Return the command line of this job."""
    parser = Parser(
        "make_manifest",
        usage="%(prog)s SOURCE [SOURCE ...] --output FILE [options]",
        description="Make a manifest of a folder, bucket prefix or glob of audio; of a corpus whose layout is known, with its "
        "labels put into the models' classes; of NeMo's (tarred too) and Lhotse's manifests, also the way back; of a data folder "
        "of Kaldi; or of an output of "
        "jobs.annotate, one row for each utterance.",
        epilog="Recordings of a corpus whose label is none of the models' classes (RAVDESS' calm, EMO-DB's boredom) are left out "
        "and counted.",
    )
    parser.add_argument(
        "source", nargs="+", metavar="SOURCE", help="folder, prefix, glob or file; local, s3://... and others"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="file to write; for --to lhotse or textgrid a folder"
    )
    parser.add_argument("--layout", choices=_LAYOUTS, default="files", help="kind of source (default: audio files)")
    parser.add_argument(
        "--to",
        choices=["manifest", "nemo", "lhotse", "rttm", "textgrid"],
        default="manifest",
        help="format to write (default: a manifest for jobs.annotate, as JSON Lines); rttm, speakers and times, and textgrid, a "
        "file for each recording, are for --layout output",
    )
    parser.add_argument(
        "--durations", action="store_true", help="read each file, and write the duration that its header states"
    )
    parser.add_argument(
        "--channels",
        action="store_true",
        help="read each file, and write its number of channels as the column channels; the summary counts them",
    )
    parser.add_argument(
        "--versions",
        action="store_true",
        help="write each file's version (its ETag, or size and time of change), and make it part of the id: a "
        "file whose content is replaced becomes a new row",
    )
    parser.add_argument("--language", metavar="CODE", help="language of rows whose source states none")
    add_column_options(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing files")
    return parser


def add_column_options(parser: Parser) -> None:
    """Add the options that give the rows further columns."""
    parser.add_argument(
        "--pattern",
        type=_pattern,
        metavar="PATTERN",
        help="columns in the paths of audio files, as in 'day={day}/{speaker}/*.wav', which matches the end of a path",
    )
    parser.add_argument(
        "--join", metavar="FILE", help="add the columns of a table: CSV, TSV, JSON Lines or Parquet; needs --on"
    )
    parser.add_argument("--on", metavar="COLUMN", help="column that the rows and the table of --join have in common")


def _pattern(text: str) -> str:
    try:
        compile_pattern(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the manifest and return the exit status."""
    parser = command_line()
    flags = parser.parse_all(arguments)
    if flags.versions and flags.layout != "files":
        parser.error("--versions is for --layout files: the rows of a corpus take their ids from its names")
    if flags.pattern and flags.layout != "files":
        parser.error("--pattern is for --layout files: the columns of other layouts come from their own files")
    if flags.to in ("rttm", "textgrid") and flags.layout != "output":
        parser.error(f"--to {flags.to} is for --layout output: it writes the utterances of an output")
    if bool(flags.join) != bool(flags.on):
        parser.error("--join FILE and --on COLUMN belong together")
    return run_guarded("make_manifest", lambda printer: _make(flags, printer), json=flags.json)


def _make(flags: argparse.Namespace, printer: Printer) -> int:
    folder = flags.output.rstrip("/")
    lhotse = [f"{folder}/recordings.jsonl.gz", f"{folder}/supervisions.jsonl.gz"]
    for uri in {"lhotse": lhotse, "textgrid": []}.get(flags.to, [flags.output]):
        require_absent(uri, overwrite=flags.overwrite)
    corpus, unlisted = Corpus(), LeftOut(list)
    for source in flags.source:
        read = _read_output(source) if flags.layout == "output" else _read(source, flags, unlisted)
        corpus.rows += read.rows
        for why, names in read.left_out.items():
            corpus.left_out.setdefault(why, []).extend(names)
    if flags.layout == "output":
        require_unique_ids(corpus)
    if flags.pattern:
        add_from_paths(corpus, compile_pattern(flags.pattern))
    unmatched = join(corpus, flags.join, flags.on) if flags.join else 0
    if flags.language:
        for row in corpus.rows:
            row.setdefault("language", flags.language)
    if flags.durations or flags.channels:
        complete(corpus, need_length=False, durations=flags.durations, channels=flags.channels)
    for uri, content in _files(flags, corpus, lhotse):
        if flags.to == "textgrid":  # the names follow from the recordings
            require_absent(uri, overwrite=flags.overwrite)
        write_file(uri, content)
    if unmatched:
        printer.line(f"without a line in the table of --join: {unmatched:,}")
    _summarise(corpus, unlisted, flags, printer, unmatched=unmatched)
    return 0


def _files(flags: argparse.Namespace, corpus: Corpus, lhotse: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the files to write, with their contents."""
    if flags.to == "lhotse":
        for uri, lines in zip(lhotse, lhotse_lines(corpus), strict=True):
            yield uri, json_lines(lines, compressed=True)
    elif flags.to == "textgrid":
        for name, content in textgrids(corpus):
            yield f"{flags.output.rstrip('/')}/{name}", content
    elif flags.to == "rttm":
        yield flags.output, rttm(corpus)
    else:
        yield flags.output, json_lines(nemo_lines(corpus) if flags.to == "nemo" else corpus.rows)


def _read_output(source: str) -> Corpus:
    # imported late: it imports the packages of the analyses
    from pipeline.analytics.export import read_output

    return read_output(source)


def _read(source: str, flags: argparse.Namespace, unlisted: LeftOut) -> Corpus:
    layout = flags.layout
    if layout in ("manifest", "nemo"):
        corpus = read_rows(source, output=flags.output)
        if layout == "nemo":
            use_tars(corpus)
        return corpus
    if flags.versions:
        versions = list_versions(source, unlisted)
        rows = [(uri, versions[uri]) for uri in audio_of(list(versions), source)]
        return Corpus(
            rows=[{"id": version_id(uri, version), "audio": uri, "version": version} for uri, version in rows]
        )
    files = list_files(source, unlisted)
    if layout in _FOLDERS:
        return _FOLDERS[layout](files)
    audio = audio_of(files, source)
    if layout in _NAMED:
        return read_named(_NAMED[layout], files, audio)
    if layout in _TABLED:
        return _TABLED[layout](files, audio)
    return Corpus(rows=[{"id": derived_id(uri, None, None, None), "audio": uri} for uri in audio])


def _summarise(
    corpus: Corpus, unlisted: LeftOut, flags: argparse.Namespace, printer: Printer, *, unmatched: int
) -> None:
    output = without_query(flags.output)
    printer.line(f"{len(corpus.rows):,} rows in {printable(output)}")
    counts = {
        column: dict(sorted(Counter(str(row[column]) for row in corpus.rows if column in row).items()))
        for column in ("dataset", "language", "split", "label", *(["channels"] if flags.channels else []))
    }
    for column, values in counts.items():
        if values:
            printer.line(f"{column}: {', '.join(f'{value} {count:,}' for value, count in values.items())}")
    unlabelled = sum("label" not in row for row in corpus.rows)
    if 0 < unlabelled < len(corpus.rows):
        printer.line(f"without label: {unlabelled:,}")
    _print_left_out(corpus.left_out, printer.line)
    _print_left_out(unlisted, lambda line: print(line, file=sys.stderr))
    untimed = sum("duration" not in row for row in corpus.rows)
    if flags.durations and untimed:
        printer.line(f"without duration: {untimed:,}; their headers state none or cannot be read")
    left_out = {why: len(names) for part in (corpus.left_out, unlisted) for why, names in part.items()}
    printer.document(
        {
            "output": output,
            "rows": len(corpus.rows),
            "rows_without_label": unlabelled,
            "rows_without_duration": untimed,
            "rows_without_join": unmatched,
            "counts": counts,
            "left_out": left_out,
        }
    )


def _print_left_out(left_out: Mapping[str, Sequence[str]], show: Callable[[str], None]) -> None:
    for why, names in sorted(left_out.items()):
        more = ", ..." if len(names) > _NAMES_SHOWN else ""
        show(f"left out: {len(names):,}, {why}: {', '.join(map(printable, names[:_NAMES_SHOWN]))}{more}")


if __name__ == "__main__":
    sys.exit(main())
