"""Verification of audio objects against the manifest's checksums, and between two reads of the same object."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, BinaryIO

from pipeline.errors import Reason, RejectedRow, Stage

_DIGEST_BYTES = {"sha256": 32, "md5": 16}
"""Digest sizes by the manifest columns, in any case, that are checksums of the whole audio object."""

_PIECE_BYTES = 1 << 20


def check_content(content: bytes | BinaryIO, record: Mapping[str, Any], display_uri: str) -> None:
    """Verify an object against the checksums of its manifest row, in hex or base64; without any, accept it unchecked.

    Args:
        content: the bytes, or a file.
        display_uri: the object's URI for messages.
    Raises: RejectedRow CHECKSUM when the bytes differ, BAD_FIELD when the column's value is not such a checksum.
    """
    for column, stated in record.items():
        name = column.lower()
        size = _DIGEST_BYTES.get(name)
        if size is None or stated is None or stated == "":
            continue
        expected = _digest(stated, size)
        if expected is None:
            detail = f"column {column!r} holds {str(stated)[:80]!r}, which is not a {name} in hex or base64"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.FETCH)
        digest = _hash(content, partial(hashlib.new, name, usedforsecurity=False))
        if digest != expected:
            detail = f"{display_uri} has {name} {digest.hex()}, but the manifest states {expected.hex()}"
            raise RejectedRow(Reason.CHECKSUM, detail, Stage.FETCH)


def is_checksum(column: str) -> bool:
    """Return whether a manifest column is a checksum, ignoring the case of its name."""
    return column.lower() in _DIGEST_BYTES


def _digest(stated: object, size: int) -> bytes | None:
    if isinstance(stated, bytes) and len(stated) == size:
        return stated
    text = str(stated).strip()
    try:
        digest = bytes.fromhex(text) if len(text) == 2 * size else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return digest if len(digest) == size else None


def identity(content: bytes | BinaryIO) -> bytes:
    """Return a 16-byte hash that identifies an object's content. Costs about 1 ms per MB."""
    return _hash(content, partial(hashlib.blake2b, digest_size=16))


def _hash(content: bytes | BinaryIO, new: Callable[[], Any]) -> bytes:
    hasher = new()
    if isinstance(content, bytes):
        hasher.update(content)
    else:
        content.seek(0)
        while piece := content.read(_PIECE_BYTES):
            hasher.update(piece)
    return bytes(hasher.digest())
