"""Addresses of audio items inside containers: members of tar files, and rows of Parquet files with embedded audio.

An address is the URI of the container, `#`, and the place of the item in it:

    s3://b/shard-0001.tar#offset=1536&size=32044&name=a/b.wav
    /data/train-0001.parquet#row_group=3&row=7&column=audio&group=5d41402a

The name of a member and the name of a column are percent-encoded. `group` identifies the content of the row group. Any other
use of `#` in a URI keeps its meaning: part of the name of a file or object, or the fragment of a URL.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

from pipeline.redaction import without_query

_TAR = re.compile(r"offset=(\d{1,18})&size=(\d{1,18})&name=([^#&=\s]+)", re.ASCII)
_ROW = re.compile(r"row_group=(\d{1,9})&row=(\d{1,9})&column=([^#&=\s]+)&group=([0-9a-f]{8})", re.ASCII)
_COMPRESSED = (".tar.gz", ".tgz")
_REVISION = re.compile(r"^(hf://(?:datasets/|spaces/)?[^/@]+/[^/@]+)@[^/]+")


@dataclass(frozen=True, slots=True)
class TarItem:
    """A member of a tar file.

    Attributes:
        container: URI of the tar file.
        offset: first byte of the content, in the uncompressed tar.
        size: size of the content in bytes.
        name: name of the member.
    """

    container: str
    offset: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.container}#offset={self.offset}&size={self.size}&name={self.quoted_name}"

    @property
    def quoted_name(self) -> str:
        """Return the name percent-encoded."""
        return quote(self.name.encode("utf-8", "surrogateescape"), safe="/")

    @property
    def is_compressed(self) -> bool:
        """Return whether the tar is compressed, so that it is read from its start."""
        return is_compressed_tar(self.container)

    @property
    def lasting(self) -> str:
        """Return the part of the address that stays the same when the tar is written again in another order."""
        return f"{unpinned(self.container)}#name={self.quoted_name}"


@dataclass(frozen=True, slots=True)
class RowItem:
    """A row of a Parquet file whose column holds audio.

    Attributes:
        container: URI of the Parquet file.
        row_group: number of the row group.
        row: number of the row in the row group.
        column: name of the column: binary, or a struct with a binary field `bytes`.
        group: 8 hex digits that identify the row group's layout; a file that was replaced has others.
    """

    container: str
    row_group: int
    row: int
    column: str
    group: str

    def __str__(self) -> str:
        return f"{self.container}#{self._place}&group={self.group}"

    @property
    def _place(self) -> str:
        return f"row_group={self.row_group}&row={self.row}&column={quote(self.column, safe='')}"

    @property
    def lasting(self) -> str:
        """Return the part of the address that names the place of the item, without marks of its content."""
        return f"{unpinned(self.container)}#{self._place}"


Item = TarItem | RowItem


def item_of(uri: str) -> Item | None:
    """Parse an address; return None for a URI that names no item."""
    container, mark, place = uri.rpartition("#")
    if not mark or not container:
        return None
    if match := _TAR.fullmatch(place):
        return TarItem(container, int(match[1]), int(match[2]), unquote(match[3], errors="surrogateescape"))
    if match := _ROW.fullmatch(place):
        return RowItem(container, int(match[1]), int(match[2]), unquote(match[3]), match[4])
    return None


def container_of(uri: str) -> str:
    """Return the URI of the file or object that holds a reference's audio, which may be all of it."""
    item = item_of(uri) if "#" in uri else None
    return uri if item is None else item.container


def display_name(uri: str) -> str:
    """Return a reference for messages, without its query; of an item, its name or row and then its container."""
    item = item_of(uri) if "#" in uri else None
    if item is None:
        return without_query(uri)
    if isinstance(item, RowItem):
        place = f"row {item.row} of row group {item.row_group}"
    else:
        place = item.name if item.name.isprintable() else item.quoted_name
    return f"{place} in {without_query(item.container)}"


def lasting_name(uri: str) -> str:
    """Return what identifies a reference's audio when its container is written again; a plain URI is returned unchanged."""
    item = item_of(uri) if "#" in uri else None
    return uri if item is None else item.lasting


def is_compressed_tar(uri: str) -> bool:
    """Return whether a file name is that of a compressed tar."""
    return uri.lower().endswith(_COMPRESSED)


def is_tar_name(uri: str) -> bool:
    """Return whether a file name is that of a tar, compressed or not."""
    return uri.lower().endswith((".tar", *_COMPRESSED))


def unpinned(uri: str) -> str:
    """Return a URI of the Hugging Face hub without its revision: a new commit keeps the ids of its rows."""
    return _REVISION.sub(r"\1", uri) if uri.startswith("hf://") else uri


def repository_of(uri: str) -> str | None:
    """Return the part of a URI of the Hugging Face hub that names the repository and its revision, or None."""
    match = _REVISION.match(uri)
    return None if match is None else f"{match[0]}/"
