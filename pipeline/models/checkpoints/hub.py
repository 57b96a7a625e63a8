"""Downloads of a checkpoint's files to this node's disk, from the Hugging Face hub or any object store.

Only the files that determine a model's results are fetched, once per node, and only one form of the weights. Costs
one small request to resolve a branch (none for a commit that is complete in the cache) and the download.
`pipeline.models.checkpoints.weights` reads the weights.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from pathlib import Path

from pipeline.errors import ConfigError
from pipeline.models.checkpoints.cache import made_once
from pipeline.redaction import without_query
from pipeline.storage.filesystem import resolve as resolve_uri
from pipeline.storage.retry import retried

_log = logging.getLogger(__name__)
Select = Callable[[Iterable[str], str], list[str]]
"""Function that chooses files of a folder by name. Its second argument names the folder in messages."""

SIDE_FILES = (
    "config.json",
    "generation_config.json",
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
"""Files besides weights that affect a score or a transcript. `vocabulary.*` is CTranslate2's."""

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.bin",
)
"""Weight files in order of preference. `model.bin` is CTranslate2's own format or, in some published repositories, a
pickle."""

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_OFFLINE_ADVICE = "a local directory or an object-store URI of the same files works without the hub"


def select_files(names: Iterable[str], where: str) -> list[str]:
    """Select the files of a checkpoint folder to fetch and hash: side files and one form of the weights.

    Raises: ConfigError when the config or the weights are missing.
    """
    present = set(names)
    if "config.json" not in present:
        raise ConfigError(f"{where} is not a checkpoint: config.json is missing")
    forms = [name for name in WEIGHTS if name in present]
    if not forms:
        raise ConfigError(f"{where} contains no weights; expected one of {', '.join(WEIGHTS)}")
    if len(forms) > 1:
        _log.warning("%s holds %s; only %s is used", where, " and ".join(forms), forms[0])
    selected = [name for name in SIDE_FILES if name in present] + [forms[0]]
    if forms[0].endswith(".index.json"):
        stem, suffix = forms[0].removesuffix(".index.json").rsplit(".", 1)
        shard = re.compile(rf"{re.escape(stem)}-\d+-of-\d+\.{suffix}")
        selected += sorted(name for name in present if shard.fullmatch(name))
    return selected


def is_complete(directory: Path) -> bool:
    """Return whether a directory contains a checkpoint's config and weights, including all shards."""
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


def content_sha256(directory: Path) -> str:
    """Hash names and contents of the files of `select_files`: equal means equal scores. Raises: ConfigError."""
    whole = hashlib.sha256()
    names = select_files((entry.name for entry in directory.iterdir() if entry.is_file()), str(directory))
    for name in sorted(names):
        whole.update(f"{name}\0{file_sha256(directory / name)}\n".encode())
    return whole.hexdigest()


def file_sha256(path: Path) -> str:
    """Return the sha256 of one file, read once per process: about 0.75 s a GB."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _file_sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch_from_hub(repo_id: str, revision: str | None, cache_dir: Path | None) -> tuple[Path, str]:
    """Download a repository into the hub cache; return its folder there and its commit.

    A revision that is a full commit and complete in the cache costs no request, nor does any revision under
    HF_HUB_OFFLINE=1. A branch or tag is always requested, never taken from the cache, unless the hub is offline.
    Raises: ConfigError that states what to do: unknown id or revision, no access, no network, nothing cached.
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
        raise ConfigError(f"{wanted!r} is not a hub id: {error}") from error
    except _hub_errors() as error:
        raise ConfigError(_why(wanted, error)) from error
    if not is_complete(folder):
        raise ConfigError(f"hub repository {wanted} changed or is incomplete: {folder} lacks a weight shard; run again")
    _refuse_damaged(folder, selected, wanted)
    return folder, folder.name


def _refuse_damaged(folder: Path, names: Iterable[str], wanted: str) -> None:
    """Compare large files with the sha256 that the hub states, which its client does not do; delete a damaged one.

    In the cache a file is a link to a blob named after its ETag: the sha256 for files in LFS or Xet, a git hash for
    the rest. Raises: ConfigError.
    """
    for path in (folder / name for name in names):
        stated = path.readlink().name if path.is_symlink() else ""
        if _SHA256.fullmatch(stated) and file_sha256(path) != stated:
            found = file_sha256(path)
            path.resolve().unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            raise ConfigError(
                f"{path.name} of hub repository {wanted} was downloaded with sha256 {found}, but the hub states {stated}; "
                "the file was removed: run again"
            )


def model_card(repo_id: str, commit: str) -> Path | None:
    """Return a repository's README.md at a commit, in the hub cache; None if it has none, or none is cached offline.

    Raises: ConfigError as `fetch_from_hub`.
    """
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(repo_id, "README.md", revision=commit))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        if constants.HF_HUB_OFFLINE:
            return None
        raise ConfigError(_why(f"the model card of {repo_id}", error)) from error
    except _hub_errors() as error:
        raise ConfigError(_why(f"the model card of {repo_id}", error)) from error


def _hub_errors() -> tuple[type[BaseException], ...]:
    """Return OSError and the HTTP errors of the client on which this version of the library is built."""
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
        raise ConfigError(f"{repo_id!r} is not a hub id: {error}") from error
    return Path(found) if is_complete(Path(found)) else None


def _why(wanted: str, error: BaseException) -> str:
    """Return one sentence for an error instead of the hub client's page of text."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, GatedRepoError):
        return f"hub repository {wanted} is gated: accept its terms and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return f"the hub repository {wanted} does not exist, or it is private and HF_TOKEN is not set"
    if isinstance(error, RevisionNotFoundError):
        return f"the hub repository exists, but the revision does not: {wanted}"
    if isinstance(error, OSError) and error.errno in _NO_ROOM:
        return f"the disk is too full for {wanted} ({error}); free some space, or set HF_HOME to a larger disk, and run again"
    return f"cannot download {wanted} from the hub ({type(error).__name__}: {str(error)[:200]}); {_OFFLINE_ADVICE}"


def fetch_from_store(
    uri: str,
    cache_dir: Path,
    *,
    expected_sha256: str | None = None,
    select: Select = select_files,
    sha256_of: Callable[[Path], str] = content_sha256,
) -> Path:
    """Copy a checkpoint folder from an object store to this node's disk, once.

    The copy's folder is named after the URI and the listing (names, sizes, etags), so a changed object makes a new
    copy and never mixes with the old one, which remains for processes that use it.

    Args:
        expected_sha256: the required hash; a copy with another is discarded.
        select: chooses the files from the names of all; other than by default, also from those in folders below.
        sha256_of: returns the hash of a folder.
    Raises: ConfigError when the store cannot be read, contains no checkpoint or another one, or changes during the
        copy.
    """
    shown = without_query(uri)
    below = select is not select_files
    listing = _listing(uri, shown, below=below)
    selected = select(listing, shown)
    key = hashlib.sha256(uri.rstrip("/").encode()).hexdigest()[:16]
    state = hashlib.sha256(json.dumps({name: listing[name] for name in selected}).encode()).hexdigest()[:16]

    def copy(folder: Path) -> Path:
        _copy(uri, shown, {name: listing[name] for name in selected}, folder)
        again = _listing(uri, shown, below=below)
        if {name: again.get(name) for name in selected} != {name: listing[name] for name in selected}:
            raise ConfigError(f"{shown} changed while it was copied; run again when its upload has finished")
        refuse_other_files(shown, folder, expected_sha256, sha256_of)
        return folder

    return made_once(cache_dir, key, state, copy)


def refuse_other_files(
    shown: str,
    directory: Path,
    expected_sha256: str | None,
    sha256_of: Callable[[Path], str] = content_sha256,
) -> str:
    """Return the hash of a directory's files. Raises: ConfigError when it differs from the expected one."""
    found = sha256_of(directory)
    if expected_sha256 not in (None, found):
        raise ConfigError(
            f"model {shown} at {directory} has sha256 {found}, expected {expected_sha256}: "
            "the files differ from those the job was started with"
        )
    return found


def _listing(uri: str, shown: str, *, below: bool) -> dict[str, list[str | int]]:
    """Map the relative name of each file under a URI to [size, etag or modification time].

    Args:
        below: whether to list files in folders below it too.
    """
    filesystem, path = resolve_uri(uri)
    root = path.rstrip("/")
    try:
        entries = filesystem.find(root, detail=True).values() if below else filesystem.ls(root, detail=True)
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
            found[entry["name"].removeprefix(root).lstrip("/")] = [int(entry["size"]), stamp]
    return found


def _copy(uri: str, shown: str, listing: dict[str, list[str | int]], target: Path) -> None:
    filesystem, path = resolve_uri(uri)
    for name, (size, _) in listing.items():
        local = target / name
        local.parent.mkdir(parents=True, exist_ok=True)
        get = partial(filesystem.get_file, f"{path.rstrip('/')}/{name}", str(local))
        try:
            retried(get, what=f"reading {shown}/{name}")
        except _store_errors() as error:
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                raise ConfigError(
                    f"the disk is too full for {name} of {shown} in {target.parent}; set XDG_CACHE_HOME to a larger disk"
                ) from error
            raise ConfigError(
                f"cannot copy {name} from {shown} ({type(error).__name__}: {str(error)[:200]})"
            ) from error
        if local.stat().st_size != size:
            raise ConfigError(f"{name} from {shown} has {local.stat().st_size} bytes, but {size} are listed; run again")


def _store_errors() -> tuple[type[BaseException], ...]:
    """Return the errors raised for unreadable stores: OSError, and botocore's for credentials and endpoints."""
    try:
        from botocore.exceptions import BotoCoreError
    except ImportError:
        return (OSError,)
    return (OSError, BotoCoreError)
