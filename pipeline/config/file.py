"""Files of options: YAML, JSON or TOML, the reference toolkit's `model.json`, calibrations and label maps."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import yaml

from pipeline.config.job import JobConfig
from pipeline.config.labels import ANY_LANGUAGE, is_file, label_maps, split_language
from pipeline.config.models import RENAMED, validated
from pipeline.config.settings import Mode
from pipeline.errors import ConfigError, did_you_mean
from pipeline.redaction import without_query


def load_config(file: str | None, flags: Mapping[str, object]) -> JobConfig:
    """Merge a YAML, JSON or TOML file with command-line flags and validate the result. Flags override the file.

    The file may also be a `model.json` of the reference toolkit: language -> mode -> model id. Its models of the chosen mode
    become `emotion_model`.

    Raises: ConfigError naming the key, the problem and the nearest known key.
    """
    merged = {**(_options(file, flags) if file else {}), **flags}
    if isinstance(calibration := merged.get("calibration"), str):
        merged["calibration"] = _temperatures(calibration)
    if isinstance(maps := merged.get("label_map"), str | list | tuple):
        merged["label_map"] = _label_maps([maps] if isinstance(maps, str) else maps)
    return validated(JobConfig, merged)


def _options(file: str, flags: Mapping[str, object]) -> dict[str, object]:
    content = _read_file(file)
    if not _is_model_json(content):
        return _flatten(content, file)
    mode = flags.get("mode", JobConfig.model_fields["mode"].default)
    models = {language: by_mode[mode] for language, by_mode in content.items() if mode in by_mode}
    if not models:
        raise ConfigError(f"--config {file}: no language has a model for mode {mode}; choose another --mode")
    return {"emotion_model": models}


def _is_model_json(content: Mapping[str, Any]) -> bool:
    """Return whether every value maps modes to models; no option of a job has this form."""
    return bool(content) and all(
        isinstance(by_mode, Mapping) and by_mode and by_mode.keys() <= set(get_args(Mode))
        for by_mode in content.values()
    )


def _temperatures(file: str) -> dict[str, float]:
    try:
        return read_temperatures(file)
    except ValueError as error:
        raise ConfigError(f"--calibration: {error}") from error


def read_temperatures(file: str) -> dict[str, float]:
    """Read the temperature of each model fingerprint from a calibration file. Raises: ValueError for a bad file."""
    # imported late: few jobs need it, and the import takes half a second
    from pipeline.storage.fetch import read_text

    try:
        document = json.loads(read_text(file))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    try:
        if document["format"] != 1 or document["method"] != "temperature":
            raise ValueError(
                f"{file} holds format {document['format']!r}, method {document['method']!r}, not 1 and 'temperature'"
            )
        temperatures = {str(model): float(entry["temperature"]) for model, entry in document["models"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not a calibration file; jobs.evaluate --fit-calibration writes one") from error
    if not temperatures or not all(math.isfinite(each) and each > 0 for each in temperatures.values()):
        raise ValueError(f"{file}: every temperature must be a number above 0, and there must be at least one")
    return temperatures


def _label_maps(texts: Sequence[object]) -> dict[str, dict[str, str | None]]:
    """Read the maps of `--label-map` by language, from its texts and the files that they name. Raises: ConfigError."""
    maps: dict[str, dict[str, str | None]] = {}
    for text in texts:
        language, rest = split_language(str(text))
        try:
            given = label_maps(_read_file(rest.strip(), "--label-map")) if is_file(rest) else label_maps([str(text)])
        except ValueError as error:
            raise ConfigError(f"--label-map {without_query(rest)}: {error}") from error
        for given_for, own in given.items():
            tag = language if given_for == ANY_LANGUAGE else given_for
            if tag in maps:
                raise ConfigError(f"--label-map has two maps for {'every language' if tag == ANY_LANGUAGE else tag}")
            maps[tag] = own
    return maps


def _read_file(file: str, option: str = "--config") -> Mapping[str, Any]:
    from pipeline.storage.fetch import read_text

    subject = f"{option} {without_query(file)}"
    try:
        content = read_text(file)
        parsed = tomllib.loads(content) if file.lower().endswith(".toml") else yaml.safe_load(content)
    except ConfigError as error:
        raise ConfigError(f"{option}: {error}") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{subject}: {error}") from error
    if not isinstance(parsed, Mapping):
        expected = "options" if option == "--config" else "labels to emotions"
        raise ConfigError(f"{subject}: expected a mapping of {expected}, found {type(parsed).__name__}")
    return parsed


def _flatten(tree: Mapping[str, object], file: str | None, prefix: str = "") -> dict[str, object]:
    """Join nested keys with `_`: `asr: {model: X}` becomes `asr_model: X`.

    The languages below a model option remain a mapping.
    """
    flat: dict[str, object] = {}
    for key, value in tree.items():
        name = prefix + str(key).replace("-", "_")
        name = RENAMED.get(name, name)
        if name in JobConfig.model_fields:
            flat[name] = value
        elif isinstance(value, Mapping) and any(
            known.startswith(name + "_") for known in (*JobConfig.model_fields, *RENAMED)
        ):
            flat.update(_flatten(value, file, name + "_"))
        else:
            known = [known for known in JobConfig.model_fields if known.startswith(prefix)]
            raise ConfigError(f"--config {file}: unknown key {name!r}{did_you_mean(name, known)}")
    return flat
