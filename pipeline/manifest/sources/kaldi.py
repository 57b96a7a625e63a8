"""Kaldi's data folders: `wav.scp`, with `segments`, `text`, `utt2spk`, `spk2gender` and `utt2lang` if they exist.

Source: "Data preparation" in Kaldi's documentation, kaldi-asr.org/doc/data_prep.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import ConfigError, RejectedRow
from pipeline.manifest.sources.corpus import Corpus, file_name
from pipeline.storage.fetch import fetch
from pipeline.storage.uri import resolve_audio

_MAX_BYTES = 2 * 2**30
_TO_THE_END = -1.0
_SEXES = {"f": "female", "m": "male"}


def read_kaldi(files: Sequence[str]) -> Corpus:
    """Return a row for each segment, or for each recording of a folder without `segments`.

    Paths are relative to the working directory, as in Kaldi, or to the folder if it is in a store. Left out and reported:
    recordings that are the output of a command or a place in an archive, and segments without a recording.

    Raises: ConfigError without a `wav.scp`, with several, and for a file that cannot be read.
    """
    tables = {
        name: _table(files, name) for name in ("wav.scp", "segments", "text", "utt2spk", "spk2gender", "utt2lang")
    }
    recordings = tables["wav.scp"]
    if recordings is None:
        raise ConfigError("there is no wav.scp; name a data folder of Kaldi")
    corpus = Corpus()
    base = next(file for file in files if file_name(file) == "wav.scp")
    base = base if "://" in base else str(Path.cwd() / "wav.scp")
    audio = {name: uri for name, given in recordings.items() if (uri := _audio(name, given, base, corpus)) is not None}
    segments = tables["segments"]
    spans = {name: name for name in audio} if segments is None else segments
    for name, stated in spans.items():
        recording, *times = stated.split() if segments is not None else [name]
        if recording not in audio:
            if recording not in recordings:
                corpus.leave_out("its recording is not in wav.scp", name)
            continue
        try:
            span = _span(times)
        except ValueError:
            corpus.leave_out("a line of segments that is not ID RECORDING START END", name)
            continue
        speaker = (tables["utt2spk"] or {}).get(name)
        sex = (tables["spk2gender"] or {}).get(speaker or "")
        row = {
            "id": name,
            "audio": audio[recording],
            **span,
            "text": (tables["text"] or {}).get(name),
            "language": (tables["utt2lang"] or {}).get(name),
            "speaker": speaker,
            "sex": _SEXES.get(sex or "", sex),
        }
        corpus.rows.append({column: value for column, value in row.items() if value is not None})
    return corpus


def _audio(name: str, given: str, base: str, corpus: Corpus) -> str | None:
    """Return the URI of a recording, or None if it is left out."""
    if not given:
        corpus.leave_out("its line of wav.scp names no file", name)
    elif given.endswith("|"):
        corpus.leave_out("its recording is the output of a command, which is not run", name)
    elif given.rpartition(":")[0].endswith(".ark"):
        corpus.leave_out("its recording is in an archive of Kaldi", name)
    else:
        try:
            return resolve_audio(given, base)
        except RejectedRow as error:
            corpus.leave_out(error.detail, name)
    return None


def _span(times: Sequence[str]) -> dict[str, object]:
    """Return offset and duration of a segment's times; none for a whole recording. Raises: ValueError."""
    if not times:
        return {}
    start_s, end_s = map(float, times)
    if end_s == _TO_THE_END:
        return {"offset": start_s}
    return {"offset": start_s, "duration": round(end_s - start_s, 6)}


def _table(files: Sequence[str], name: str) -> dict[str, str] | None:
    """Return the lines of one of Kaldi's files by their first word; None if it is missing. Raises: ConfigError."""
    matching = [file for file in files if file_name(file) == name]
    if not matching:
        return None
    if len(matching) > 1:
        raise ConfigError(
            f"there are {len(matching)} {name}, such as {matching[0]} and {matching[1]}; name one data folder"
        )
    return dict(_lines(matching[0]))


def _lines(uri: str) -> Iterator[tuple[str, str]]:
    try:
        text = fetch(uri, max_bytes=_MAX_BYTES).decode()
    except (RejectedRow, UnicodeDecodeError) as error:
        raise ConfigError(f"{uri} cannot be read: {error}") from error
    for line in filter(str.strip, text.split("\n")):
        name, *rest = line.strip().split(maxsplit=1)
        yield name, rest[0] if rest else ""
