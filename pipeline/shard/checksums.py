"""Whether the bytes that came are the bytes that were meant: the manifest's checksums, and a second look at a recording."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Mapping
from typing import Any

from pipeline.errors import Reason, RejectedRow, Stage

_DIGEST_BYTES = {"sha256": 32, "md5": 16}
"""Manifest columns, in any case, that are taken for checksums of the whole audio object."""


def check_content(content: bytes, record: Mapping[str, Any], shown: str) -> None:
    """Hold an object against the checksums its manifest row gives, in hex or base64; a row without any is taken as it is.

    Raises: RejectedRow CHECKSUM when the bytes are others, BAD_FIELD when the column holds no such checksum.
    """
    for column, stated in record.items():
        name = column.lower()
        size = _DIGEST_BYTES.get(name)
        if size is None or stated is None or stated == "":
            continue
        expected = _digest(stated, size)
        if expected is None:
            detail = f"column {column!r} holds {str(stated)[:80]!r}, which is no {name} in hex or base64"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.FETCH)
        found = hashlib.new(name, content, usedforsecurity=False).digest()
        if found != expected:
            detail = f"{shown} has {name} {found.hex()}, and the manifest says {expected.hex()}"
            raise RejectedRow(Reason.CHECKSUM, detail, Stage.FETCH)


def is_checksum(column: str) -> bool:
    """Whether a manifest column is taken for a checksum, whatever its case."""
    return column.lower() in _DIGEST_BYTES


def _digest(stated: object, size: int) -> bytes | None:
    if isinstance(stated, bytes) and len(stated) == size:
        return stated
    text = str(stated).strip()
    try:
        found = bytes.fromhex(text) if len(text) == 2 * size else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        return None
    return found if len(found) == size else None


def identity(content: bytes) -> bytes:
    """16 bytes by which an object is known again; about 1 ms a MB."""
    return hashlib.blake2b(content, digest_size=16).digest()
