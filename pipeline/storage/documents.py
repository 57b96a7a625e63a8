"""JSON documents with a format number, created put-if-absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.store import Store

FORMAT = 1
"""Format of every document this version writes and reads."""


def read_document(store: Store, key: str) -> dict[str, Any]:
    """Read one of our JSON documents.

    Raises: FileNotFoundError; ConfigError naming a document that is damaged or of another format.
    """
    content = store.read(key)
    try:
        parsed = json.loads(content)
        written = parsed["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{store.root}/{key} cannot be read: {type(error).__name__} {error}") from error
    if written != FORMAT:
        raise ConfigError(f"{store.root}/{key} has format {written}; this version reads format {FORMAT}")
    found: dict[str, Any] = parsed
    return found


def create_json(store: Store, key: str, content: Mapping[str, Any], *, mine: tuple[str, str]) -> bool:
    """Put a JSON document if it is absent. Return whether the stored document is ours, even if the PUT's answer was lost.

    Args:
        mine: a field of `content` and its value, by which this writer recognises its own document.
    """
    if store.put_if_absent(key, json.dumps(content, indent=1, ensure_ascii=False).encode()):
        return True
    return bool(json.loads(store.read(key)).get(mine[0]) == mine[1])
