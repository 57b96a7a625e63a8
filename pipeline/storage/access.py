"""Which audio may be opened: what a manifest's audio reference means, and whether it lies under an allowed root.

A manifest is input from somebody else, so a line in it must not make a worker read `/etc/passwd` or ask the cloud's
metadata service for credentials. Two steps: `resolve_audio` makes a reference absolute, `AudioRoots.check` allows or
refuses it. What passes is a plain local path, an object of a known store, or an http(s) URL under a named prefix; never
another scheme, an FFmpeg pseudo-protocol (`concat:`) or an fsspec chain (`zip://x::s3://`).

Costs 1 to 7 microseconds a row each; a local file under a root costs one lstat, which a network disk may make slow.
A link changed between the check and the opening is caught by `AudioRoots.check_opened`, which the reader asks. Redirects
are refused by the reader (`pipeline.storage.http_body`). Not covered: an allowed http host whose name is rebound, and hard links.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from os.path import commonprefix
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from pipeline.errors import ConfigError, Reason, RejectedRow, Stage
from pipeline.redaction import OBJECT_STORES, without_query

__all__ = ["AudioRoots", "resolve_audio", "without_query"]

_LOCAL = "local"
_HTTP = ("http", "https")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
# FFmpeg protocols and URL schemes that work without `//`; a file name such as `12:30.wav` or `spk1:2.wav` stays a name.
_TRICK = re.compile(
    r"subfile,|(?:async|bluray|cache|concatf?|crypto|data|fd|file|ftps?|gopher|hls|https?|ipfs|mmst?|pipe|rtmp\w*|rtp|"
    r"rtsp|sftp|smb|subfile|tcp|tee|tls|udp|unix|javascript|jar|local|reference):",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?=/|$)")
_DOTS_OR_EMPTY = re.compile(r"^\.{1,2}(?=/|$)|/\.{0,2}(?=/|$)")
_BRACKETED_HOST = re.compile(r"^[^/\[]*\[[^\]/]*\]")
_DECODING_ROUNDS = 4  # `%25252e` and deeper is nobody's file name


def common_folder(uris: Sequence[str]) -> str:
    """The folder that holds all of these, without queries."""
    return commonprefix([without_query(uri) for uri in uris]).rpartition("/")[0]  # noqa: RUF071 - cut at the last slash


def resolve_audio(audio: str, manifest: str) -> str:
    """The absolute URI of an audio reference as it stands in a manifest.

    A relative reference starts at the manifest's folder. Local files come out as plain absolute paths, also from
    `file://` (whose `%` is literal, as fsspec has it); `.` and `..` are resolved; `~`, `\\` and, outside http, `%` and
    `?` are ordinary characters. An absolute path is a local file, except in an http manifest, where it starts at the
    host's root (RFC 3986).

    Raises: RejectedRow(NOT_ALLOWED) for what is never opened whatever the roots: other schemes, pseudo-protocols,
    fsspec chains, and `..` that leaves the bucket or host.
    """
    scheme = _SCHEME.match(audio)
    if scheme is not None:
        return _resolve_uri(scheme[1].lower(), audio[scheme.end() :], audio)
    if not audio or "::" in audio or _CONTROL.search(audio):
        _refuse(audio, "is empty, or holds '::' or a control character; '::' makes fsspec chain file systems")
    if _TRICK.match(audio):
        _refuse(audio, "starts like a protocol; put './' before it if it is a file name")
    base = _folder(manifest if "://" in manifest or manifest[:1] == "/" else os.path.abspath(manifest))  # noqa: PTH100
    if base.scheme == _LOCAL or (audio[0] == "/" and base.scheme not in _HTTP):
        path = audio if audio[0] == "/" else f"{base.folder}/{audio}"
        return _local(path) if _DOTS_OR_EMPTY.search(audio) else path
    if audio[0] == "/":
        rooted = f"{base.scheme}:{audio}" if audio[:2] == "//" else f"{base.scheme}://{base.host}{audio}"
        return resolve_audio(rooted, manifest)
    joined = f"{base.folder}/{audio}" if base.folder else audio
    if base.scheme in _HTTP or _DOTS.search(audio):
        joined = _without_dots(joined, audio, base.scheme)
    return f"{base.scheme}://{base.host}/{joined}" if base.host else f"{base.scheme}://{joined}"


@dataclass(frozen=True, slots=True)
class _Folder:
    scheme: str
    host: str
    folder: str  # without the slashes around it; an absolute path for a local one ("" is the root)


@lru_cache(maxsize=256)
def _folder(manifest: str) -> _Folder:
    """Where a manifest's relative references start."""
    scheme = _SCHEME.match(manifest)
    if scheme is None or scheme[1].lower() in ("file", "local"):
        return _Folder(_LOCAL, "", _local(manifest[scheme.end() :] if scheme else manifest).rpartition("/")[0])
    name = scheme[1].lower()
    rest = manifest[scheme.end() :]
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if name in _HTTP else rest
    if name == "memory":  # has no bucket
        return _Folder(name, "", rest.lstrip("/").rpartition("/")[0])
    host, _, path = rest.partition("/")
    return _Folder(name, host, path.rpartition("/")[0])


def _resolve_uri(scheme: str, rest: str, audio: str) -> str:
    chained = "::" in (_BRACKETED_HOST.sub("", rest) if scheme in _HTTP else rest)
    if chained or _CONTROL.search(rest):
        _refuse(audio, "holds '::' or a control character; '::' makes fsspec chain file systems")
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if not slash or host.lower() not in ("", "localhost"):
            _refuse(audio, "is a file on another host")
        return _local(slash + path)
    if scheme not in OBJECT_STORES and scheme not in _HTTP:
        _refuse(audio, f"has the scheme {scheme!r}, which is never opened (local files, {_schemes()} are)")
    if scheme == "memory":
        return f"memory://{_without_dots(rest.lstrip('/'), audio, scheme)}"
    host, slash, path = rest.partition("/")
    if not host:
        _refuse(audio, "names no host or bucket")
    if scheme in _HTTP or _DOTS.search(path):
        path = _without_dots(path, audio, scheme)
    return f"{scheme}://{host}{slash}{path}"


def _without_dots(path: str, audio: str, scheme: str) -> str:
    """Resolve `.` and `..` in a path below a bucket or host; empty segments stay, since `a//b` is a key of its own."""
    query = ""
    if scheme in _HTTP and (cut := re.search(r"[?#]", path)):
        path, query = path[: cut.start()], path[cut.start() :]
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if not kept:
                _refuse(audio, "leaves its bucket or host with '..'")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    plain = "/".join(kept)
    if scheme in _HTTP and _hides_dots(plain):
        _refuse(audio, "hides '..', '\\' or a control character behind percent-encoding or ';'")
    return plain + query


def _hides_dots(path: str) -> bool:
    """Whether a server could read a URL path (`%2e%2e`, `%252f`, `..;x`, a backslash) as another than we compare."""
    for _ in range(_DECODING_ROUNDS):
        if "\\" in path or _CONTROL.search(path) or _DOTS.search(re.sub(r";[^/]*", "", path) if ";" in path else path):
            return True
        if "%" not in path or (decoded := unquote(path)) == path:
            return False
        path = decoded
    return True


def _local(path: str) -> str:
    """An absolute local path without `.`, `..` and doubled slashes (POSIX would keep two leading ones)."""
    return "/" + os.path.normpath(os.path.abspath(path)).lstrip("/")  # noqa: PTH100 - text, not the disk


@dataclass(frozen=True, slots=True)
class _Place:
    store: str  # "local", "http", "https" or the object store
    host: str  # bucket or container; for http host:port in lower case
    path: str  # without a leading slash, except for a local file

    def holds(self, other: _Place) -> bool:
        """Whether `other` is this place or lies below it, by whole path segments."""
        if self.store != other.store or self.host != other.host:
            return False
        top = self.path.rstrip("/")
        return not top or other.path == top or other.path.startswith(top + "/")


def _place(uri: str) -> _Place:
    """Take an absolute URI apart. Raises: RejectedRow(NOT_ALLOWED) when it is of a kind that is never opened."""
    if uri[:1] == "/" and "::" not in uri and not _CONTROL.search(uri):
        return _Place(_LOCAL, "", uri)
    scheme = _SCHEME.match(uri)
    if scheme is None:
        _refuse(uri, "is neither an absolute path nor a URI, or holds '::' or a control character")
    name, rest = scheme[1].lower(), uri[scheme.end() :]
    if name == "file":
        return _Place(_LOCAL, "", _resolve_uri(name, rest, uri))
    _resolve_uri(name, rest, uri)  # refuses by scheme, chain, control characters and `..`
    if name in _HTTP:
        return _http_place(name, uri)
    if _DOTS.search(rest):
        _refuse(uri, "holds '.' or '..' segments")
    if name == "memory":
        return _Place(name, "", rest.lstrip("/"))
    host, _, path = rest.partition("/")
    return _Place(OBJECT_STORES[name], host, path)


def _http_place(scheme: str, uri: str) -> _Place:
    """Host and path as the client will use them: the host after any `user@`, lower case, with its port."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        _refuse(uri, "has no valid host or port")
    if not host or re.search(r"[\s\\]", parts.netloc) or _DOTS.search(parts.path):
        _refuse(uri, "has no valid host, or holds '.' or '..' segments")
    default = 443 if scheme == "https" else 80
    return _Place(scheme, f"{host.lower()}:{port or default}", parts.path.lstrip("/"))


@dataclass(frozen=True, slots=True)
class AudioRoots:
    """The places audio may be opened from.

    With prefixes: only under one of them, by whole path segments (`s3://b/audio` does not allow `s3://b/audio-2/`),
    with symbolic links of local files followed before comparing. Without: the store the manifests lie in, that is any
    local file for local manifests, any bucket of the same scheme for an object store's, and nothing for http.
    """

    prefixes: tuple[str, ...]
    _roots: tuple[_Place, ...]
    _store: str | None

    @classmethod
    def parse(cls, prefixes: Sequence[str], manifests: Sequence[str]) -> AudioRoots:
        """Read `--audio-root` values.

        Raises: ConfigError for a prefix that can match nothing (another scheme, no bucket, a query), and for manifests
        of several stores without a prefix, where one manifest could otherwise name files of the other's store.
        """
        if prefixes:
            return cls(tuple(map(without_query, prefixes)), tuple(map(_root, prefixes)), None)
        stores = {_store_of(manifest) for manifest in manifests}
        if len(stores) > 1:
            raise ConfigError(
                f"the manifests lie in different stores ({', '.join(sorted(stores))}): "
                "say with --audio-root PREFIX, once for each place, where their audio may lie"
            )
        return cls((), (), stores.pop() if stores else None)

    def absolute(self) -> tuple[str, ...]:
        """Prefixes that mean the same in another working directory and on another day, for `parse`.

        A local root that is a symbolic link gives two: its own path, and the folder that it leads to now. The link may lead
        elsewhere when a plan is finished.
        """
        both = [
            [root.path, os.path.realpath(root.path)] if root.store == _LOCAL else [prefix]
            for prefix, root in zip(self.prefixes, self._roots, strict=True)
        ]
        return tuple(dict.fromkeys(path for paths in both for path in paths))

    def check(self, uri: str) -> None:
        """Allow an absolute URI, as `resolve_audio` gives it, or refuse it.

        Nothing is remembered: a link that leads elsewhere by the next call is followed there.

        Raises: RejectedRow(NOT_ALLOWED) that names the URI without its query and the root that would allow it.
        """
        place = _place(uri)
        if not self._roots:
            if place.store != self._store or place.store in _HTTP:
                _refuse(uri, f"is outside the store the manifest lies in{_hint(uri, place)}")
            return
        if place.store == _LOCAL:
            self._require_real(uri, _Place(_LOCAL, "", _real_file(place.path)))
        elif not any(root.holds(place) for root in self._roots):
            self._refuse_outside(uri, place)

    def check_opened(self, path: str) -> None:
        """Allow or refuse a local file by its real path, as the system gives it for a file that is open.

        Whatever was turned between `check` and the opening, this is the file whose bytes are read.

        Raises: RejectedRow(NOT_ALLOWED).
        """
        if self._roots:
            self._require_real(path, _Place(_LOCAL, "", path))

    def _require_real(self, uri: str, place: _Place) -> None:
        for root in self._roots:
            if root.store == _LOCAL and _Place(_LOCAL, "", _real_folder(root.path)).holds(place):
                return
        self._refuse_outside(uri, place)

    def _refuse_outside(self, uri: str, place: _Place) -> NoReturn:
        named = ", ".join(self.prefixes[:3]) + (", ..." if len(self.prefixes) > 3 else "")
        led = f", in truth {place.path}," if place.store == _LOCAL and place.path != uri else ""
        _refuse(uri, f"{led} is outside the audio roots ({named}){_hint(uri, place)}".lstrip())


def _real_file(path: str) -> str:
    """The file a local path leads to."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    real = os.path.join(_real_folder(folder), name)  # noqa: PTH118 - a hot path
    return os.path.realpath(real) if os.path.islink(real) else real  # noqa: PTH114 - as above


def _real_folder(folder: str) -> str:
    """`realpath`, by the system's own walk: 5 microseconds, where Python's takes as many a level."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # not there, or a loop of links
        return os.path.realpath(folder)
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115 - a hot path
    finally:
        os.close(descriptor)


def _root(prefix: str) -> _Place:
    if not prefix:
        raise ConfigError("--audio-root is empty; '.' means the current folder, '/' any local file")
    if _SCHEME.match(prefix) is None:
        prefix = _local(prefix)
    try:
        place = _place(prefix)
    except RejectedRow as error:
        raise ConfigError(f"--audio-root: {error.detail}") from None
    if place.store in _HTTP and ("?" in prefix or "#" in prefix or "@" in urlsplit(prefix).netloc):
        raise ConfigError(f"--audio-root {without_query(prefix)}: a prefix has no user, query or fragment")
    return place


def _store_of(manifest: str) -> str:
    scheme = _SCHEME.match(manifest)
    if scheme is None or scheme[1].lower() in ("file", "local"):
        return _LOCAL
    return OBJECT_STORES.get(scheme[1].lower(), scheme[1].lower())


def _hint(uri: str, place: _Place) -> str:
    if place.store in _HTTP and _internal(host := place.host.rpartition(":")[0]):
        return f"; {host} is an internal address, allowed only by an --audio-root that names exactly this host"
    folder = place.path if place.store == _LOCAL else without_query(uri).partition("?")[0]
    return f"; to allow it: --audio-root {folder.rpartition('/')[0]}/"


def _internal(host: str) -> bool:
    """Whether a host is loopback, link-local or private, also when written `2130706433`, `0x7f.1` or as mapped IPv6."""
    if host in ("localhost", "metadata") or host.endswith((".localhost", ".internal", ".local")):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # the legacy forms; asks no name server
        except OSError:
            return False
    return not address.is_global


def _schemes() -> str:
    return ", ".join((*OBJECT_STORES, *_HTTP))


def _refuse(uri: str, why: str) -> NoReturn:
    # cut there also where `?` is part of a name: the reference may be one of an http manifest, and secrets weigh more
    bare = without_query(uri).partition("?")[0]
    shown = _CONTROL.sub("?", bare)[:500]
    raise RejectedRow(Reason.NOT_ALLOWED, f"{shown} {why}", Stage.MANIFEST)
