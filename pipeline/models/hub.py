"""Fetching a checkpoint's files: from the Hugging Face hub, or from any object store, to this node's disk.

Only the files that a model is a function of are fetched, once per node, and one form of the weights only.
Costs one small request to find out what a branch points at (none for a commit that lies complete in the cache) and the
download. Weights are looked at in `pipeline.models.weights`, not here.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.roots import without_query
from pipeline.storage import resolve as resolve_uri

_log = logging.getLogger(__name__)

SIDE_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "vocabulary.json",
    "vocabulary.txt",
)
"""Besides weights: what decides a score or a transcript. `vocabulary.*` is CTranslate2's."""

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.bin",
)
"""In order of preference; `model.bin` is CTranslate2's own format or, in some published repositories, a pickle."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_OFFLINE_ADVICE = "a local directory or an object-store URI of the same files works without the hub"


def select_files(names: Iterable[str], where: str) -> list[str]:
    """Of the files at the top of a checkpoint, those to fetch and hash: side files and one form of the weights.

    Raises: ConfigError when there is no config or no weights.
    """
    present = set(names)
    if "config.json" not in present:
        raise ConfigError(f"{where} holds no config.json, so it is no checkpoint")
    forms = [name for name in WEIGHTS if name in present]
    if not forms:
        raise ConfigError(f"{where} holds no weights; looked for {', '.join(WEIGHTS)}")
    if len(forms) > 1:
        _log.warning("%s holds %s; only %s is used", where, " and ".join(forms), forms[0])
    selected = [name for name in SIDE_FILES if name in present] + [forms[0]]
    if forms[0].endswith(".index.json"):
        stem, suffix = forms[0].removesuffix(".index.json").rsplit(".", 1)
        shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
        selected += sorted(name for name in present if shard.fullmatch(name))
    return selected


def is_complete(directory: Path) -> bool:
    """Whether a directory holds a checkpoint's config and weights, all shards included."""
    names = [entry.name for entry in directory.iterdir() if entry.is_file()]
    try:
        selected = select_files(names, str(directory))
    except ConfigError:
        return False
    for index in (name for name in selected if name.endswith(".index.json")):
        shards = json.loads((directory / index).read_text())["weight_map"].values()
        if not set(shards) <= set(names):
            return False
    return True


def fetch_from_hub(repo_id: str, revision: str | None, cache_dir: Path | None) -> tuple[Path, str]:
    """Bring a repository into the hub cache; returns its folder there and the commit it is of.

    A revision that is a full commit and lies complete in the cache costs no request, nor does anything under
    HF_HUB_OFFLINE=1. A branch or tag is asked for, never guessed from the cache while the hub is meant to be online.
    Raises: ConfigError that says what to do: unknown id or revision, no access, no network, nothing cached.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    wanted = f"{repo_id}@{revision}" if revision else repo_id
    pinned = revision is not None and COMMIT.fullmatch(revision) is not None
    if constants.HF_HUB_OFFLINE or pinned:
        folder = _cached(repo_id, revision, cache_dir)
        if folder is not None:
            return folder, folder.name
        if constants.HF_HUB_OFFLINE:
            raise ConfigError(f"{wanted} is not in the hub cache and HF_HUB_OFFLINE is set; {_OFFLINE_ADVICE}")
    try:
        siblings = HfApi().model_info(repo_id, revision=revision).siblings or []
        selected = select_files((sibling.rfilename for sibling in siblings), f"hub repository {wanted}")
        folder = Path(snapshot_download(repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=selected))
    except HFValidationError as error:
        raise ConfigError(f"{wanted!r} is no hub id: {error}") from error
    except _hub_errors() as error:
        raise ConfigError(_why(wanted, error)) from error
    if not is_complete(folder):
        raise ConfigError(f"hub repository {wanted} changed or is incomplete: {folder} lacks a weight shard; run again")
    return folder, folder.name


def _hub_errors() -> tuple[type[BaseException], ...]:
    """OSError and the errors of the HTTP client that this version of the library is built on."""
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__


def _cached(repo_id: str, revision: str | None, cache_dir: Path | None) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            repo_id, revision=revision, cache_dir=cache_dir, allow_patterns=["config.json"], local_files_only=True
        )
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ConfigError(f"{repo_id!r} is no hub id: {error}") from error
    return Path(found) if is_complete(Path(found)) else None


def _why(wanted: str, error: BaseException) -> str:
    """A sentence for a person instead of the hub client's page of text."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"hub repository {wanted} is gated: accept its terms and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"no hub repository {wanted} (or it is private and HF_TOKEN is not set)"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub repository exists, but not the revision: {wanted}"
    return f"cannot get {wanted} from the hub ({type(error).__name__}: {str(error)[:200]}); {_OFFLINE_ADVICE}"


def fetch_from_store(uri: str, cache_dir: Path) -> Path:
    """Copy a checkpoint folder from an object store to this node's disk, once.

    The copy's folder is named after the URI and the listing (names, sizes, etags), so a changed object makes a new copy
    and never mixes with the old one, which stays for whoever has it open. A lock lets one process of a node copy while
    the others wait; the copy gets its name by a rename when it is whole.
    Raises: ConfigError when the store cannot be read, holds no checkpoint there, or changes under the copy.
    """
    shown = without_query(uri)
    listing = _listing(uri, shown)
    selected = select_files(listing, shown)
    key = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    state = hashlib.sha256(json.dumps({name: listing[name] for name in selected}).encode()).hexdigest()[:16]
    target = cache_dir / f"{key}-{state}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with (cache_dir / f"{key}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.is_dir():
            return target
        partial = Path(tempfile.mkdtemp(prefix=f".{key}-", dir=cache_dir))
        try:
            _copy(uri, shown, {name: listing[name] for name in selected}, partial)
            if {name: _listing(uri, shown).get(name) for name in selected} != {
                name: listing[name] for name in selected
            }:
                raise ConfigError(f"{shown} changed while it was copied; run again when its upload is over")
            partial.chmod(0o755)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return target


def _listing(uri: str, shown: str) -> dict[str, list[str | int]]:
    """Name -> [size, etag or modification time] of the files directly under a URI."""
    filesystem, path = resolve_uri(uri)
    root = path.rstrip("/")
    try:
        entries = filesystem.ls(root, detail=True)
    except _store_errors() as error:
        raise ConfigError(
            f"cannot list {shown} ({type(error).__name__}); is it a folder that holds config.json?"
        ) from error
    found: dict[str, list[str | int]] = {}
    for entry in entries:
        if entry["type"] == "file":
            stamp = next(
                (str(entry[k]) for k in ("ETag", "etag", "LastModified", "mtime", "created") if k in entry), ""
            )
            found[os.path.basename(entry["name"])] = [int(entry["size"]), stamp]  # noqa: PTH119 - a key, not a path
    return found


def _copy(uri: str, shown: str, listing: dict[str, list[str | int]], target: Path) -> None:
    filesystem, path = resolve_uri(uri)
    for name, (size, _) in listing.items():
        local = target / name
        try:
            filesystem.get_file(f"{path.rstrip('/')}/{name}", str(local))
        except _store_errors() as error:
            raise ConfigError(
                f"cannot copy {name} from {shown} ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        if local.stat().st_size != size:
            raise ConfigError(
                f"{name} from {shown} has {local.stat().st_size} bytes where {size} are listed; run again"
            )


def _store_errors() -> tuple[type[BaseException], ...]:
    """What stores raise when they cannot be read: OSError, and botocore's own for credentials and endpoints."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError)
