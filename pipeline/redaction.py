"""Redaction of secrets in URLs: queries, fragments and user names.

A pre-signed URL, or one with a token, gives access to every reader, so these parts must not reach a message, a log, a
report or an output table. `without_query` shortens one URI, `redacted` redacts every URL in a text, and `redacted_line`
does the same for a line of a manifest. All three are idempotent. Exceptions redact their messages on construction
(`pipeline.errors`), and rejects are redacted when their rows are written (`pipeline.manifest.rejects`).

Not covered: tokens in the path of a URL, and the values of the user's own columns, which pass through unchanged.
"""

from __future__ import annotations

import hashlib
import re

OBJECT_STORES = {
    **{"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "oss": "oss", "oci": "oci", "tos": "tos", "hf": "hf"},
    **{"az": "az", "abfs": "az", "abfss": "az", "memory": "memory"},
}
"""fsspec scheme -> object store. `memory` is fsspec's in-process store, which makes no external requests."""

_LITERAL = {*OBJECT_STORES, "file", "local"}
"""Schemes in whose paths `?` and `#` are ordinary characters."""
_CUT = "?…"
_SLASHES = r"(?:\\?/){2}"  # JSON may write `\/`
_SCHEME = re.compile(rf"\s*([A-Za-z][A-Za-z0-9+.\-]*):{_SLASHES}")
_ANY_SCHEME = re.compile(rf"([A-Za-z][A-Za-z0-9+.\-]*):{_SLASHES}")
_HTTP_LIKE = re.compile(r"\s*https?:", re.IGNORECASE)
_QUERY = re.compile(r"[?#]|\\u003[fF]|\\u0023")
_AUTHORITY = re.compile(rf"^(\s*[A-Za-z][A-Za-z0-9+.\-]*:{_SLASHES})([^/\\?#]*)")
_PORT = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::\d*)?")
_CREDENTIAL = re.compile(
    r"(?<=[?&])(x-(?:amz|goog|oss|ms|cos)-[\w-]+|\w*signature|sig|awsaccesskeyid|googleaccessid|ossaccesskeyid|key-pair-id|"
    r"policy|[\w-]*token|auth\w*|api_?key|password|secret)=(?!~[0-9a-f]{8}(?:&|$))([^&]+)",
    re.IGNORECASE,
)
_IN_TEXT = re.compile(
    rf"""
      (?P<quote>["'])(?P<quoted>\s*[A-Za-z][A-Za-z0-9+.\-]*:{_SLASHES}(?:\\.|(?!(?P=quote)).)*)  # a string that is a URL
    | (?P<bare>(?:[A-Za-z][A-Za-z0-9+.\-]*:{_SLASHES}|[Hh][Tt][Tt][Pp][Ss]?:)[^\s"'<>]*)
    | (?P<user>(?<![:\w]){_SLASHES}[^/\s"'<>?\#@:\\]+:[^/\s"'<>?\#]*@)                           # //user:password@host
    | (?:[?&]|\\u003[fF]|\\u0026)(?=[\w.~%\-\[\]]+(?:=|\\u003[dD]))[^\s"'<>]*                    # ?name=value in a path
    """,
    re.VERBOSE | re.DOTALL,
)
_RELATIVE_QUERY = re.compile(r"(?<=[^\s\"'<>])(?:[?#]|\\u003[fF]|\\u0023)[^\s\"'<>]+")
# a truncated line may end just before the `@`
_OPEN_AUTHORITY = re.compile(rf"(?:(?<=:)|(?<![\w:/])(?=[\\/]+[^/\s]*:)){_SLASHES}[^/\s\"'<>]+$")


def without_query(uri: str) -> str:
    """Return a URI without query, fragment and user name, for outputs and messages.

    In object stores and on disk `?` and `#` are ordinary characters. They are kept there, so that each object keeps a
    distinct name; only the value of a parameter named like a credential becomes `~` and 8 hex digits of its hash.
    """
    return _shortened(uri, "")


def redacted(text: str) -> str:
    """Return a text with `without_query` applied to every URL, and `?…` in place of each removed query."""
    return _IN_TEXT.sub(_replacement, text)


def redacted_line(text: str, manifest: str) -> str:
    """Redact a line of a manifest, or the start of one. In an http manifest, relative references are also URLs."""
    text = _OPEN_AUTHORITY.sub("//…", redacted(text))
    return _RELATIVE_QUERY.sub(_CUT, text) if _HTTP_LIKE.match(manifest) else text


def redacted_audio(audio: str, manifest: str) -> str:
    """Return the audio reference of a rejected row without its query. It may be relative to its manifest."""
    if _HTTP_LIKE.match(manifest) and not _SCHEME.match(audio):
        path = audio[: cut.start()] if (cut := _QUERY.search(audio)) else audio
        return re.sub(r"^(//)[^/]*@", r"\1", path)
    return without_query(audio)


def _replacement(found: re.Match[str]) -> str:
    if found["quoted"] is not None:
        return found["quote"] + _shortened(found["quoted"], _CUT)
    if found["bare"] is not None:
        url = found["bare"].rstrip(":.,;!)")  # punctuation of the sentence
        return _shortened(url, _CUT) + found["bare"][len(url) :]
    return "//" if found["user"] is not None else _CUT


def _shortened(uri: str, mark: str) -> str:
    scheme = _SCHEME.match(uri)
    names = {scheme[1].lower()} if scheme else {"http"} if _HTTP_LIKE.match(uri) else set()
    if "::" in uri:  # a chained fsspec URL; never opened, but named in messages
        names |= {name.lower() for name in _ANY_SCHEME.findall(uri)}
    if not names:
        return _hide_credentials(uri)
    bare = uri
    if names - _LITERAL and (cut := _QUERY.search(uri)):
        bare = uri[: cut.start()] + mark
    return _AUTHORITY.sub(_without_user, _hide_credentials(bare))


def _hide_credentials(path: str) -> str:
    return _CREDENTIAL.sub(lambda found: f"{found[1]}=~{_fingerprint(found[2])}", path) if "=" in path else path


def _fingerprint(secret: str) -> str:
    return hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def _without_user(found: re.Match[str]) -> str:
    user, at, host = found[2].rpartition("@")
    if at and ":" not in user and found[1].strip().lower().startswith(("abfs", "az")):
        return found[0]  # `abfss://container@account`
    # `user:pa?ss@host` was cut at its `?`: the apparent port is the start of a password
    return found[1] + (host if _PORT.fullmatch(host) else "…")
