"""URIs of audio: resolve references against their manifest, and split a URI into store, host and path.

A reference that is never opened is refused here, whatever the audio roots: another scheme, an FFmpeg pseudo-protocol
(`concat:`) or an fsspec chain (`zip://x::s3://`). Reads neither disk nor network.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from os.path import commonprefix
from typing import NoReturn
from urllib.parse import unquote, urlsplit

from pipeline.errors import Reason, RejectedRow, Stage
from pipeline.redaction import OBJECT_STORES, without_query
from pipeline.storage.items import container_of, item_of

LOCAL = "local"
HTTP = ("http", "https")
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://")
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
    """Return the deepest folder that contains all the URIs or their containers, ignoring queries."""
    return commonprefix([without_query(container_of(uri)) for uri in uris]).rpartition("/")[0]  # noqa: RUF071 - cut at the last slash


def resolve_audio(audio: str, manifest: str) -> str:
    """Return the absolute URI of an audio reference in a manifest.

    Of an item in a container (`pipeline.storage.items`), the container is resolved. A relative reference starts at the
    manifest's folder. Local files become plain absolute paths, also from `file://`
    (where `%` is literal, as in fsspec). `.` and `..` are resolved; `~`, `\\` and, outside http, `%` and `?` are
    ordinary characters. An absolute path is a local file, except in an http manifest, where it starts at the host's
    root (RFC 3986).

    Raises: RejectedRow(NOT_ALLOWED) for references that are never opened, whatever the roots: other schemes,
        pseudo-protocols, fsspec chains, and `..` that leaves the bucket or host.
    """
    if "#" in audio and (item := item_of(audio)) is not None:
        return str(replace(item, container=resolve_audio(item.container, manifest)))
    scheme = SCHEME.match(audio)
    if scheme is not None:
        return _resolve_uri(scheme[1].lower(), audio[scheme.end() :], audio)
    if not audio or "::" in audio or _CONTROL.search(audio):
        refuse(audio, "is empty, or holds '::' or a control character; '::' makes fsspec chain file systems")
    if _TRICK.match(audio):
        refuse(audio, "starts like a protocol; put './' before it if it is a file name")
    base = _folder(manifest if "://" in manifest or manifest[:1] == "/" else os.path.abspath(manifest))  # noqa: PTH100
    if base.scheme == LOCAL or (audio[0] == "/" and base.scheme not in HTTP):
        path = audio if audio[0] == "/" else f"{base.folder}/{audio}"
        return absolute_path(path) if _DOTS_OR_EMPTY.search(audio) else path
    if audio[0] == "/":
        rooted = f"{base.scheme}:{audio}" if audio[:2] == "//" else f"{base.scheme}://{base.host}{audio}"
        return resolve_audio(rooted, manifest)
    joined = f"{base.folder}/{audio}" if base.folder else audio
    if base.scheme in HTTP or _DOTS.search(audio):
        joined = _without_dots(joined, audio, base.scheme)
    return f"{base.scheme}://{base.host}/{joined}" if base.host else f"{base.scheme}://{joined}"


def own_uri(manifest: str) -> str:
    """Return the absolute URI of a manifest, as one of its rows would refer to it. Raises: as `resolve_audio`."""
    return resolve_audio(f"./{manifest.rpartition('/')[2]}", manifest)


@dataclass(frozen=True, slots=True)
class _Folder:
    scheme: str
    host: str
    folder: str  # without leading and trailing slashes; for a local folder the absolute path ("" is the root)


@lru_cache(maxsize=256)
def _folder(manifest: str) -> _Folder:
    """Return the folder where a manifest's relative references start."""
    scheme = SCHEME.match(manifest)
    if scheme is None or scheme[1].lower() in ("file", "local"):
        return _Folder(LOCAL, "", absolute_path(manifest[scheme.end() :] if scheme else manifest).rpartition("/")[0])
    name = scheme[1].lower()
    rest = manifest[scheme.end() :]
    rest = re.split(r"[?#]", rest, maxsplit=1)[0] if name in HTTP else rest
    if name == "memory":  # this scheme has no bucket
        return _Folder(name, "", rest.lstrip("/").rpartition("/")[0])
    host, _, path = rest.partition("/")
    return _Folder(name, host, path.rpartition("/")[0])


def _resolve_uri(scheme: str, rest: str, audio: str) -> str:
    chained = "::" in (_BRACKETED_HOST.sub("", rest) if scheme in HTTP else rest)
    if chained or _CONTROL.search(rest):
        refuse(audio, "holds '::' or a control character; '::' makes fsspec chain file systems")
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if not slash or host.lower() not in ("", "localhost"):
            refuse(audio, "is a file on another host")
        return absolute_path(slash + path)
    if scheme not in OBJECT_STORES and scheme not in HTTP:
        refuse(audio, f"has the scheme {scheme!r}, which is never opened (local files, {_schemes()} are)")
    if scheme == "memory":
        return f"memory://{_without_dots(rest.lstrip('/'), audio, scheme)}"
    host, slash, path = rest.partition("/")
    if not host:
        refuse(audio, "names no host or bucket")
    if scheme in HTTP or _DOTS.search(path):
        path = _without_dots(path, audio, scheme)
    return f"{scheme}://{host}{slash}{path}"


def _without_dots(path: str, audio: str, scheme: str) -> str:
    """Resolve `.` and `..` below a bucket or host. Keep empty segments: `a//b` and `a/b` are different keys."""
    query = ""
    if scheme in HTTP and (cut := re.search(r"[?#]", path)):
        path, query = path[: cut.start()], path[cut.start() :]
    kept: list[str] = []
    for segment in path.split("/"):
        if segment == "..":
            if not kept:
                refuse(audio, "leaves its bucket or host with '..'")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
    plain = "/".join(kept)
    if scheme in HTTP and _hides_dots(plain):
        refuse(audio, "hides '..', '\\' or a control character behind percent-encoding or ';'")
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


def absolute_path(path: str) -> str:
    """Return an absolute local path without `.`, `..` and double slashes (POSIX would keep two leading slashes)."""
    return "/" + os.path.normpath(os.path.abspath(path)).lstrip("/")  # noqa: PTH100 - text only; the disk is not read


@dataclass(frozen=True, slots=True)
class Place:
    """The location that a URI names, comparable by prefix."""

    store: str  # "local", "http", "https" or the object store
    host: str  # bucket or container; for http, host:port in lower case
    path: str  # without a leading slash, except for a local file

    def holds(self, other: Place) -> bool:
        """Return whether `other` is this place or below it, compared by whole path segments."""
        if self.store != other.store or self.host != other.host:
            return False
        top = self.path.rstrip("/")
        return not top or other.path == top or other.path.startswith(top + "/")


def place_of(uri: str) -> Place:
    """Split an absolute URI. Raises: RejectedRow(NOT_ALLOWED) for kinds of URI that are never opened."""
    if uri[:1] == "/" and "::" not in uri and not _CONTROL.search(uri):
        return Place(LOCAL, "", uri)
    scheme = SCHEME.match(uri)
    if scheme is None:
        refuse(uri, "is neither an absolute path nor a URI, or holds '::' or a control character")
    name, rest = scheme[1].lower(), uri[scheme.end() :]
    if name == "file":
        return Place(LOCAL, "", _resolve_uri(name, rest, uri))
    _resolve_uri(name, rest, uri)  # refuses by scheme, chain, control characters and `..`
    if name in HTTP:
        return _http_place(name, uri)
    if _DOTS.search(rest):
        refuse(uri, "holds '.' or '..' segments")
    if name == "memory":
        return Place(name, "", rest.lstrip("/"))
    host, _, path = rest.partition("/")
    return Place(OBJECT_STORES[name], host, path)


def _http_place(scheme: str, uri: str) -> Place:
    """Return host and path as the client will use them: the host after any `user@`, in lower case, with its port."""
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError:
        refuse(uri, "has no valid host or port")
    if not host or re.search(r"[\s\\]", parts.netloc) or _DOTS.search(parts.path):
        refuse(uri, "has no valid host, or holds '.' or '..' segments")
    default = 443 if scheme == "https" else 80
    return Place(scheme, f"{host.lower()}:{port or default}", parts.path.lstrip("/"))


def _schemes() -> str:
    return ", ".join((*OBJECT_STORES, *HTTP))


def refuse(uri: str, why: str) -> NoReturn:
    """Raise RejectedRow(NOT_ALLOWED) with the URI, without its query, and the reason."""
    # cut at `?` even where it may be part of a file name: in an http manifest it starts a query, which may hold secrets
    bare = without_query(uri).partition("?")[0]
    display_uri = _CONTROL.sub("?", bare)[:500]
    raise RejectedRow(Reason.NOT_ALLOWED, f"{display_uri} {why}", Stage.MANIFEST)
