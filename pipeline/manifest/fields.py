"""Known manifest columns: their names, valid values, and derived ids for rows without one.

Values are checked by column, not by row: a few passes at C speed accept a whole column of strings, and only a column
that fails is checked value by value to find the bad rows.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from pipeline.errors import Reject, RejectedRow
from pipeline.manifest.records import bad_field
from pipeline.redaction import without_query
from pipeline.storage.items import lasting_name, repository_of, unpinned
from pipeline.storage.uri import resolve_audio

ALIASES = {
    "audio": ("audio", "audio_filepath", "path", "uri"),
    "id": ("id",),
    "text": ("text",),
    "language": ("language",),
    "offset": ("offset",),
    "duration": ("duration",),
    "channel": ("channel",),
}
"""Column names by meaning, first choice first. Matching ignores case: `ID` is `id`."""

KNOWN = {alias: meaning for meaning, aliases in ALIASES.items() for alias in aliases}
NUMBERS = ("offset", "duration", "channel")

_MAX_ID_BYTES = 4096
_MAX_CHANNEL = 2**31 - 1
_LANGUAGE = re.compile(r"[A-Za-z0-9]+(?:-[A-Za-z0-9]+)*")
_MAX_LANGUAGE = 35  # RFC 5646, section 4.4.1: enough for every tag in use
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)
_NUMBER_LETTERS = frozenset("0123456789.+-eE")
_SHOWN = 80


class BadValue(Exception):
    """An invalid value for its column; the message names what is expected."""


@dataclass
class Fields:
    """The checked known columns of some records; `rejects` has the rejects by position."""

    audio: list[str | None]
    recording_id: list[str | None]
    text: list[str | None]
    language: list[str | None]
    offset_s: list[float | None]
    duration_s: list[float | None]
    channel: list[int | None]
    rejects: dict[int, Reject] = field(default_factory=dict)


def check_fields(
    values_of: Callable[[str], Sequence[object]], *, from_csv: bool, manifest: str, audio_optional: bool
) -> Fields:
    """Check the known columns of some records.

    Args:
        values_of: returns the values for one key of `ALIASES`, None where a record has none.
        from_csv: whether values are text, so that empty values are absent and numbers are parsed.
        manifest: URI to which relative audio references are resolved.
        audio_optional: whether a row with text may lack audio.
    """
    rejects: dict[int, Reject] = {}

    def column(name: str) -> Sequence[object]:
        return [value or None for value in values_of(name)] if from_csv else values_of(name)

    def numbers(name: str) -> list[float | None]:
        return _numbers(column(name), name, rejects, from_csv=from_csv)

    audio = _strings(column("audio"), "audio", _audio, rejects)
    ids = _strings(column("id"), "id", _id, rejects)
    text = _strings(column("text"), "text", _text, rejects)
    language = _languages(column("language"), rejects)
    # tools write 0 for an unknown duration; the audio itself gives it later
    durations = [value or None for value in numbers("duration")]
    fields = Fields(audio, ids, text, language, numbers("offset"), durations, [], rejects)
    fields.channel = _channels(numbers("channel"), rejects)
    _resolve(fields, manifest, audio_optional=audio_optional)
    repository = repository_of(manifest)
    for position, recording_id in enumerate(fields.recording_id):
        if recording_id is None and position not in rejects:
            fields.recording_id[position] = _derived(fields, position, repository)
    return fields


def derived_id(
    audio: str | None, offset_s: float | None, duration_s: float | None, channel: int | None, text: str | None = None
) -> str:
    """Return the id for a row without one: `rec-` and 20 hex digits (80 bits) of BLAKE2b.

    The hash covers these UTF-8 lines, joined by newlines: absolute audio URI, offset and duration in Python's float
    format (`1.0`), and channel; absent values are empty. Of an item in a container, the hash covers its name there, which
    stays when the container is written again. A row without audio has its text as a fifth line. Pre-signed
    URLs change with every signing, so rows with such URLs should have ids.
    """
    parts = [
        lasting_name(audio or ""),
        *("" if value is None else repr(float(value)) for value in (offset_s, duration_s)),
    ]
    parts.append("" if channel is None else str(channel))
    if audio is None:
        parts.append(text or "")
    return "rec-" + hashlib.blake2b("\n".join(parts).encode(), digest_size=10).hexdigest()


def version_id(audio: str, version: str) -> str:
    """Return the id of a file's version: the file's id, `-`, and 12 hex digits (48 bits) of the version's BLAKE2b."""
    return f"{derived_id(audio, None, None, None)}-{hashlib.blake2b(version.encode(), digest_size=6).hexdigest()}"


def _derived(fields: Fields, i: int, repository: str | None) -> str:
    """Return the id of a row; files beside a manifest of the hub (`repository`) have the same in every commit."""
    audio = fields.audio[i]
    if audio is not None and repository is not None and audio.startswith(repository):
        audio = unpinned(audio)
    return derived_id(audio, fields.offset_s[i], fields.duration_s[i], fields.channel[i], fields.text[i])


def _resolve(fields: Fields, manifest: str, *, audio_optional: bool) -> None:
    """Make audio absolute in place; reject rows without audio and audio that may never be opened."""
    for position, audio in enumerate(fields.audio):
        if position in fields.rejects:
            continue
        if audio is None:
            if not (audio_optional and fields.text[position]):
                wanted = "neither audio nor text" if audio_optional else "no audio"
                fields.rejects[position] = bad_field(f"the row has {wanted}")
            continue
        try:
            fields.audio[position] = resolve_audio(audio, manifest)
        except RejectedRow as error:
            fields.rejects[position] = error.reject


# ---------------------------------------------------------------------------------------------- columns, then values


def _blame(position: int, name: str, error: BadValue, rejects: dict[int, Reject]) -> None:
    rejects.setdefault(position, bad_field(f"{name} {error}"))


def _kinds(values: Iterable[object]) -> set[type]:
    return set(map(type, values)) - {type(None)}


def _strings(
    values: Sequence[object], name: str, check: Callable[[object], str], rejects: dict[int, Reject]
) -> list[str | None]:
    given = [value for value in values if value is not None]
    if _kinds(given) <= {str}:
        strings: list[str] = [str(value) for value in given]
        if check is _text or not strings or _plainly_right(strings, is_id=check is _id):
            return [None if value is None else str(value) for value in values]
    out: list[str | None] = []
    for position, value in enumerate(values):
        try:
            out.append(None if value is None else check(value))
        except BadValue as error:
            _blame(position, name, error, rejects)
            out.append(None)
    return out


def _plainly_right(strings: list[str], *, is_id: bool) -> bool:
    """Return whether a quick check accepts all audio references or ids; False wherever `_audio` or `_id` would raise."""
    if not "".join(strings).isprintable():
        return False
    if is_id:  # a character has at most 4 bytes in UTF-8
        return min(map(len, strings)) > 0 and max(map(len, strings)) <= _MAX_ID_BYTES // 4
    return min(map(len, map(str.strip, strings))) > 0


def _audio(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue(f"is {_kind(value)}; a path or URI is expected, as a string")
    if not value.strip():
        raise BadValue("is empty")
    if _CONTROL.search(value):
        shown = _CONTROL.sub(" ", re.split("[?#]", without_query(value), maxsplit=1)[0])
        raise BadValue(f"{shown[:_SHOWN]!r} holds a control character")
    return value


def _id(value: object) -> str:
    if type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise BadValue(f"is {_kind(value)}; a string or a whole number is expected")
    if not value:
        raise BadValue("is empty; leave it out to have one derived")
    if "\0" in value:
        raise BadValue("holds a NUL character")
    if len(value.encode()) > _MAX_ID_BYTES:
        raise BadValue(f"is longer than {_MAX_ID_BYTES:,} bytes")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise BadValue(f"is {_kind(value)}; a string is expected")
    return value


def _languages(values: Sequence[object], rejects: dict[int, Reject]) -> list[str | None]:
    known: dict[object, str | None] = {None: None}
    out: list[str | None] = []
    for position, value in enumerate(values):
        try:
            if value.__class__ is not str or value not in known:
                known_value = None if value is None else _language(value)
                if len(known) < 10_000:  # a hostile manifest may contain a million
                    known[value] = known_value
                out.append(known_value)
            else:
                out.append(known[value])
        except BadValue as error:
            _blame(position, "language", error, rejects)
            out.append(None)
    return out


def _language(value: object) -> str | None:
    if not isinstance(value, str):
        raise BadValue(f"is {_kind(value)}; a tag such as 'es' or 'es-MX' is expected")
    tag = value.strip().replace("_", "-")
    if tag and (len(tag) > _MAX_LANGUAGE or not _LANGUAGE.fullmatch(tag)):
        raise BadValue(f"{value[:_SHOWN]!r} is not a tag such as 'es' or 'es-MX'")
    return tag or None


def _numbers(values: Sequence[object], name: str, rejects: dict[int, Reject], *, from_csv: bool) -> list[float | None]:
    given = [value for value in values if value is not None]
    if not given:
        return [None] * len(values)
    quick = _quick_numbers(values, given, from_csv=from_csv)
    if quick is not None:
        return quick
    out: list[float | None] = []
    for position, value in enumerate(values):
        try:
            out.append(None if value is None else _number(value, from_csv=from_csv))
        except BadValue as error:
            _blame(position, name, error, rejects)
            out.append(None)
    return out


def _quick_numbers(values: Sequence[object], given: list[object], *, from_csv: bool) -> list[float | None] | None:
    """Return the column if a quick check accepts every value, None if each must be checked."""
    if from_csv:
        if not frozenset("".join(map(str, given))) <= _NUMBER_LETTERS:
            return None
        try:
            numbers: list[float | None] = [None if value is None else float(str(value)) for value in values]
        except ValueError:
            return None
    elif _kinds(given) <= {int, float}:
        numbers = [value if isinstance(value, int | float) else None for value in values]
    else:
        return None
    least = min(number for number in numbers if number is not None)
    most = max(number for number in numbers if number is not None)
    within = least >= 0 and most < 2**53
    return [None if number is None else float(number) for number in numbers] if within else None


def _number(value: object, *, from_csv: bool) -> float:
    expected = "a number from 0"
    if isinstance(value, bool) or not isinstance(value, str if from_csv else int | float):
        raise BadValue(f"is {_kind(value)}; {expected} is expected")
    shown = str(value)[:_SHOWN] if isinstance(value, str | float) or abs(value) < 2**64 else "a huge number"
    if isinstance(value, str):
        value = value.strip()  # unlike float(), also strips the separators 0x1c to 0x1f
        if not _NUMBER.fullmatch(value):
            raise BadValue(f"is {shown!r}; {expected} is expected")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number) or number < 0:
        raise BadValue(f"is {shown}; {expected} is expected")
    return number


def _channels(numbers: list[float | None], rejects: dict[int, Reject]) -> list[int | None]:
    """Convert channels to integers; pandas writes whole numbers as `1.0` in a column with missing values."""
    out: list[int | None] = []
    for position, number in enumerate(numbers):
        if number is not None and (number != int(number) or number > _MAX_CHANNEL):
            _blame(position, "channel", BadValue(f"is {number}; a whole number from 0 is expected"), rejects)
            out.append(None)
        else:
            out.append(None if number is None else int(number))
    return out


def _kind(value: object) -> str:
    """Return the JSON name of the value's type, with the value itself if it is a number and not huge."""
    names = {str: "a string", bool: "a boolean", dict: "an object", list: "a list", bytes: "bytes"}
    if type(value) is float or (type(value) is int and abs(value) < 2**64):
        return f"the number {value}"
    return names.get(type(value), "a number" if isinstance(value, int | float) else type(value).__name__)
