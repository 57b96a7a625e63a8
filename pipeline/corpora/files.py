"""Which files lie below a folder, a bucket's prefix or a glob, and what the headers of audio files say."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem

from pipeline.audio.decode import probe
from pipeline.audio.decoders import AudioHeader
from pipeline.errors import ConfigError, RejectedRow
from pipeline.leftovers import modified_s
from pipeline.manifest.source import uri_of
from pipeline.readahead import read_ahead
from pipeline.retrying import ABSENT, DENIED, TRANSIENT, principal, retried
from pipeline.roots import without_query
from pipeline.storage import fetch, resolve

AUDIO_ENDINGS = frozenset(
    {
        "3gp",
        "aac",
        "ac3",
        "aif",
        "aifc",
        "aiff",
        "amr",
        "ape",
        "au",
        "avi",
        "awb",
        "caf",
        "flac",
        "m4a",
        "m4v",
        "mka",
        "mkv",
    }
    | {
        "mov",
        "mp2",
        "mp3",
        "mp4",
        "mpc",
        "mpga",
        "nist",
        "oga",
        "ogg",
        "opus",
        "rf64",
        "snd",
        "sph",
        "spx",
        "tak",
        "tta",
    }
    | {"w64", "wav", "wave", "webm", "wma", "wmv", "wv"}
)
"""Names that end so count as audio when a folder is listed; their content decides later."""

Listing = dict[str, dict[str, Any]]
"""What fsspec says of each file, by its name."""

_MAX_BYTES = 2 * 2**30  # as the job's own --max-bytes


def list_files(source: str) -> list[str]:
    """Every file below a folder, under a glob, or whose name begins with a prefix, as absolute paths or URIs, sorted.

    Names that start with a dot are left out: macOS leaves one beside every file of an archive.

    Raises: ConfigError for what is not there, may not be listed, or is http, which cannot be listed.
    """
    return sorted(_found(source))


def list_versions(source: str) -> dict[str, str]:
    """The same files in the same order, each with its version: an object store's ETag, elsewhere size and time of change.

    It changes with every replacement by other content. Where the same bytes are written again an ETag stays as a rule (one
    of a multipart upload may not), a time does not. Raises: ConfigError as `list_files`.
    """
    return {uri: _version(info) for uri, info in sorted(_found(source).items())}


def _found(source: str) -> Listing:
    shown = without_query(source)
    if source.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{shown}: http servers cannot be listed; give a folder, an object store or a manifest")
    filesystem, path = resolve(source)
    scheme = source.partition("://")[0] if "://" in source else "file"
    try:
        listed = retried(lambda: _listed(filesystem, path), what=f"listing {shown}")
    except DENIED:
        raise ConfigError(f"{shown}: {principal()} may not list it") from None
    except TRANSIENT as error:
        raise ConfigError(f"{shown} cannot be listed: {error}") from error
    if not listed:
        raise ConfigError(f"{shown}: no file is there")
    return {uri_of(scheme, name): info for name, info in listed.items() if not PurePosixPath(name).name.startswith(".")}


def _listed(filesystem: AbstractFileSystem, path: str) -> Listing:
    try:
        if filesystem.isdir(
            path
        ):  # asked first: it lists, and a role that may read below a prefix may not read its name
            return dict(filesystem.find(path, detail=True))
        if filesystem.isfile(path):
            return {path: filesystem.info(path)}
        pattern = path if re.search(r"[*?\[]", path) else f"{path}*"
        found: Listing = {}
        for name, info in filesystem.glob(pattern, detail=True).items():
            found |= filesystem.find(name, detail=True) if info["type"] == "directory" else {name: info}
    except ABSENT:
        return {}
    return found


def _version(info: Mapping[str, Any]) -> str:
    tag = info.get("ETag") or info.get("etag")
    return str(tag).strip('"') if tag else f"{info['size']}-{modified_s(info):.6f}"


def audio_of(files: Sequence[str], source: str) -> list[str]:
    """Those that are named like audio; one file alone is taken whatever its name.

    Raises: ConfigError when none is.
    """
    audio = [file for file in files if file.rpartition(".")[2].lower() in AUDIO_ENDINGS]
    if not audio and len(files) > 1:
        raise ConfigError(f"{without_query(source)}: none of its {len(files):,} files is named like audio")
    return audio or list(files)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An audio file whose header cannot be read; `why` is the reason its row would be rejected for."""

    why: str


def read_headers(uris: Sequence[str]) -> Iterator[AudioHeader | Unreadable]:
    """The header of each file in turn. Costs one read of the whole file: several formats keep their length at the end."""
    for answer in read_ahead(partial(fetch, max_bytes=_MAX_BYTES), list(uris)):
        try:
            yield probe(answer())
        except RejectedRow as rejected:
            yield Unreadable(f"{rejected.reason}: {rejected.detail}")
