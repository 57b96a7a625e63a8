"""A folder of prepared models and its lock, written by `jobs.prepare_models` and read by a job with `--models`.

    OUT/<name>-<sha256>/...     one model each, named by its content, written once
    OUT/locks/000001.json       the model of each role, and every file's sha256; the newest lock applies

No file in the folder is ever overwritten: a lock is put if absent after all its files, under the next number, so
readers see only complete models, and a job that started with an older lock continues with it. The folder refers to
nothing outside itself and can be copied as it is.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pipeline.errors import ConfigError, JobError
from pipeline.pins import Role, languages
from pipeline.redaction import without_query
from pipeline.storage.documents import create_json
from pipeline.storage.retry import TRANSIENT
from pipeline.storage.store import Store, open_store

if TYPE_CHECKING:
    from pipeline.models.checkpoints.weights import Checkpoint

_LOCK_KEY = re.compile(r"locks/(\d{6})\.json")
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][\w.-]*$")]
"""One step of a path, so that a lock cannot refer to anything outside its folder."""
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][\w.-]*(/[A-Za-z0-9_][\w.-]*)*$")]
"""Steps of a path, as above; only models for onnx-asr have folders."""


class LockedFile(BaseModel):
    """One file of a prepared model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Sha256
    bytes: int = Field(ge=0)


class LockedModel(BaseModel):
    """One prepared model.

    Attributes:
        repository: the hub repository it came from; None for one from a directory or an object store.
        revision: the repository's commit.
        licence: the licence its model card states; None if it states none.
        converted: conversions of the published files; empty when they are stored byte for byte.
        folder: the folder of its files, below the folder of the lock.
        sha256: `hub.content_sha256` of the files, which jobs compare.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    repository: str | None
    revision: str | None
    licence: str | None
    converted: tuple[str, ...] = ()
    folder: Name
    sha256: Sha256
    files: Mapping[FileName, LockedFile]

    @property
    def size_bytes(self) -> int:
        """Total size of all files."""
        return sum(file.bytes for file in self.files.values())


class Lock(BaseModel):
    """Contents of a prepared folder.

    Attributes:
        slots: mode -> role (`fusion/en`) -> the model id given when it was prepared.
        models: model id -> model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    slots: Mapping[str, Mapping[str, str]] = Field(default_factory=dict)
    models: Mapping[str, LockedModel] = Field(default_factory=dict)
    token: str = ""

    def merged(self, newer: Lock) -> Lock:
        """Return the union of both locks; `newer` has precedence. Models without a role are omitted."""
        slots = {
            mode: {**self.slots.get(mode, {}), **newer.slots.get(mode, {})} for mode in {**self.slots, **newer.slots}
        }
        used = {spec for chosen in slots.values() for spec in chosen.values()}
        models = {spec: model for spec, model in {**self.models, **newer.models}.items() if spec in used}
        return Lock(slots=slots, models=models)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prepared folder as a job reads it: `uri`, the number of the lock, the lock."""

    uri: str
    number: int
    lock: Lock

    def spec(self, mode: str, role: Role) -> str | None:
        """Return the prepared model id of a role, or None."""
        return self.lock.slots.get(mode, {}).get(str(role))

    def languages(self, mode: str) -> set[str]:
        """Return the languages that have an emotion model for the mode."""
        return set(languages(map(Role.parse, self.lock.slots.get(mode, {}))))

    def checkpoint(self, spec: str) -> Checkpoint | None:
        """Return a prepared model's files on this node, compared with the lock; None for a model id not in the lock.

        Raises: ConfigError when they are missing or differ.
        """
        from pipeline.models.checkpoints import onnx, weights

        locked = self.lock.models.get(spec)
        if locked is None:
            return None
        location = f"{self.uri}/{locked.folder}"
        try:
            found = weights.resolve(onnx.within(spec, location), expected_sha256=locked.sha256)
        except ConfigError as error:
            advice = f"python -m jobs.prepare_models --output {without_query(self.uri)} --verify names the broken files"
            raise ConfigError(f"{error}; {advice}") from error
        return replace(found, spec=spec, revision=locked.revision, location=location)


def read_prepared(uri: str) -> Prepared | None:
    """Read the newest lock below `uri`; return None when there is none.

    Raises: ConfigError when the folder or the lock cannot be read.
    """
    shown, uri = without_query(uri), uri.rstrip("/")
    store = open_store(uri)
    try:
        numbers = [int(m[1]) for found in store.list("locks") if (m := _LOCK_KEY.fullmatch(found.key))]
        if not numbers:
            return None
        key = lock_key(max(numbers))
        content = store.read(key)
    except (*TRANSIENT, JobError) as error:
        raise ConfigError(f"cannot read the prepared models in {shown}: {error}") from error
    try:
        return Prepared(uri, max(numbers), Lock.model_validate_json(content))
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        raise ConfigError(
            f"{shown}/{key} is not a lock file that this version can read: {where}: {fault['msg']}"
        ) from error


def write_lock(store: Store, lock: Lock) -> Prepared:
    """Merge `lock` into the folder's newest lock, unless it changes nothing; concurrent writers lose no entries.

    Call it when every file it names is in the store. Returns: the folder with its newest lock.
    """
    while True:
        current = read_prepared(store.root) or Prepared(store.root, 0, Lock())
        merged = current.lock.merged(lock)
        if current.number and (merged.slots, merged.models) == (current.lock.slots, current.lock.models):
            return current
        token = uuid.uuid4().hex
        merged = merged.model_copy(update={"token": token})
        number = current.number + 1
        if create_json(store, lock_key(number), merged.model_dump(mode="json"), mine=("token", token)):
            return Prepared(store.root, number, merged)


def lock_key(number: int) -> str:
    """Return the key of a lock below its folder."""
    return f"locks/{number:06d}.json"


def broken_files(store: Store, lock: Lock) -> list[str]:
    """Read every file of a prepared folder and list those that are missing or differ from the lock."""
    broken = []
    for model in lock.models.values():
        for name, locked in model.files.items():
            try:
                found = hashlib.sha256(store.read(f"{model.folder}/{name}")).hexdigest()
            except FileNotFoundError:
                found = "gone"
            if found != locked.sha256:
                broken.append(f"{model.folder}/{name}: {found if found == 'gone' else f'sha256 {found}'}")
    return broken
