"""Import and export of other toolkits' manifests: NeMo's JSON Lines, and Lhotse's recordings and supervisions.

Sources: "Preparing custom ASR data" in NVIDIA NeMo's documentation; `lhotse/audio/recording.py` and
`lhotse/supervision.py`, Lhotse 1.33. In Lhotse, `channels` lists the channel numbers in a source; a number's position
in that list is the channel in the file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipeline.audio.decoders import AudioHeader
from pipeline.config.columns import SPEAKER_ID
from pipeline.errors import ConfigError, RejectedRow
from pipeline.manifest.columns import no_json
from pipeline.manifest.lhotse import supervision_row
from pipeline.manifest.read import expand, read_manifest
from pipeline.manifest.sources.corpus import Corpus, Row, file_name
from pipeline.manifest.sources.files import Unreadable, read_headers
from pipeline.schema import passthrough_name
from pipeline.storage.fetch import fetch

_MAX_BYTES = 2 * 2**30
_OURS = {"recording_id": "id", "offset_s": "offset", "duration_s": "duration"}
_OUTPUT_COLUMNS = {"manifest_utterance_id", "manifest_segment_index"}
"""Names that two columns of an output get when it is read as a manifest."""
_PLACE = ("manifest", "line")


def read_rows(source: str, *, output: str | None = None) -> Corpus:
    """Read the rows of manifests as `jobs.annotate` does, including NeMo's (its `lang` becomes `language`).

    Args:
        output: the file to which the rows will be written; it is not read even if it is in the folder `source`.
    """
    corpus = Corpus()
    for uri in expand([source], output=output):
        for chunk in read_manifest(uri):
            if set(chunk.rows.schema.names) >= _OUTPUT_COLUMNS:
                raise ConfigError(
                    f"{uri} is part of an output of jobs.annotate; read the whole output with --layout output"
                )
            for reject in chunk.rejects:
                corpus.leave_out(f"{reject.cause.reason}: {reject.cause.detail}", f"line {reject.line}")
            for line in chunk.rows.to_pylist():
                row = {
                    _written(name): value for name, value in line.items() if name not in _PLACE and value is not None
                }
                row.setdefault("language", row.pop("lang", None))
                corpus.rows.append({name: value for name, value in row.items() if value is not None})
    return corpus


def _written(name: str) -> str:
    """Return the column's original name in the manifest."""
    bare = name.removeprefix("manifest_")
    return bare if passthrough_name(bare) == name else _OURS.get(name, name)


def nemo_lines(corpus: Corpus) -> list[Row]:
    """Return rows with NeMo's names. Missing durations, which NeMo requires, are read from the audio headers."""
    _leave_out_texts(corpus)
    complete(corpus, need_length=True)
    renamed = {"audio": "audio_filepath", "language": "lang"}
    return [{renamed.get(name, name): value for name, value in row.items()} for row in corpus.rows]


def complete(corpus: Corpus, *, need_length: bool, durations: bool = True, channels: bool = False) -> None:
    """Add what is missing from the headers of the audio.

    Args:
        need_length: whether to omit rows whose audio has no length or cannot be read; otherwise they stay without.
        durations: add missing durations.
        channels: add the number of channels as `channels`.
    """
    lacking = [row for row in corpus.rows if "audio" in row and (channels or row.get("duration") is None)]
    kept = []
    for row, header in zip(lacking, read_headers([str(row["audio"]) for row in lacking]), strict=True):
        length_s = None if isinstance(header, Unreadable) else header.duration_s
        if channels and not isinstance(header, Unreadable):
            row["channels"] = header.channels
        if not durations or row.get("duration") is not None:
            continue
        if length_s is not None:
            row["duration"] = round(length_s - float(str(row.get("offset") or 0.0)), 6)
        elif need_length:
            why = header.why if isinstance(header, Unreadable) else "its header states no length"
            corpus.leave_out(why, file_name(str(row["audio"])))
            kept.append(id(row))
    corpus.rows = [row for row in corpus.rows if id(row) not in kept]


def require_unique_ids(corpus: Corpus) -> None:
    """Refuse repeated ids, which rows of two outputs may have. Raises: ConfigError naming the id."""
    seen: set[object] = set()
    for row in corpus.rows:
        if row["id"] in seen:
            raise ConfigError(f"two utterances have the id {row['id']!r}; make a manifest of each output by itself")
        seen.add(row["id"])


def _leave_out_texts(corpus: Corpus) -> None:
    """Omit rows with text but without audio, which other toolkits cannot represent."""
    for row in corpus.rows:
        if "audio" not in row:
            corpus.leave_out("a text without audio", str(row["id"]))
    corpus.rows = [row for row in corpus.rows if "audio" in row]


# ---------------------------------------------------------------------------------------------------- Lhotse out


def lhotse_lines(corpus: Corpus) -> tuple[list[Row], list[Row]]:
    """Return recordings and supervisions of rows. Reads every header: Lhotse needs sampling rates and sample counts."""
    _leave_out_texts(corpus)
    uris = list(dict.fromkeys(str(row["audio"]) for row in corpus.rows))
    names = {str(row["audio"]): str(row["id"]) for row in reversed(corpus.rows)}  # the id of an audio's first row
    recordings: dict[str, Row] = {}
    for uri, header in zip(uris, read_headers(uris), strict=True):
        if isinstance(header, Unreadable) or header.num_frames is None:
            why = header.why if isinstance(header, Unreadable) else "its header states no length"
            corpus.leave_out(why, file_name(uri))
        else:
            recordings[uri] = _recording(names[uri], uri, header, header.num_frames)
    supervisions = [
        _supervision(row, recordings[uri]) for row in corpus.rows if (uri := str(row["audio"])) in recordings
    ]
    corpus.rows = [row for row in corpus.rows if str(row["audio"]) in recordings]
    return list(recordings.values()), supervisions


def _recording(name: str, uri: str, header: AudioHeader, num_frames: int) -> Row:
    source = {"type": "url" if "://" in uri else "file", "channels": list(range(header.channels)), "source": uri}
    return {
        "id": name,
        "sources": [source],
        "sampling_rate": header.sampling_rate,
        "num_samples": num_frames,
        "duration": num_frames / header.sampling_rate,
        "channel_ids": source["channels"],
    }


def _supervision(row: Row, recording: Mapping[str, Any]) -> Row:
    offset_s = float(str(row.get("offset") or 0.0))
    duration_s = float(str(row.get("duration") or recording["duration"] - offset_s))
    channels = recording["channel_ids"]
    speaker = SPEAKER_ID if SPEAKER_ID in row else "speaker"
    given = {"text": "text", "language": "language", "speaker": speaker, "gender": "sex"}
    plain = {"id", "audio", "offset", "duration", "channel", *given.values()}
    custom = {name: value for name, value in row.items() if name not in plain}
    return {
        "id": row["id"],
        "recording_id": recording["id"],
        "start": offset_s,
        "duration": duration_s,
        "channel": row["channel"] if "channel" in row else channels[0] if len(channels) == 1 else channels,
        **{theirs: row[ours] for theirs, ours in given.items() if ours in row},
        **({"custom": custom} if custom else {}),
    }


# ---------------------------------------------------------------------------------------------------- Lhotse in


def read_lhotse(files: Sequence[str]) -> Corpus:
    """Return rows of Lhotse's recordings and supervisions (`*recordings*.jsonl`, `*supervisions*.jsonl`, also .gz).

    A recording without a supervision is one row. Omitted and reported: cuts (they refer to these two), recordings that
    are transformed or come from a command or memory, and supervisions of several but not all channels of a file.

    Raises: ConfigError when there are no recordings, or two have the same id.
    """
    corpus = Corpus()
    recordings: dict[str, tuple[dict[str, Any], str]] = {}
    for uri in _manifests(files, "recordings"):
        for recording in _lines(uri):
            if recordings.setdefault(recording["id"], (recording, uri))[0] is not recording:
                raise ConfigError(
                    f"{uri}: the recording {recording['id']!r} appears twice; convert one corpus at a time"
                )
    if not recordings:
        raise ConfigError("there is no *recordings*.jsonl or .jsonl.gz; name the folder that Lhotse's recipe wrote")
    supervised = set()
    for uri in _manifests(files, "supervisions"):
        for supervision in _lines(uri):
            supervised.add(supervision["recording_id"])
            if supervision["recording_id"] not in recordings:
                corpus.leave_out("its recording is missing", supervision["id"])
                continue
            recording, place = recordings[supervision["recording_id"]]
            _add(corpus, recording, place, supervision)
    for name, (recording, place) in recordings.items():
        if name not in supervised:
            _add(corpus, recording, place, {"id": name, "start": 0.0, "duration": recording["duration"]})
    return corpus


def _add(corpus: Corpus, recording: Mapping[str, Any], place: str, supervision: Mapping[str, Any]) -> None:
    try:
        corpus.rows.append(supervision_row(recording, place, supervision))
    except (ValueError, RejectedRow) as error:
        corpus.leave_out(str(error), str(supervision["id"]))


def _manifests(files: Sequence[str], what: str) -> list[str]:
    return [file for file in files if what in file_name(file) and file.endswith((".jsonl", ".jsonl.gz"))]


def _lines(uri: str) -> list[dict[str, Any]]:
    try:
        content = fetch(uri, max_bytes=_MAX_BYTES)
        text = (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode()
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (RejectedRow, OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{uri} cannot be read: {error}") from error


def json_lines(rows: Iterable[Mapping[str, object]], *, compressed: bool = False) -> bytes:
    """Return rows as JSON Lines; equal rows give equal bytes."""
    content = "".join(json.dumps(row, ensure_ascii=False, default=no_json) + "\n" for row in rows).encode()
    return gzip.compress(content, mtime=0) if compressed else content
