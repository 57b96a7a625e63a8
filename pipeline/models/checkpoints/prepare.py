"""Preparation of a model folder: resolve, convert, check as a job would, store, lock.

A model in the folder's newest lock stays as locked, even if its branch has moved since, and costs one listing. A new
one costs its download to this machine's hub cache, memory and temporary disk space for a conversion if it needs one,
and its upload. Files stored before an interruption are not stored again.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from pipeline.errors import ConfigError, JobError
from pipeline.models import roles
from pipeline.models.checkpoints import convert, onnx, weights
from pipeline.models.checkpoints.hub import file_sha256, model_card, select_files
from pipeline.models.checkpoints.lock import Lock, LockedFile, LockedModel, Prepared, read_prepared, write_lock
from pipeline.models.checkpoints.published import ASR_MODELS
from pipeline.models.checkpoints.weights import Checkpoint
from pipeline.pins import Role, Task
from pipeline.storage.store import Store, open_store, require_conditional_writes
from pipeline.storage.temporary import temporary_folder

Tell = Callable[[str, str, LockedModel], None]


def prepare(uri: str, chosen: Mapping[str, Mapping[Role, str]], *, update: bool, tell: Tell) -> tuple[Prepared, bool]:
    """Add these models to the folder at `uri`.

    Args:
        chosen: mode -> role -> model id.
        update: whether to resolve the branches of locked models again.
        tell: called for each model with "kept", "stored" or "there already", the model id, and its entry in the lock.
    Returns: the folder, and whether its lock is new.
    Raises: ConfigError, OSError, JobError. No lock is written then, and the same call resumes.
    """
    store, held = open_store(uri), read_prepared(uri)
    if held is None:
        require_conditional_writes(store, "locks/_probe")  # before gigabytes are fetched for an unsuitable folder
    with temporary_folder("models-") as folder:
        work = _Preparation(store, held, update, tell, folder)
        for mode, used in chosen.items():
            for language in sorted({role.language for role in used}):
                work.add(mode, {role: spec for role, spec in used.items() if role.language == language})
        slots = {mode: {str(role): spec for role, spec in used.items()} for mode, used in chosen.items()}
        prepared = write_lock(store, Lock(slots=slots, models=work.done))
    return prepared, held is None or prepared.number != held.number


@dataclass
class _Preparation:
    """One run over a folder.

    `done` is the contents of the new lock; `here` the local files of models that are not stored yet or still needed.
    """

    store: Store
    held: Prepared | None
    update: bool
    tell: Tell
    work: Path
    done: dict[str, LockedModel] = field(default_factory=dict)
    here: dict[str, Checkpoint] = field(default_factory=dict)

    def add(self, mode: str, used: Mapping[Role, str]) -> None:
        """Prepare the models of one language in one mode."""
        fresh: dict[str, LockedModel] = {}
        for role, spec in used.items():
            if spec in self.done:
                continue
            if (kept := self._kept(spec)) is not None:
                self.done[spec] = kept
                self.tell("kept", spec, kept)
            else:
                self.here[spec], fresh[spec] = self._make_ready(role, spec)
        before = self.held.lock.slots.get(mode, {}) if self.held else {}
        if fresh or any(before.get(str(role)) != spec for role, spec in used.items()):
            roles.pin(used, mode, self._find)  # the checks a job makes before it starts
        for spec, model in fresh.items():
            self.tell("stored" if self._store(spec, model) else "there already", spec, model)
            self.done[spec] = model
        for role, spec in used.items():
            if role.task is Task.EMOTION and spec in self.here:  # gigabytes that no other check needs
                shutil.rmtree(self._room(spec), ignore_errors=True)
                del self.here[spec]

    def _kept(self, spec: str) -> LockedModel | None:
        """Return a model's entry in the lock, unless it is to be resolved again or its files are missing."""
        model = self.held.lock.models.get(spec) if self.held and not self.update else None
        if model is None:
            return None
        sizes_in_store = {found.key: found.size_bytes for found in self.store.list(model.folder)}
        sizes = {f"{model.folder}/{name}": file.bytes for name, file in model.files.items()}
        for key, size in sizes.items():
            if sizes_in_store.get(key, size) != size:
                raise self._other_content(key)
        return model if sizes.keys() <= sizes_in_store.keys() else None

    def _room(self, spec: str) -> Path:
        return self.work / hashlib.sha256(spec.encode()).hexdigest()[:16]

    def _find(self, spec: str) -> Checkpoint | None:
        if spec in self.here:
            return self.here[spec]
        return self.held.checkpoint(spec) if self.held else None

    def _make_ready(self, role: Role, spec: str) -> tuple[Checkpoint, LockedModel]:
        """Fetch one model and convert it if necessary."""
        locked = self.held.lock.models.get(spec) if self.held and not self.update else None
        pinned = f"{spec.partition('@')[0]}@{locked.revision}" if locked and locked.revision else spec
        try:
            source = weights.resolve(pinned)
            ready, converted = _converted(source, role.task, self._room(spec))
            repository = _repository(source)
            card = model_card(repository, str(source.revision)) if repository else source.directory / "README.md"
        except ConfigError as error:
            raise ConfigError(f"{roles.option(role, spec)}: {error}") from error
        return replace(ready, spec=spec, revision=source.revision), LockedModel(
            repository=repository,
            revision=source.revision,
            licence=_licence(card),
            converted=tuple(converted),
            folder=f"{_stem(repository or spec)}-{ready.sha256[:16]}",
            sha256=ready.sha256,
            files={
                name: LockedFile(sha256=file_sha256(path), bytes=path.stat().st_size)
                for name in _names(ready)
                for path in (ready.directory / name,)
            },
        )

    def _store(self, spec: str, model: LockedModel) -> bool:
        """Store missing files; return whether there were any. Raises: JobError when a stored file has other content."""
        there = {found.key for found in self.store.list(model.folder)}
        put = False
        for name, locked in model.files.items():
            key = f"{model.folder}/{name}"
            path = self.here[spec].directory / name
            if key not in there and self.store.put_if_absent(key, path.read_bytes()):
                put = True
            elif hashlib.sha256(self.store.read(key)).hexdigest() != locked.sha256:
                raise self._other_content(key)
        return put

    def _other_content(self, key: str) -> JobError:
        return JobError(f"{self.store.root}/{key} is not the expected file; delete it and run the same command again")


def _converted(source: Checkpoint, task: Task, work: Path) -> tuple[Checkpoint, list[str]]:
    """Return the checkpoint in the form a job loads, and the conversions made."""
    if onnx.is_onnx(source.spec):
        return source, []
    done: list[str] = []
    whisper = task is Task.ASR and convert.is_transformers_whisper(source)
    if (task is not Task.ASR or whisper) and convert.is_pickled(source):
        source = convert.to_safetensors(source, work / "safetensors")
        done.append(f"pickle to safetensors ({convert.versions('torch', 'safetensors')})")
    if whisper:
        source = convert.to_ctranslate2(source, work / "ctranslate2")
        done.append(f"Hugging Face Whisper to CTranslate2 float16 ({convert.versions('ctranslate2', 'transformers')})")
    return source, done


def _names(checkpoint: Checkpoint) -> list[str]:
    names = [path.relative_to(checkpoint.directory).as_posix() for path in weights.files_of(checkpoint)]
    return names if onnx.is_onnx(checkpoint.spec) else select_files(names, checkpoint.spec)


def _repository(source: Checkpoint) -> str | None:
    name = source.spec.partition("@")[0]
    return ASR_MODELS.get(name, name) if source.revision else None


def _licence(card: Path | None) -> str | None:
    """Return the licence in the card's front matter: `apache-2.0`, or `other (name, link)`; None when it has none."""
    from huggingface_hub.repocard import metadata_load

    if card is None or not card.is_file():
        return None
    try:
        stated = metadata_load(card) or {}
    except (ValueError, yaml.YAMLError):
        return None
    licence = stated.get("license")
    if not licence:
        return None
    more = ", ".join(str(stated[key]) for key in ("license_name", "license_link") if stated.get(key))
    named = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
    return f"{named} ({more})" if more else named


def _stem(name: str) -> str:
    """Return a readable folder name for a model: `UMUTeam--roberta-emotion-en`, or a path's last step."""
    stem = name.removeprefix(onnx.PREFIX).partition("@")[0].rstrip("/")
    stem = stem.rsplit("/", 1)[-1] if stem.startswith((".", "/", "~")) or "://" in stem else stem.replace("/", "--")
    return re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip(".-") or "model"
