"""List the files of a folder, a bucket's prefix or a glob, and read the headers of audio files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.audio.decode import probe
from pipeline.audio.decoders import AudioHeader
from pipeline.errors import ConfigError, RejectedRow
from pipeline.manifest.expand import uri_of
from pipeline.redaction import without_query
from pipeline.storage.cleanup import modified_s
from pipeline.storage.fetch import fetch
from pipeline.storage.filesystem import resolve
from pipeline.storage.hub import is_hub
from pipeline.storage.listing import LeftOut, glob, is_audio_name, is_glob, is_utf8, printable, walk, without_aliases
from pipeline.storage.read_ahead import read_ahead
from pipeline.storage.retry import ABSENT, DENIED, TRANSIENT, principal, retried

Details = dict[str, dict[str, Any]]
"""fsspec's details of each file, by name."""

_MAX_BYTES = 2 * 2**30  # like the job's --max-bytes
_NOT_UTF8 = "names that are not UTF-8, which no manifest can hold: rename the files"
_DOT = "names that begin with a dot"


def list_files(source: str, left_out: LeftOut) -> list[str]:
    """List every file below a folder, matching a glob or starting with a prefix, as sorted absolute paths or URIs.

    Symbolic links are followed. Names that start with a dot (macOS creates one beside every file of an archive) and
    names that are not UTF-8 are omitted and added to `left_out`.

    Raises: ConfigError for missing sources, for folders without permission, and for http, which cannot be listed.
    """
    return sorted(_found(source, left_out))


def list_versions(source: str, left_out: LeftOut) -> dict[str, str]:
    """List the same files in the same order, each with its version: the ETag, or else size and modification time.

    The version changes when the content is replaced by other content. When the same bytes are written again, an ETag
    usually stays (one of a multipart upload may not), while a time changes.

    Raises: ConfigError, see `list_files`.
    """
    return {uri: _version(info) for uri, info in sorted(_found(source, left_out).items())}


def _found(source: str, left_out: LeftOut) -> Details:
    display_uri = printable(without_query(source))
    if source.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{display_uri}: http servers cannot be listed; give a folder, an object store or a manifest")
    filesystem, path = resolve(source)
    scheme = source.partition("://")[0] if "://" in source else "file"
    local = isinstance(filesystem, LocalFileSystem)
    seen = LeftOut(list)  # of the last attempt only
    try:
        listed = retried(
            lambda: _on_disk(filesystem, path, seen) if local else _in_store(filesystem, path),
            what=f"listing {display_uri}",
        )
    except DENIED:
        raise ConfigError(f"{display_uri}: {principal()} is not allowed to list it") from None
    except TRANSIENT as error:
        raise ConfigError(f"{display_uri} cannot be listed: {printable(str(error))}") from error
    if not listed:
        raise ConfigError(f"{display_uri}: the folder has no files")
    found = {}
    for name, info in listed.items():
        if PurePosixPath(name).name.startswith("."):
            seen[_DOT].append(name)
        elif not is_utf8(name):
            seen[_NOT_UTF8].append(name)
        else:
            found[uri_of(scheme, name)] = info
    if not found and _NOT_UTF8 in seen:
        raise ConfigError(f"{display_uri}: {len(seen[_NOT_UTF8]):,} files have {_NOT_UTF8}")
    for why, names in seen.items():
        left_out[why] += names
    return found


def _on_disk(filesystem: AbstractFileSystem, path: str, left_out: LeftOut) -> Details:
    left_out.clear()
    if filesystem.isdir(path):
        return _below(filesystem, path, left_out)
    if filesystem.isfile(path):
        return {path: filesystem.info(path)}
    found: Details = {}
    pattern = path if is_glob(path) else f"{path}*"
    for name, info in glob(filesystem, pattern, lambda _: None, left_out=left_out, detail=True).items():
        found |= _below(filesystem, name, left_out) if info is None else {name: info}
    return {name: found[name] for name in without_aliases(found, left_out)}


def _below(filesystem: AbstractFileSystem, folder: str, left_out: LeftOut) -> Details:
    found: Details = {}
    for contents in walk(filesystem, folder, left_out=left_out, detail=True):
        found.update((contents.paths([name])[0], info) for name, info in contents.files.items())
    return found


def _in_store(filesystem: AbstractFileSystem, path: str) -> Details:
    # an object store lists all depths at once; other file systems skip what they cannot list unless set to raise
    options = {} if isinstance(filesystem, AsyncFileSystem) or is_hub(filesystem) else {"on_error": "raise"}
    try:
        if filesystem.isdir(
            path
        ):  # checked first: a role that may list below a prefix may not be allowed to read its name
            return dict(filesystem.find(path, detail=True, **options))
        if filesystem.isfile(path):
            return {path: filesystem.info(path)}
        pattern = path if is_glob(path) else f"{path}*"
        found: Details = {}
        for name, info in filesystem.glob(pattern, detail=True).items():
            found |= filesystem.find(name, detail=True, **options) if info["type"] == "directory" else {name: info}
    except ABSENT:
        return {}
    return found


def _version(info: Mapping[str, Any]) -> str:
    tag = info.get("ETag") or info.get("etag")
    return str(tag).strip('"') if tag else f"{info['size']}-{modified_s(info):.6f}"


def audio_of(files: Sequence[str], source: str) -> list[str]:
    """Return the files with audio names; a single file is returned whatever its name.

    Raises: ConfigError when no file has an audio name.
    """
    audio = [file for file in files if is_audio_name(file)]
    if not audio and len(files) > 1:
        raise ConfigError(f"{without_query(source)}: none of its {len(files):,} files has an audio extension")
    return audio or list(files)


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An audio file with an unreadable header; `why` is the reason for which its row would be rejected."""

    why: str


def read_headers(uris: Sequence[str]) -> Iterator[AudioHeader | Unreadable]:
    """Yield the header of each file in order. Reads whole files, since several formats have their length at the end."""
    for answer in read_ahead(partial(fetch, max_bytes=_MAX_BYTES), list(uris)):
        try:
            yield probe(answer())
        except RejectedRow as rejected:
            yield Unreadable(f"{rejected.reason}: {rejected.detail}")
