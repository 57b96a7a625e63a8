"""JSON documents with a format number, created put-if-absent."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.errors import ConfigError
from pipeline.storage.store import Store

FORMAT = 1
"""Format number of every document that this version reads and writes."""


def read_document(store: Store, key: str) -> dict[str, Any]:
    """Read a JSON document written by the pipeline.

    Raises: FileNotFoundError; ConfigError naming a document that is damaged or has another format.
    """
    content = store.read(key)
    try:
        parsed = json.loads(content)
        written = parsed["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{store.root}/{key} cannot be read: {type(error).__name__} {error}") from error
    if written != FORMAT:
        raise ConfigError(f"{store.root}/{key} has format {written}; this version reads format {FORMAT}")
    document: dict[str, Any] = parsed
    return document


def create_json(store: Store, key: str, content: Mapping[str, Any], *, mine: tuple[str, str]) -> bool:
    """Put a JSON document if it is absent, and return whether the stored document is this writer's.

    The result is right even if the response to the PUT was lost.

    Args:
        mine: name and value of a field of `content` that identifies this writer's document.
    """
    if store.put_if_absent(key, json.dumps(content, indent=1, ensure_ascii=False).encode()):
        return True
    return bool(json.loads(store.read(key)).get(mine[0]) == mine[1])
