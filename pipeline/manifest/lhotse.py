"""Rows of Lhotse's recordings, supervisions and cuts, and of the Shar format, whose audio is in tars beside its cuts.

A cut becomes a row for each of its supervisions, or one row if it has none. In Lhotse, `channels` lists the channel numbers in
a source; a number's position in that list is the channel in the file.
Sources: `lhotse/audio/recording.py`, `lhotse/supervision.py`, `lhotse/cut/data.py` and `lhotse/shar`, Lhotse 1.33.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.errors import ConfigError, RejectedRow
from pipeline.manifest.fields import KNOWN
from pipeline.manifest.jsonl import JsonRecords, by_column
from pipeline.manifest.records import RAW_CHARACTERS, BadName, Names, RejectedLine, bad_field
from pipeline.manifest.store import store_errors
from pipeline.manifest.tar import tar_items
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.items import TarItem
from pipeline.storage.uri import resolve_audio
from pipeline.storage.windows import open_tar

_WHOLE_SLACK_S = 0.02
"""Tolerance for a supervision of the whole recording, since Lhotse rounds durations."""
_SAVE_AUDIO = "write it to a file with Lhotse (save_audio) and give the new cut"
_OF_THE_PLACE = {"id", "audio", "offset", "duration", "channel"}
"""Meanings of columns that come from Lhotse's own fields alone."""
_LANGUAGES = {"english": "en", "spanish": "es", "german": "de", "french": "fr", "italian": "it", "portuguese": "pt"}
"""Language codes by the names that Lhotse's recipes write."""
_CUTS = {"MonoCut", "MultiCut", "MixedCut", "PaddingCut"}
_SHAR = re.compile(r"(.*/)?cuts\.(\d+)\.jsonl(?:\.gz|\.zst)?", re.DOTALL)


def supervision_row(recording: Mapping[str, Any], place: str, supervision: Mapping[str, Any]) -> dict[str, object]:
    """Return the row of a supervision of a recording.

    Args:
        place: URI of the manifest from which relative sources start.
    Raises: ValueError with the reason for which it has no row; RejectedRow for a source that is never opened; KeyError,
        TypeError or AttributeError for fields that are not Lhotse's.
    """
    audio, channel = _source(recording, supervision.get("channel"))
    whole = (
        abs(supervision["duration"] - recording["duration"]) < _WHOLE_SLACK_S and supervision["start"] < _WHOLE_SLACK_S
    )
    language = supervision.get("language")
    row: dict[str, object] = {
        "id": supervision["id"],
        "audio": resolve_audio(audio, place),
        "offset": None if whole else supervision["start"],
        "duration": supervision["duration"],
        "channel": channel,
        "text": supervision.get("text"),
        "language": language and _LANGUAGES.get(language.lower(), language),
        "speaker": supervision.get("speaker"),
        "sex": supervision.get("gender"),
    }
    custom = {_custom_name(name, row): value for name, value in (supervision.get("custom") or {}).items()}
    return {name: value for name, value in {**row, **custom}.items() if value is not None}


def _custom_name(name: str, row: Mapping[str, object]) -> str:
    """Return the column of a custom field, which changes neither the place of the audio nor another field's value."""
    column = name.lower()
    is_taken = KNOWN.get(column) in _OF_THE_PLACE or row.get(column) is not None
    return f"custom_{name}" if is_taken else name


def _source(recording: Mapping[str, Any], channel: int | list[int] | None) -> tuple[str, int | None]:
    """Return a supervision's audio file and its channel in that file, None for all. Raises: ValueError."""
    if recording.get("transforms"):
        raise ValueError(f"its recording is transformed, which only Lhotse can do; {_SAVE_AUDIO}")
    sources = [source for source in recording["sources"] if source["type"] in ("file", "url")]
    if len(sources) != len(recording["sources"]):
        raise ValueError(f"its recording comes from a command, memory or an archive; {_SAVE_AUDIO}")
    wanted = [channel] if isinstance(channel, int) else list(channel or [])
    holding = [source for source in sources if set(wanted) <= set(source["channels"])] if wanted else sources
    if len(holding) != 1:
        raise ValueError("its channels are in several files")
    (source,) = holding
    if not wanted or set(wanted) == set(source["channels"]):
        return source["source"], None
    if len(wanted) > 1:
        raise ValueError("it covers some channels of a file, but not all")
    return source["source"], source["channels"].index(wanted[0])


# ---------------------------------------------------------------------------------------------------- cuts


def with_cuts(chunks: Iterator[JsonRecords], uri: str) -> Iterator[JsonRecords]:
    """Replace the cuts among JSON Lines records by their rows; other records are unchanged.

    Args:
        uri: URI of the manifest; audio of the Shar format is in a tar beside it.
    """
    names, shar = Names(), _Shar(uri)
    for records in chunks:
        if has_cuts(records):
            yield _rows_of(records, names, shar)
        else:
            yield records


def has_cuts(records: JsonRecords) -> bool:
    """Return whether any of the records is a cut."""
    return "type" in records.names and any(map(_is_cut, records.rows))


def _is_cut(row: Mapping[str, object]) -> bool:
    return (
        row.get("type") in _CUTS and ("recording" in row or "tracks" in row or "duration" in row) and "audio" not in row
    )


def _rows_of(records: JsonRecords, names: Names, shar: _Shar) -> JsonRecords:
    made = JsonRecords()
    made.rejects = list(records.rejects)
    for line, cut, text in zip(records.lines, records.rows, records.texts, strict=True):
        for supervision in _supervisions(cut):
            try:
                row = _cut_row(cut, supervision, shar) if _is_cut(cut) else cut
                row = by_column(row, made, names)
            except (ValueError, BadName, RejectedRow) as error:
                detail = error.detail if isinstance(error, RejectedRow) else str(error)
                made.rejects.append(_reject(line, supervision, f"a {cut.get('type')}: {detail}", text))
            except KeyError as error:
                made.rejects.append(_reject(line, supervision, f"a {cut.get('type')} without the field {error}", text))
            except (TypeError, AttributeError):
                detail = f"a {cut.get('type')} with a field that is null, or not of the type that Lhotse writes"
                made.rejects.append(_reject(line, supervision, detail, text))
            else:
                made.lines.append(line)
                made.rows.append(row)
                made.texts.append(text)
    made.rejects.sort(key=lambda reject: reject.line)
    return made


def _reject(line: int, supervision: object, detail: str, text: str) -> RejectedLine:
    name = supervision.get("id") if isinstance(supervision, dict) else None
    return RejectedLine(line, bad_field(detail), text[:RAW_CHARACTERS], name if isinstance(name, str) else None)


def _supervisions(cut: Mapping[str, Any]) -> list[Any]:
    """Return the supervisions of a cut; of one without, itself, in the time of the cut."""
    given = cut.get("supervisions")
    return (
        given
        if isinstance(given, list) and given
        else [{"id": cut.get("id"), "start": 0.0, "duration": cut.get("duration")}]
    )


def _cut_row(cut: Mapping[str, Any], supervision: Mapping[str, Any], shar: _Shar) -> dict[str, object]:
    """Return the row of a supervision of a cut, whose times start at the cut. Raises: as `supervision_row`."""
    if "tracks" in cut or "recording" not in cut:
        raise ValueError(f"it is mixed or has no recording, so that only Lhotse can make its audio; {_SAVE_AUDIO}")
    start_s = max(0.0, supervision["start"])
    end_s = min(float(cut["duration"]), supervision["start"] + supervision["duration"])
    if end_s <= start_s:
        raise ValueError("its supervision is outside the cut")
    recording = {
        **cut["recording"],
        "sources": [shar.filled(source, cut["id"]) for source in cut["recording"]["sources"]],
    }
    channel = supervision.get("channel", cut.get("channel"))
    span = {"start": cut["start"] + start_s, "duration": round(end_s - start_s, 6), "channel": channel}
    return supervision_row(recording, shar.uri, {**supervision, **span})


@dataclass
class _Shar:
    """The recordings in the tar beside a manifest of the Shar format; read when the first of them is wanted.

    Attributes:
        uri: URI of the manifest, `cuts.NNNNNN.jsonl.gz`; its audio is in `recording.NNNNNN.tar`.
    """

    uri: str
    _items: dict[str, TarItem] | None = field(default=None)
    _why: str = ""

    def filled(self, source: Mapping[str, Any], name: str) -> Mapping[str, Any]:
        """Return a source with the address of its audio in place of a placeholder. Raises: ValueError without audio."""
        if source["type"] != "shar":
            return source
        if self._items is None:
            self._items = self._read()
        if name not in self._items:
            raise ValueError(f"its audio is not in the tar beside the manifest{self._why}")
        return {**source, "type": "file", "source": str(self._items[name])}

    def _read(self) -> dict[str, TarItem]:
        match = _SHAR.fullmatch(self.uri)
        if match is None:
            self._why = ", whose name is not cuts.NNNNNN.jsonl.gz"
            return {}
        container = f"./recording.{match[2]}.tar"  # relative to the manifest, like any audio
        filesystem, path = resolve(f"{match[1] or ''}{container[2:]}")
        try:
            with store_errors(without_query(container)), open_tar(filesystem, path) as file:
                return {item.name.rpartition(".")[0]: item for item in tar_items(file, container)}
        except ConfigError as error:
            self._why = f" ({str(error).removeprefix('manifest ')})"
            return {}
