"""Access policy for audio references: the roots below which audio may be opened.

A manifest is untrusted input: a line in it must not make a worker read `/etc/passwd` or request credentials from the
cloud's metadata service. `resolve_audio` (`pipeline.storage.uri`) makes a reference absolute; `AudioRoots.check` allows or
refuses it. Allowed are plain local paths, objects of a known store, and http(s) URLs under a named prefix.

Each step costs 1 to 7 microseconds per row. A local file under a root costs one lstat, which may be slow on a network
disk. `AudioRoots.check_opened`, which the reader calls, catches a link that changes between the check and the opening.
The reader (`pipeline.storage.http_body`) refuses redirects. Not covered: DNS rebinding of an allowed host and hard
links.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

from pipeline.errors import ConfigError, RejectedRow
from pipeline.redaction import OBJECT_STORES, without_query
from pipeline.storage.items import container_of
from pipeline.storage.uri import HTTP, LOCAL, SCHEME, Place, absolute_path, place_of, refuse


@dataclass(frozen=True, slots=True)
class AudioRoots:
    """Locations from which audio may be opened.

    With prefixes: only below one of them, compared by whole path segments (`s3://b/audio` does not allow
    `s3://b/audio-2/`) after following symbolic links of local files. Without prefixes: the store that contains the
    manifests, which means any local file for local manifests, any bucket of the same scheme for manifests in an object
    store, and nothing for http.
    """

    prefixes: tuple[str, ...]
    _roots: tuple[Place, ...]
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
                f"the manifests are in different stores ({', '.join(sorted(stores))}): "
                "set --audio-root PREFIX, once for each location of their audio"
            )
        return cls((), (), stores.pop() if stores else None)

    def absolute(self) -> tuple[str, ...]:
        """Return prefixes for `parse` that do not depend on the working directory or on links that change later.

        A local root that is a symbolic link gives two prefixes: its own path and its present target. The link may have
        another target when a plan is finished.
        """
        both = [
            [root.path, os.path.realpath(root.path)] if root.store == LOCAL else [prefix]
            for prefix, root in zip(self.prefixes, self._roots, strict=True)
        ]
        return tuple(dict.fromkeys(path for paths in both for path in paths))

    def check(self, uri: str) -> None:
        """Check an absolute URI as returned by `resolve_audio`; of an item in a container, that of the container.

        Nothing is cached: if a link changes, the next call follows its new target.

        Raises: RejectedRow(NOT_ALLOWED) naming the URI without its query and the root that would allow it.
        """
        uri = container_of(uri)
        place = place_of(uri)
        if not self._roots:
            if place.store != self._store or place.store in HTTP:
                refuse(uri, f"is outside the store of the manifest{_hint(uri, place)}")
            return
        if place.store == LOCAL:
            self._require_real(uri, Place(LOCAL, "", _real_file(place.path)))
        elif not any(root.holds(place) for root in self._roots):
            self._refuse_outside(uri, place)

    def check_opened(self, path: str) -> None:
        """Check an open local file by its real path, as the system reports it for the file descriptor.

        The bytes are read from exactly this file, even if links changed between `check` and the opening.

        Raises: RejectedRow(NOT_ALLOWED).
        """
        if self._roots:
            self._require_real(path, Place(LOCAL, "", path))

    def _require_real(self, uri: str, place: Place) -> None:
        for root in self._roots:
            if root.store == LOCAL and Place(LOCAL, "", _real_folder(root.path)).holds(place):
                return
        self._refuse_outside(uri, place)

    def _refuse_outside(self, uri: str, place: Place) -> NoReturn:
        named = ", ".join(self.prefixes[:3]) + (", ..." if len(self.prefixes) > 3 else "")
        led = f", whose real path is {place.path}," if place.store == LOCAL and place.path != uri else ""
        refuse(uri, f"{led} is outside the audio roots ({named}){_hint(uri, place)}".lstrip())


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


def _root(prefix: str) -> Place:
    if not prefix:
        raise ConfigError("--audio-root is empty; '.' means the current folder, '/' any local file")
    if SCHEME.match(prefix) is None:
        prefix = absolute_path(prefix)
    try:
        place = place_of(prefix)
    except RejectedRow as error:
        raise ConfigError(f"--audio-root: {error.detail}") from None
    if place.store in HTTP and ("?" in prefix or "#" in prefix or "@" in urlsplit(prefix).netloc):
        raise ConfigError(f"--audio-root {without_query(prefix)}: a prefix has no user, query or fragment")
    return place


def _store_of(manifest: str) -> str:
    scheme = SCHEME.match(manifest)
    if scheme is None or scheme[1].lower() in ("file", "local"):
        return LOCAL
    return OBJECT_STORES.get(scheme[1].lower(), scheme[1].lower())


def _hint(uri: str, place: Place) -> str:
    if place.store in HTTP and _internal(host := place.host.rpartition(":")[0]):
        return f"; {host} is an internal address, allowed only by an --audio-root that names exactly this host"
    folder = place.path if place.store == LOCAL else without_query(uri).partition("?")[0]
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
