"""Expand files, globs and folders to the manifests in them."""

from __future__ import annotations

import itertools
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from fsspec import AbstractFileSystem

from pipeline.errors import ConfigError, did_you_mean
from pipeline.layout import FOLDERS
from pipeline.manifest.source import make_one_of
from pipeline.manifest.store import store_errors
from pipeline.manifest.tables import Guard
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve
from pipeline.storage.hub import pinned
from pipeline.storage.items import is_tar_name
from pipeline.storage.listing import (
    ALIASES,
    Contents,
    LeftOut,
    glob,
    is_audio_name,
    is_glob,
    is_utf8,
    printable,
    walk,
    without_aliases,
)

_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
_COMPRESSED = (".gz", ".zst")
_HIDDEN = re.compile(r"[._]")  # `.git`, `_SUCCESS`, and our own `_runs`
_HIDDEN_INSIDE = re.compile(r"/[._]")
_NEVER_READ = re.compile(r"\._|(_temporary|_spark_metadata|__pycache__|\.git|\.cache|\.ipynb_checkpoints)$")
"""Hidden names that are skipped without a message, since no user expects them to be read."""
_DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json"}
"""Files in which Hugging Face's `datasets` describes a data set, which are no manifests."""
_OTHER_FORMS = re.compile(
    r"(part-[^.]*|\d[\d_-]*|.*\.(orc|avro|arrow|feather|xlsx|zip|bz2|xz|lz4|snappy|deflate|parquet\.(gz|zst)))$",
    re.IGNORECASE,
)
"""Names of table files that are not read: other formats, and Hive's parts without an extension."""
_HIDDEN_NAMES = "names that begin with '.' or '_' are read only when given explicitly"
_OWN_OUTPUT = "the output of this job"
_UNREAD = "possibly a manifest, but not named like one"
_SIBLINGS = 10_000  # names compared for "did you mean"; a bucket may hold millions
_SHOWN = 3

_log = logging.getLogger(__name__)


def expand(uris: Sequence[str], *, output: str | None = None) -> list[str]:
    """Return the manifests named by files, globs and folders, without repeats, in the order given.

    A file is taken whatever its name, and so is every match of a glob. A folder means all files below it, sorted,
    with the extension of a manifest (.jsonl .json .ndjson .csv .tsv .parquet, the text formats also .gz .zst), and if
    there are none, all tar files (.tar .tar.gz .tgz). A folder with neither that holds audio is returned itself, with a
    slash at its end. Names that start with `.` or `_` are taken only when given.
    Symbolic links are followed. Local names are returned as absolute paths, http(s) URLs unchanged, since they cannot be
    listed. Omissions that the user may not expect are logged as warnings. URIs of the Hugging Face hub get the
    commit that their revision names now.

    Args:
        output: the output of the job; files below it that folders and globs match are omitted.

    Raises: ConfigError for a name without a match, with the nearest existing name; for a folder without permission; and
        for files of an output or a table (`pipeline.manifest.tables`).
    """
    if not uris:
        raise ConfigError("no manifest was given")
    guard = Guard(output)
    manifests = itertools.chain.from_iterable(_Search(pinned(uri), guard).run() for uri in uris)
    return without_aliases(manifests, LeftOut(list))


def uri_of(scheme: str, path: str) -> str:
    """Return the absolute local path or URI of a path from a listing of its file system."""
    if scheme.lower() in ("file", "local"):
        return str(Path(path).absolute()) + "/" * path.endswith("/")
    return f"{scheme}://{path.lstrip('/')}"


class _Search:
    """Search for the manifests of one name given by the user."""

    def __init__(self, uri: str, guard: Guard) -> None:
        self._uri, self._guard, self._display_uri = uri, guard, printable(without_query(uri))
        self._left_out = LeftOut(list)
        self._audio = 0
        self._fixed: str | None = None
        self._hidden_too = False

    def run(self) -> list[str]:
        """Return the manifests. Raises: ConfigError, see `expand`."""
        if "::" in self._uri:
            raise ConfigError(
                f"manifest {self._display_uri}: chained file systems ('::') are not read; unpack it first"
            )
        if self._uri.lower().startswith(("http://", "https://")):
            return [self._uri]
        with store_errors(self._display_uri):
            filesystem, path = resolve(self._uri)
            names = self._names(filesystem, path)
        if not names:
            raise ConfigError(self._nothing(filesystem, path))
        for why, left in sorted(self._left_out.items()):
            more = ", ..." if len(left) > _SHOWN else ""
            examples = ", ".join(map(printable, left[:_SHOWN]))
            level = logging.INFO if why == ALIASES else logging.WARNING  # aliases are read under another name
            _log.log(
                level, "manifest %s: left out: %s, %s: %s%s", self._display_uri, f"{len(left):,}", why, examples, more
            )
        scheme = self._uri.partition("://")[0] if "://" in self._uri else "file"
        for name in names:
            if not is_utf8(name):
                raise ConfigError(
                    f"manifest {printable(name)}: its name is not UTF-8, so no row could name it; rename it"
                )
        return [uri_of(scheme, name) for name in names]

    def _names(self, filesystem: AbstractFileSystem, path: str) -> list[str]:
        if filesystem.isfile(path):
            self._guard.check_above(filesystem, path, self._display_uri, is_file=True)
            return [path]
        if filesystem.isdir(path):
            self._guard.check_above(filesystem, path, self._display_uri)
            return self._below(filesystem, path)
        return self._matches(filesystem, path) if is_glob(path) else []

    def _below(self, filesystem: AbstractFileSystem, folder: str) -> list[str]:
        """Find manifests below a folder, or else tar files, which manifests beside them describe, or else audio.

        Lists one folder at a time, to avoid one long list of the audio beside them.
        """
        manifests: list[str] = []
        tars: list[str] = []
        audio = 0
        for contents in walk(filesystem, folder, left_out=self._left_out):
            self._visit(filesystem, contents)
            audio += sum(map(is_audio_name, contents.files))
            manifests += self._manifests(filesystem, contents)
            tars += contents.paths(filter(is_tar_name, contents.files))
            if unread := [name for name in contents.files if _OTHER_FORMS.match(name)]:
                self._left_out[_UNREAD] += contents.paths(unread)
        # possibly a manifest that the user means is named otherwise
        is_doubtful = self._left_out.get(_UNREAD) or self._left_out.get(_HIDDEN_NAMES)
        if not manifests and not tars and audio and not is_doubtful:
            _log.info("manifest %s: a folder of audio, %s files", self._display_uri, f"{audio:,}")
            return [f"{folder.rstrip('/')}/"]
        self._audio += audio
        if tars and audio and not manifests:
            _log.warning(
                "manifest %s: the tars are read, and not the %s audio files; give a glob of either",
                self._display_uri,
                f"{audio:,}",
            )
        return sorted(manifests or tars)

    def _manifests(self, filesystem: AbstractFileSystem, contents: Contents) -> list[str]:
        """Return the manifests in one folder, without the job's output. Raises: ConfigError for links into a table."""
        taken = []
        for name in filter(_looks_like_manifest, contents.files):
            (path,) = contents.paths([name])
            if self._guard.is_output(filesystem, path):
                self._left_out[_OWN_OUTPUT].append(path)
                continue
            if contents.files[name].get("islink"):
                self._guard.check_above(filesystem, path, self._display_uri, is_file=True)
            taken.append(path)
        return taken

    def _matches(self, filesystem: AbstractFileSystem, pattern: str) -> list[str]:
        self._fixed = fixed = re.split(r"[*?\[]", pattern, maxsplit=1)[0].rpartition("/")[0]
        self._hidden_too = _HIDDEN_INSIDE.search(pattern[len(fixed) :]) is not None
        if not filesystem.isdir(fixed or "/"):
            return []
        if not self._guard.is_output(filesystem, fixed):
            self._guard.check_above(filesystem, fixed, self._display_uri)
        files: list[str] = []
        visit = lambda contents: self._visit(filesystem, contents)  # noqa: E731
        for name, info in sorted(glob(filesystem, pattern, visit, left_out=self._left_out).items()):
            if info is None:
                files += self._below(filesystem, name)
            elif self._guard.is_output(filesystem, name):
                self._left_out[_OWN_OUTPUT].append(name)
            else:
                if info.get("islink"):
                    self._guard.check_above(filesystem, name, self._display_uri, is_file=True)
                files.append(name)
        return files

    def _visit(self, filesystem: AbstractFileSystem, contents: Contents) -> None:
        """Remove names that are not read from a listed folder. Raises: ConfigError for a table."""
        if self._guard.is_output(filesystem, contents.path):
            self._left_out[_OWN_OUTPUT].append(contents.path)
            named = contents.path == self._fixed  # then the user may mean their own files in it
            for name in FOLDERS if named else list(contents.folders):
                contents.folders.pop(name, None)
            if not named:
                contents.files.clear()
        else:
            self._guard.check(filesystem, contents, self._display_uri)
        for path in contents.paths(name for name, is_link in contents.folders.items() if is_link):
            if not self._guard.is_output(filesystem, path):
                self._guard.check_above(filesystem, path, self._display_uri)
        if self._hidden_too:
            return
        hidden = [name for name in (*contents.folders, *contents.files) if _HIDDEN.match(name)]
        missed = [
            name
            for name in hidden
            if not _NEVER_READ.match(name) and (name in contents.folders or _looks_like_manifest(name))
        ]
        if missed:
            self._left_out[_HIDDEN_NAMES] += contents.paths(missed)
        for name in hidden:
            contents.folders.pop(name, None)
            contents.files.pop(name, None)

    def _nothing(self, filesystem: AbstractFileSystem, path: str) -> str:
        """Return a message why a name has no match and what to do."""
        reasons = [f"{len(names):,} left out, {why}" for why, names in sorted(self._left_out.items())]
        if self._audio:
            reasons.insert(0, f"but {self._audio:,} audio files: {make_one_of(self._uri)}")
        what = "; ".join(["", *reasons])
        with store_errors(self._display_uri):
            if filesystem.isdir(path):
                return f"manifest folder {self._display_uri} contains no file with a manifest's extension ({_endings()}){what}"
            return f"manifest {self._display_uri} does not exist{what or _nearest(filesystem, path)}"


def _looks_like_manifest(name: str) -> bool:
    bare = name.lower()
    if bare in _DESCRIPTIONS:
        return False
    for ending in _COMPRESSED:
        bare = bare.removesuffix(ending)
    return bare.endswith(_SUFFIXES) and not (bare.endswith(".parquet") and bare != name.lower())


def _endings() -> str:
    return f"{', '.join(_SUFFIXES)}, the text ones also {', '.join(_COMPRESSED)}"


def _nearest(filesystem: AbstractFileSystem, path: str) -> str:
    folder, _, name = path.rstrip("/").rpartition("/")
    try:
        siblings = itertools.islice(filesystem.ls(folder or "/", detail=False), _SIBLINGS)
    except (FileNotFoundError, NotADirectoryError):
        return f"; nor does its folder {folder}"
    return did_you_mean(name, [sibling.rstrip("/").rpartition("/")[2] for sibling in siblings])
