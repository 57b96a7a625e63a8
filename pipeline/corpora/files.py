"""Which files lie below a folder, a bucket's prefix or a glob, and what the headers of audio files say."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

from fsspec import AbstractFileSystem

from pipeline.audio.decode import probe
from pipeline.audio.decoders import AudioHeader
from pipeline.errors import ConfigError, RejectedRow
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

_MAX_BYTES = 2 * 2**30  # as the job's own --max-bytes


def list_files(source: str) -> list[str]:
    """Every file below a folder, under a glob, or whose name begins with a prefix, as absolute paths or URIs, sorted.

    Names that start with a dot are left out: macOS leaves one beside every file of an archive.

    Raises: ConfigError for what is not there, may not be listed, or is http, which cannot be listed.
    """
    shown = without_query(source)
    if source.lower().startswith(("http://", "https://")):
        raise ConfigError(f"{shown}: http servers cannot be listed; give a folder, an object store or a manifest")
    filesystem, path = resolve(source)
    scheme = source.partition("://")[0] if "://" in source else "file"
    try:
        names = retried(lambda: _names(filesystem, path), what=f"listing {shown}")
    except DENIED:
        raise ConfigError(f"{shown}: {principal()} may not list it") from None
    except TRANSIENT as error:
        raise ConfigError(f"{shown} cannot be listed: {error}") from error
    if not names:
        raise ConfigError(f"{shown}: no file is there")
    kept = [name for name in names if not PurePosixPath(name).name.startswith(".")]
    return sorted(dict.fromkeys(uri_of(scheme, name) for name in kept))


def _names(filesystem: AbstractFileSystem, path: str) -> list[str]:
    try:
        if filesystem.isfile(path):
            return [path]
        if filesystem.isdir(path):
            return list(filesystem.find(path))
        pattern = path if re.search(r"[*?\[]", path) else f"{path}*"
        found = filesystem.glob(pattern, detail=True).items()
    except ABSENT:
        return []
    return list(itertools.chain.from_iterable(
        filesystem.find(name) if info["type"] == "directory" else [name] for name, info in found
    ))  # fmt: skip


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
