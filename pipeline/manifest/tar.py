"""Records of a tar file in WebDataset's layout: an audio file is a row, and its neighbours of the same name are columns.

Files next to each other whose names are equal up to the first dot are one sample: `a/b.wav`, `a/b.json`, `a/b.txt`. The keys
of the JSON object are columns, as in a JSON Lines manifest, and the text file is the column `text`. Only headers, JSON and
text are read, with one request for a header and what follows it closely; of a compressed tar, all of it.

Damage costs what cannot be found because of it: one reject for a member, or one for the rest of the file.
Source: "The WebDataset Format", webdataset.github.io.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import BinaryIO, NamedTuple, cast

from pipeline.manifest.jsonl import JsonRecords, by_column, json_row, why_bad
from pipeline.manifest.records import CHUNK_BYTES, RAW_CHARACTERS, BadName, Names, RejectedLine, bad_field, malformed
from pipeline.manifest.source import MAX_LINE_BYTES
from pipeline.storage.items import TarItem
from pipeline.storage.listing import is_audio_name, is_utf8

_MAX_READ_BYTES = MAX_LINE_BYTES + (1 << 20)
"""Longest header or text member to hold in memory."""
_KEY = re.compile(r"((?:.*/)?[^./]*)[.]?", re.DOTALL)
_PLAIN = re.compile(
    rb"(?P<name>[ -~]{1,99})\0+(?<=\A.{100}).{24}(?P<size>[0-7]{11})[\0 ].{12}(?P<sum>[0-7]{6})[\0 ]{2}[0\0]\0{100}ustar.{83}"
    rb"\0{155}\0{12}",
    re.DOTALL,
)
"""Header of a file with a short name in ASCII: name, size in octal, checksum, type, no link, no prefix."""
BLOCK_BYTES = 512
_COMPRESSED = "the compressed tar is damaged: "
_REST = "what follows in the tar cannot be found"
_WRITE_CONTENT = "write its content into the tar (tar --dereference --hard-dereference, without --sparse)"
_GZIP = b"\x1f\x8b"
_PADDING_BYTES = 1 << 20
"""Zeros after the end mark of a tar that are searched for a further tar; most programs write less than 10 KiB."""
_APPLE_DOUBLE = "._"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class _Columns:
    """Columns of one JSON or text member.

    Attributes:
        raw: the JSON.
        why: the reason for which rows with these columns are rejected, if the member is bad.
    """

    values: dict[str, object] = field(default_factory=dict)
    raw: str = ""
    why: str = ""


@dataclass
class _Sample:
    """The members of one sample.

    Attributes:
        audio: the audio members, each with its number in the tar.
        others: names of members that are neither audio, JSON nor text.
        columns: columns of the JSON and text members, by their names without the ending, and by `json` or `txt`.
    """

    key: str
    first: int
    audio: list[tuple[int, TarItem]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    columns: dict[tuple[str, str], _Columns] = field(default_factory=dict)

    def columns_of(self, name: str, ending: str) -> _Columns:
        """Return the columns for an audio member: of the file that is named like it, or like the sample, or the only one."""
        stem = name.rpartition(".")[0]
        for wanted in (stem, self.key):
            if (wanted, ending) in self.columns:
                return self.columns[wanted, ending]
        alike = [columns for (_, kind), columns in self.columns.items() if kind == ending]
        return alike[0] if len(alike) == len(self.audio) == 1 else _Columns()


class _Member(NamedTuple):
    """One member of a tar: its name, the place and size of its content, and its kind."""

    name: str
    offset: int
    size: int
    is_file: bool = True
    is_folder: bool = False


def _plain(block: bytes, at: int) -> _Member | None:
    """Parse a header of the most usual form, ten times as fast as the library; return None for any other.

    Args:
        at: position of the header.
    """
    match = _PLAIN.fullmatch(block)
    if match is None or sum(block) - sum(block[148:156]) + 8 * ord(" ") != int(match["sum"], 8):
        return None
    return _Member(match["name"].decode("ascii"), at + BLOCK_BYTES, int(match["size"], 8))


class _Damaged(Exception):
    """A tar that cannot be read further; the message gives the reason."""


class _NoTar(_Damaged):
    """A file that is not a plain tar from its start."""


def read_tar(file: BinaryIO, chunk_rows: int, container: str) -> Iterator[JsonRecords]:
    """Yield records of a tar file, at most `chunk_rows` and about `CHUNK_BYTES` of text at a time.

    Args:
        file: the uncompressed tar; forward seeks are enough.
        container: absolute URI of the tar.
    """
    records, names, size = JsonRecords(), Names(), 0
    for item in _samples(file, container):
        if isinstance(item, RejectedLine):
            records.rejects.append(item)
        else:
            size += sum(len(columns.raw) for columns in item.columns.values())
            _add(item, records, names)
        if size >= CHUNK_BYTES or len(records.lines) + len(records.rejects) >= chunk_rows:
            yield records
            records, size = JsonRecords(), 0
    if records.lines or records.rejects:
        yield records


def tar_items(file: BinaryIO, container: str) -> Iterator[TarItem]:
    """Yield the audio members of a tar, up to its end or the first damage."""
    try:
        for member in _members(file):
            if member.is_file and is_audio_name(member.name):
                yield TarItem(container, member.offset, member.size, member.name)
    except (_Damaged, EOFError, zlib.error, gzip.BadGzipFile):
        return


def _add(sample: _Sample, records: JsonRecords, names: Names) -> None:
    """Add the rows of a sample to the records, or the rejects."""
    if not sample.audio:
        members = ", ".join(sample.others[:_SHOWN]) or f"{sample.key}.*"
        missing = bad_field(f"no audio file is next to {members} in the tar; the files of a sample follow each other")
        records.rejects.append(RejectedLine(sample.first, missing, sample.key[:RAW_CHARACTERS]))
        return
    for number, item in sample.audio:
        told, text = (sample.columns_of(item.name, ending) for ending in ("json", "txt"))
        columns = {("json_audio" if name.lower() == "audio" else name): value for name, value in told.values.items()}
        if columns.get("text") is None:
            columns |= text.values
        raw, why = told.raw or text.raw or item.name[:RAW_CHARACTERS], told.why or text.why
        cause = malformed(why) if why else None
        row: dict[str, object] = {"audio": str(item), **columns}
        if cause is None:
            try:
                row = by_column(row, records, names)
            except BadName as error:
                cause = bad_field(str(error))
        if cause is not None:
            records.rejects.append(RejectedLine(number, cause, raw, audio=str(item)))
            continue
        records.lines.append(number)
        records.rows.append(row)
        records.texts.append(raw)


def _samples(file: BinaryIO, container: str) -> Iterator[_Sample | RejectedLine]:
    """Yield samples and rejected members, in the order of the tar."""
    sample: _Sample | None = None
    number = 0
    try:
        for number, member in enumerate(_members(file), 1):
            if member.is_folder or member.name.rpartition("/")[2].startswith(_APPLE_DOUBLE):
                continue
            matched = _KEY.match(member.name)
            key = matched[1] if matched else member.name
            if sample is None or key != sample.key:
                if sample is not None:
                    yield sample
                sample = _Sample(key, number)
            reject = _take(sample, member, number, file, container)
            if reject is not None:
                yield RejectedLine(number, bad_field(reject), member.name[:RAW_CHARACTERS])
                sample = sample if sample.audio or sample.others or sample.columns else None
    except (_Damaged, EOFError, zlib.error, gzip.BadGzipFile) as error:
        if sample is not None:
            yield sample
        yield RejectedLine(number + 1, malformed(_damage(error, number)), None)
        return
    if sample is not None:
        yield sample


def _damage(error: Exception, members: int) -> str:
    """Return the message of damage after a number of members."""
    if isinstance(error, _NoTar):
        return str(error)
    if not members and isinstance(error, gzip.BadGzipFile):
        return "the file is not compressed with gzip; if it is a plain tar, rename it to end in .tar"
    return f"{'' if isinstance(error, _Damaged) else _COMPRESSED}{error}; {_REST}"


def _take(sample: _Sample, member: _Member, number: int, file: BinaryIO, container: str) -> str | None:
    """Add a member to its sample. Returns: the reason for which it is rejected by itself, or None."""
    name = member.name
    ending = name.rpartition(".")[2].lower()
    if is_audio_name(name):
        if not member.is_file:
            return f"{name} is a link or a sparse file, which is not read; {_WRITE_CONTENT}"
        if not is_utf8(name):
            return "its name in the tar is not UTF-8, which no manifest can hold"
        sample.audio.append((number, TarItem(container, member.offset, member.size, name)))
    elif member.is_file and ending in ("json", "txt"):
        stem = name.rpartition(".")[0]
        if member.size > MAX_LINE_BYTES:
            sample.columns[stem, ending] = _Columns(why=f"{name} in the tar is longer than {MAX_LINE_BYTES:,} bytes")
            return None
        file.seek(member.offset)
        sample.columns[stem, ending] = _columns(name, ending, _exactly(file, member.size))
    else:
        sample.others.append(name)
    return None


def _columns(name: str, ending: str, content: bytes) -> _Columns:
    """Return the columns of a JSON or text member, or the reason for which they are bad."""
    try:
        if ending == "json":
            return _Columns(*json_row(content.strip(b" \t\r\n")))
        return _Columns({"text": content.decode().strip()})
    except (ValueError, RecursionError, StopIteration, IndexError) as error:
        why = "empty" if isinstance(error, IndexError) else why_bad(error)
        return _Columns(raw=content[:RAW_CHARACTERS].decode("utf-8", "replace"), why=f"{name} in the tar: {why}")


def _exactly(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) != size:
        raise _Damaged(f"the tar ends inside a file of {size:,} bytes")
    return content


class _Bounded:
    """The reads of a tar's headers, of which a hostile one may ask for a read of any size."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.tell, self.seek = file.tell, file.seek

    def read(self, size: int) -> bytes:
        if size > _MAX_READ_BYTES:
            raise tarfile.HeaderError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _members(file: BinaryIO) -> Iterator[_Member]:
    """Yield the members of a tar. Raises: _Damaged where no further member can be found."""
    # `TarFile.next` takes a damaged header for the end of the tar, and keeps every member in memory
    tar = SimpleNamespace(
        fileobj=_Bounded(file), offset=0, encoding="utf-8", errors="surrogateescape", pax_headers={}, debug=0
    )
    while True:
        at = tar.offset
        try:
            file.seek(at)
            if (plain := _plain(file.read(BLOCK_BYTES), at)) is not None:
                tar.offset = plain.offset + -(-plain.size // BLOCK_BYTES) * BLOCK_BYTES
                yield plain
                continue
            file.seek(at)
            member = tarfile.TarInfo.fromtarfile(cast(tarfile.TarFile, tar))
        except tarfile.HeaderError as error:
            kind = type(error).__name__
            if kind == "EOFHeaderError":
                if (further := _further_tar(file, at)) is None:
                    return
                tar.offset, tar.pax_headers = further, {}
                continue
            if at == 0 and (why := _no_tar(file)):
                raise _NoTar(why) from error
            if kind in ("EmptyHeaderError", "TruncatedHeaderError"):
                raise _Damaged(f"the tar ends without an end mark before byte {at + 1:,}: it is cut off") from error
            raise _Damaged(f"the tar is damaged at byte {at:,}: {error}") from error
        except (ValueError, RecursionError) as error:
            raise _Damaged(f"the tar is damaged at byte {at:,}: an invalid header") from error
        if tar.offset <= at:
            raise _Damaged(f"the tar is damaged at byte {at:,}: a negative size")
        yield _Member(
            member.name, member.offset_data, member.size, member.isreg() and not member.issparse(), member.isdir()
        )


def _further_tar(file: BinaryIO, at: int) -> int | None:
    """Return the start of a further tar behind an end mark, which `cat a.tar b.tar` makes; None at the end of the file."""
    try:
        for start in range(at, at + _PADDING_BYTES, BLOCK_BYTES):
            file.seek(start)
            block = file.read(BLOCK_BYTES)
            if not block or block.strip(b"\0"):
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                return start
    except (tarfile.HeaderError, EOFError, zlib.error, gzip.BadGzipFile):
        pass  # every member of the tar before it has been read
    return None


def _no_tar(file: BinaryIO) -> str:
    """Return the reason for which a file is not a tar, or nothing if it begins like one."""
    file.seek(0)
    block = file.read(BLOCK_BYTES)
    if not block:
        return "the file is empty, as if it were cut off"
    if block.startswith(_GZIP):
        return "the file is compressed with gzip: rename it to end in .tar.gz"
    return "" if b"ustar" in block else "the file is not a tar, or is cut off in its first header"
