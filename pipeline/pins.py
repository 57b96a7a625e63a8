"""Model roles and pins: the model of each role, and the exact files that were used.

A plan records a `ModelPin` for each `Role`. Their JSON forms are part of `plan.json`, receipts and reports.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Task(StrEnum):
    """Task of a model. The values are those used in `plan.json`."""

    EMOTION = "fusion"
    SENTENCE_ENCODER = "sentence_encoder"
    ASR = "asr"
    SPEAKER = "speaker"


@dataclass(frozen=True, slots=True, order=True)
class Role:
    """A task in one language.

    Attributes:
        language: a primary BCP-47 tag such as `en`.
        name: name of a further emotion model (`--also`); empty for the dataset's own.
    """

    task: Task
    language: str
    name: str = ""

    def __str__(self) -> str:
        """Return the form used in JSON and messages: `fusion/en`, and `fusion/en/NAME` of a further model."""
        return f"{self.task}/{self.language}" + (f"/{self.name}" if self.name else "")

    @classmethod
    def parse(cls, text: str) -> Role:
        """Parse the form returned by `str`. Raises: ValueError for any other text."""
        task, _, rest = text.partition("/")
        language, slash, name = rest.partition("/")
        if not language or (slash and not name):
            raise ValueError(f"{text!r} is not a role such as fusion/en")
        return cls(Task(task), language, name)


@dataclass(frozen=True, slots=True)
class ModelPin:
    """The exact files of one model.

    Attributes:
        spec: model id: a hub id, a directory or an object-store URI.
        revision: the commit that a hub id resolved to; None for other models.
        sha256: hash of the model's files.
        size_bytes: total size of those files.
        location: URI of the prepared copy; None when the model was not prepared.
        mode: mode of a further emotion model, which may differ from the dataset's; None for other models.
        source_sha256: hash of the published files, for a Whisper that each node converts to the files of `sha256`.
    """

    spec: str
    revision: str | None
    sha256: str
    size_bytes: int
    location: str | None = None
    mode: str | None = None
    source_sha256: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON form."""
        fields = {"spec": self.spec, "revision": self.revision, "sha256": self.sha256, "bytes": self.size_bytes}
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        return {**fields, **{name: value for name, value in optional.items() if value}}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> ModelPin:
        """Read the JSON form.

        Raises: KeyError, TypeError or ValueError when a field is missing, unknown or of the wrong type.
        """
        fields = dict(document)
        pin = cls(fields.pop("spec"), fields.pop("revision"), fields.pop("sha256"), fields.pop("bytes"))
        given = [fields.pop(name, None) for name in _OPTIONAL]
        if fields:
            raise ValueError(f"unknown fields of a model: {', '.join(sorted(fields))}")
        if not (isinstance(pin.spec, str) and isinstance(pin.sha256, str) and isinstance(pin.size_bytes, int)):
            raise TypeError("a model's spec and sha256 are text, its bytes a number")
        optional = [None if value is None else str(value) for value in given]
        return cls(pin.spec, pin.revision, pin.sha256, pin.size_bytes, *optional)


_OPTIONAL = ("location", "mode", "source_sha256")
"""Fields that the JSON form has only where they are set, in the order of the class."""

Pins = Mapping[Role, ModelPin]
"""The models of a plan."""


def pins_document(pins: Pins) -> dict[str, dict[str, Any]]:
    """Return the JSON form of a plan's models."""
    return {str(role): pin.document() for role, pin in pins.items()}


def pins_of(document: Mapping[str, Any]) -> dict[Role, ModelPin]:
    """Read the JSON form of a plan's models. Raises: KeyError, TypeError or ValueError."""
    return {Role.parse(role): ModelPin.of(pin) for role, pin in document.items()}


def further_names(roles: Iterable[Role], language: str) -> list[str]:
    """Return the names of the further emotion models of a language, sorted."""
    return sorted(role.name for role in roles if role.name and role.language == language)


def languages(roles: Iterable[Role], task: Task = Task.EMOTION) -> list[str]:
    """Return the languages that have a model for the task, in the order of `roles`; further models do not count."""
    return [role.language for role in roles if role.task is task and not role.name]
