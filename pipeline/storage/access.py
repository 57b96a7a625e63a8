"""Access policy for audio references: resolve them and check them against the allowed roots.

A manifest is untrusted input: a line in it must not make a worker read `/etc/passwd` or request credentials from the
cloud's metadata service. `resolve_audio` makes a reference absolute; `AudioRoots.check` allows or refuses it. Allowed
are plain local paths, objects of a known store, and http(s) URLs under a named prefix; never another scheme, an FFmpeg
pseudo-protocol (`concat:`) or an fsspec chain (`zip://x::s3://`).

Each step costs 1 to 7 microseconds per row. A local file under a root costs one lstat, which may be slow on a network
disk. `AudioRoots.check_opened`, which the reader calls, catches a link that changes between the check and the opening.
The reader (`pipeline.storage.http_body`) refuses redirects. Not covered: DNS rebinding of an allowed host and hard
links.
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
# FFmpeg protocols and URL schemes that work without `//`. File names such as `12:30.wav` or `spk1:2.wav` do not match.
_TRICK = re.compile(
    r"subfile,|(?:async|bluray|cache|concatf?|crypto|data|fd|file|ftps?|gopher|hls|https?|ipfs|mmst?|pipe|rtmp\w*|rtp|"
    r"rtsp|sftp|smb|subfile|tcp|tee|tls|udp|unix|javascript|jar|local|reference):",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_DOTS = re.compile(r"(?:^|/)\.{1,2}(?=/|$)")
_DOTS_OR_EMPTY = re.compile(r"^\.{1,2}(?=/|$)|/\.{0,2}(?=/|$)")
_BRACKETED_HOST = re.compile(r"^[^/\[]*\[[^\]/]*\]")
_DECODING_ROUNDS = 4  # no real file name is encoded as deeply as `%25252e`


def common_folder(uris: Sequence[str]) -> str:
    """Return the deepest folder that contains all the URIs, ignoring queries."""
    return commonprefix([without_query(uri) for uri in uris]).rpartition("/")[0]  # noqa: RUF071 - cut at the last slash


def resolve_audio(audio: str, manifest: str) -> str:
    """Return the absolute URI of an audio reference in a manifest.

    A relative reference starts at the manifest's folder. Local files become plain absolute paths, also from `file://`
    (where `%` is literal, as in fsspec). `.` and `..` are resolved; `~`, `\\` and, outside http, `%` and `?` are
    ordinary characters. An absolute path is a local file, except in an http manifest, where it starts at the host's
    root (RFC 3986).

    Raises: RejectedRow(NOT_ALLOWED) for references that are never opened, whatever the roots: other schemes,
        pseudo-protocols, fsspec chains, and `..` that leaves the bucket or host.
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
    folder: str  # without leading and trailing slashes; for a local folder the absolute path ("" is the root)


@lru_cache(maxsize=256)
def _folder(manifest: str) -> _Folder:
    """Return the folder where a manifest's relative references start."""
    scheme = _SCHEME.match(manifest)
    if scheme is None or scheme[1].lower() in ("file", "local"):
        return _Folder(_LOCAL, "", _local(manifest[scheme.end() :] if scheme else manifest).rpartition("/")[0])
    name = scheme[1].lower()
    rest = manifest[scheme.end() :]
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if name in _HTTP else rest
    if name == "memory":  # this scheme has no bucket
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
    """Resolve `.` and `..` below a bucket or host. Keep empty segments: `a//b` and `a/b` are different keys."""
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
    """Return whether a server could resolve a URL path (`%2e%2e`, `%252f`, `..;x`, a backslash) differently from us."""
    for _ in range(_DECODING_ROUNDS):
        if "\\" in path or _CONTROL.search(path) or _DOTS.search(re.sub(r";[^/]*", "", path) if ";" in path else path):
            return True
        if "%" not in path or (decoded := unquote(path)) == path:
            return False
        path = decoded
    return True


def _local(path: str) -> str:
    """Return an absolute local path without `.`, `..` and double slashes (POSIX would keep two leading slashes)."""
    return "/" + os.path.normpath(os.path.abspath(path)).lstrip("/")  # noqa: PTH100 - text only; the disk is not read


@dataclass(frozen=True, slots=True)
class _Place:
    store: str  # "local", "http", "https" or the object store
    host: str  # bucket or container; for http, host:port in lower case
    path: str  # without a leading slash, except for a local file

    def holds(self, other: _Place) -> bool:
        """Return whether `other` is this place or below it, compared by whole path segments."""
        if self.store != other.store or self.host != other.host:
            return False
        top = self.path.rstrip("/")
        return not top or other.path == top or other.path.startswith(top + "/")


def _place(uri: str) -> _Place:
    """Split an absolute URI. Raises: RejectedRow(NOT_ALLOWED) for kinds of URI that are never opened."""
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
    """Return host and path as the client will use them: the host after any `user@`, in lower case, with its port."""
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
    """Locations from which audio may be opened.

    With prefixes: only below one of them, compared by whole path segments (`s3://b/audio` does not allow
    `s3://b/audio-2/`) after following symbolic links of local files. Without prefixes: the store that contains the
    manifests, which means any local file for local manifests, any bucket of the same scheme for manifests in an object
    store, and nothing for http.
    """

    prefixes: tuple[str, ...]
    _roots: tuple[_Place, ...]
    _store: str | None

    @classmethod
    def parse(cls, prefixes: Sequence[str], manifests: Sequence[str]) -> AudioRoots:
        """Parse `--audio-root` values.

        Raises: ConfigError for a prefix that cannot match (another scheme, no bucket, a query), and for manifests in
            several stores without a prefix, since one manifest could then name files in another manifest's store.
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
        """Return prefixes for `parse` that do not depend on the working directory or on links that change later.

        A local root that is a symbolic link gives two prefixes: its own path and its present target. The link may have
        another target when a plan is finished.
        """
        both = [
            [root.path, os.path.realpath(root.path)] if root.store == _LOCAL else [prefix]
            for prefix, root in zip(self.prefixes, self._roots, strict=True)
        ]
        return tuple(dict.fromkeys(path for paths in both for path in paths))

    def check(self, uri: str) -> None:
        """Check an absolute URI as returned by `resolve_audio`.

        Nothing is cached: if a link changes, the next call follows its new target.

        Raises: RejectedRow(NOT_ALLOWED) naming the URI without its query and the root that would allow it.
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
        """Check an open local file by its real path, as the system reports it for the file descriptor.

        The bytes are read from exactly this file, even if links changed between `check` and the opening.

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
    """Return the local path with symbolic links resolved."""
    folder, name = os.path.split(path)
    if name in ("", ".", ".."):
        return os.path.realpath(path)
    real = os.path.join(_real_folder(folder), name)  # noqa: PTH118 - a hot path
    return os.path.realpath(real) if os.path.islink(real) else real  # noqa: PTH114 - as above


def _real_folder(folder: str) -> str:
    """Return `realpath(folder)` as resolved by the kernel: 5 microseconds in all; Python's takes as long per level."""
    try:
        descriptor = os.open(folder, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # missing, or a loop of links
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
    """Return whether a host is loopback, link-local or private, also as `2130706433`, `0x7f.1` or mapped IPv6."""
    if host in ("localhost", "metadata") or host.endswith((".localhost", ".internal", ".local")):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(host))  # legacy forms; makes no DNS query
        except OSError:
            return False
    return not address.is_global


def _schemes() -> str:
    return ", ".join((*OBJECT_STORES, *_HTTP))


def _refuse(uri: str, why: str) -> NoReturn:
    # cut at `?` even where it may be part of a file name: in an http manifest it starts a query, which may hold secrets
    bare = without_query(uri).partition("?")[0]
    shown = _CONTROL.sub("?", bare)[:500]
    raise RejectedRow(Reason.NOT_ALLOWED, f"{shown} {why}", Stage.MANIFEST)
