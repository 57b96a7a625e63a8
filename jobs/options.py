"""Command-line options generated from the fields of a configuration model, so that each is defined only once."""

from __future__ import annotations

import argparse
import types
from collections.abc import Collection, Mapping
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from pipeline.config import RENAMED, ModelChoice, Option

_TITLES = {"models": "X is a hub id, id@revision, local directory or object-store URI"}


def add_options(
    parser: argparse.ArgumentParser, model: type[ModelChoice], *, only: Collection[str] | None = None
) -> dict[str, Any]:
    """Add an option for each field of `model` that carries an `Option`. Return the argument groups by name."""
    groups: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        option = next((each for each in field.metadata if isinstance(each, Option)), None)
        if option is None or (only is not None and name not in only):
            continue
        if option.group not in groups:
            groups[option.group] = parser.add_argument_group(option.group, _TITLES.get(option.group))
        former = [old for old, new in RENAMED.items() if new == name]
        flags = ["--" + each.replace("_", "-") for each in (name, *former)]
        groups[option.group].add_argument(*flags, dest=name, **_arguments(field, option))
    return groups


def _arguments(field: FieldInfo, option: Option) -> dict[str, Any]:
    """Return the arguments of `add_argument` for a field. The model's own validators parse texts."""
    kind = _without_none(field.annotation)
    if kind is bool:
        return {"action": "store_true", "help": option.help}
    found: dict[str, Any] = {"help": option.help + _default(field, option)}
    choices = _choices(kind)
    if choices:
        found["choices"] = choices
    elif kind in (int, float):
        found["type"] = kind
    elif (
        (option.metavar in ("URI", "PREFIX", "RUN") or _is_by_language(option))
        and get_origin(kind) is not None
        and _is_many(kind, option)
    ):
        found |= {"nargs": "+", "action": "extend"}
    return found | ({"metavar": option.metavar} if option.metavar else {})


def _is_many(kind: object, option: Option) -> bool:
    return get_origin(kind) is tuple or _is_by_language(option)


def _is_by_language(option: Option) -> bool:
    return (option.metavar or "").startswith(("[LANG=]", "NAME["))


def _without_none(annotation: object) -> object:
    if get_origin(annotation) in (Union, types.UnionType):
        kinds = [each for each in get_args(annotation) if each is not type(None)]
        return kinds[0] if len(kinds) == 1 else annotation
    return annotation


def _choices(kind: object) -> list[str]:
    """Return the values that a `Literal` or a union of literals allows, `auto` first."""
    if get_origin(kind) is Literal:
        return list(get_args(kind))
    if get_origin(kind) in (Union, types.UnionType):
        found = [text for each in get_args(kind) for text in _choices(each)]
        return sorted(found, key=lambda text: text != "auto")
    return []


def _default(field: FieldInfo, option: Option) -> str:
    default = field.default
    if default in (None, PydanticUndefined, (), "") or isinstance(default, Mapping) or "(default" in option.help:
        return ""
    return f" (default: {default:g})" if isinstance(default, float) else f" (default: {default})"
