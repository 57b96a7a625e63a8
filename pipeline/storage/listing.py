"""List folders, globs and the targets of symbolic links on any file system, without silent omissions.

fsspec's own `walk` and `glob` skip folders without permission and do not follow symbolic links to folders; both lose
rows without a message. Here such a folder is an error, and links are followed. A folder with several names is listed
once, under its real name if that is below the top folder.
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem

from pipeline.errors import ConfigError
from pipeline.storage.retry import ABSENT

_AUDIO_NAME = re.compile(
    r".*\.(3gp|aac|ac3|aif|aifc|aiff|amr|ape|au|avi|awb|caf|flac|m4a|m4v|mka|mkv|mov|mp2|mp3|mp4|mpc|mpga|nist|oga|ogg|opus|"
    r"rf64|snd|sph|spx|tak|tta|w64|wav|wave|webm|wma|wmv|wv)",
    re.IGNORECASE | re.DOTALL,
)
"""File names that count as audio when a folder is listed. The content is checked later."""

LeftOut = defaultdict[str, list[str]]
"""Names omitted from a listing, by reason. Create one with `LeftOut(list)`."""

ALIASES = "folders with a second name, by a symbolic link"
NOT_LISTED = "hidden or lost+found, and may not be listed"
_MAGIC = re.compile(r"[*?\[]")
_MAY_BE_CLOSED = re.compile(r"\.|lost\+found$")
"""System folders beside a corpus on a disk, such as `.Trashes`, that only root can list."""


@dataclass
class Contents:
    """The names in one folder. `walk` does not enter folders that its caller removes from `folders`.

    Attributes:
        folders: maps a name to whether it is a symbolic link.
        files: maps a name to fsspec's details; on a local disk without `detail`, only whether it is a link (`islink`).
    """

    path: str
    folders: dict[str, bool] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)

    def paths(self, names: Iterable[str]) -> list[str]:
        """Return the full paths of the given names, sorted."""
        return [f"{self.path.rstrip('/')}/{name}" for name in sorted(names)]


def is_glob(path: str) -> bool:
    """Return whether a path has wildcards (callers first look for a file with exactly this name)."""
    return _MAGIC.search(path) is not None


def is_audio_name(name: str) -> bool:
    """Return whether a file name has an extension of audio files."""
    return _AUDIO_NAME.fullmatch(name) is not None


def is_utf8(name: str) -> bool:
    """Return whether a name can be written to a manifest; on Linux a file name may contain any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""Return a file name for messages; bytes that are not UTF-8 are written like `\xe9`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace") if not is_utf8(name) else name


def list_folder(filesystem: AbstractFileSystem, folder: str, *, detail: bool = False) -> Contents:
    """List one folder.

    Raises: ConfigError naming a folder without permission; FileNotFoundError; OSError when the disk fails.
    """
    try:
        if isinstance(filesystem, LocalFileSystem):
            return _local(filesystem, folder, detail=detail)
        return _remote(filesystem, folder)
    except PermissionError:
        raise ConfigError(
            f"folder {printable(folder)} may not be listed (permission denied): nothing below it can be "
            "read. Allow it, or name what should be read instead of the folder above"
        ) from None


def _local(filesystem: AbstractFileSystem, folder: str, *, detail: bool) -> Contents:
    contents = Contents(folder)
    with os.scandir(folder) as entries:
        for entry in entries:
            if _leads_to_folder(entry):
                contents.folders[entry.name] = entry.is_symlink()
            else:
                contents.files[entry.name] = filesystem.info(entry) if detail else {"islink": entry.is_symlink()}
    return contents


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except PermissionError:
        raise
    except OSError:  # a link to itself
        return False


def _remote(filesystem: AbstractFileSystem, folder: str) -> Contents:
    contents, own = Contents(folder), folder.rstrip("/")
    for info in filesystem.ls(folder, detail=True):
        path = info["name"].rstrip("/")
        if path == own:  # the empty object that represents the folder in some stores
            continue
        name = path.rpartition("/")[2]
        if info["type"] == "directory":
            contents.folders[name] = False
        else:
            contents.files[name] = info
    return contents


def walk(filesystem: AbstractFileSystem, top: str, *, left_out: LeftOut, detail: bool = False) -> Iterator[Contents]:
    """List a folder and all folders below it, one by one: real folders first, then targets of symbolic links.

    A folder is listed once however many links refer to it, so cycles of links end. Raises: see `list_folder`.
    """
    local = isinstance(filesystem, LocalFileSystem)
    seen: set[tuple[int, int]] = set()
    folders, links = deque([top]), deque[str]()
    while folders or links:
        here = folders.popleft() if folders else links.popleft()
        try:
            if local:
                status = Path(here).stat()
                if (status.st_dev, status.st_ino) in seen:
                    left_out[ALIASES].append(here)
                    continue
                seen.add((status.st_dev, status.st_ino))
            contents = list_folder(filesystem, here, detail=detail)
        except ABSENT:
            if here == top:
                raise
            continue  # removed after its name was read
        except ConfigError:
            if here == top or not _MAY_BE_CLOSED.match(here.rpartition("/")[2]):
                raise
            left_out[NOT_LISTED].append(here)
            continue
        yield contents
        folders.extend(contents.paths(name for name, is_link in contents.folders.items() if not is_link))
        links.extend(contents.paths(name for name, is_link in contents.folders.items() if is_link))


Visit = Callable[[Contents], None]
"""Callback that receives each folder before its names are matched; it may remove names or raise."""


def glob(
    filesystem: AbstractFileSystem, pattern: str, visit: Visit, *, left_out: LeftOut, detail: bool = False
) -> dict[str, dict[str, Any] | None]:
    """Find matches of a pattern of `*`, `?`, `[...]` and, as a whole path segment, `**` (any folders, or none).

    Only folders that can contain a match are listed.

    Returns: a dict from path to the details of a file, or None for a folder; in no order.
    """
    segments = re.sub(r"(\*\*/)+", "**/", pattern.rstrip("/")).split("/")
    fixed = next(i for i, segment in enumerate(segments) if is_glob(segment))
    top = "/".join(segments[:fixed]) or "/" * pattern.startswith("/")

    def below(path: str, wanted: list[str]) -> None:
        if wanted[0] == "**":
            for contents in walk(filesystem, path, left_out=left_out, detail=detail):
                visit(contents)
                if wanted[1:]:
                    inside(contents, wanted[1:])
                else:
                    matches.update((contents.paths([name])[0], info) for name, info in contents.files.items())
            return
        try:
            contents = list_folder(filesystem, path, detail=detail)
        except ABSENT:
            return
        visit(contents)
        inside(contents, wanted)

    def inside(contents: Contents, wanted: list[str]) -> None:
        for name in [*contents.folders, *contents.files]:
            if not fnmatch.fnmatchcase(name, wanted[0]):
                continue
            (path,) = contents.paths([name])
            if len(wanted) == 1:
                matches[path] = contents.files.get(name)
            elif name in contents.folders:
                below(path, wanted[1:])

    matches: dict[str, dict[str, Any] | None] = {}
    below(top, segments[fixed:])
    return matches


def without_aliases(paths: Iterable[str], left_out: LeftOut) -> list[str]:
    """Drop additional names that local files have through links to folders.

    Of several names, the real one is kept if it is given, else the one with the fewest folders. The order is kept, and
    so are all URIs. Links to single files count as separate files.
    """
    real_folder = cache(os.path.realpath)
    kept: dict[str, str] = {}
    for path in paths:
        folder, _, name = path.rpartition("/")
        real = path if "://" in path else f"{real_folder(folder or '/')}/{name}"
        other = kept.get(real, path)
        kept[real] = min(other, path, key=lambda each: (each != real, each.count("/")))
        if other != path:
            left_out[ALIASES].append(path if kept[real] == other else other)
    return list(kept.values())
