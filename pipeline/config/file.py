"""Configuration files: job options in YAML or TOML, and calibration files."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping

import yaml

from pipeline.config.job import JobConfig
from pipeline.config.models import RENAMED, validated
from pipeline.errors import ConfigError, did_you_mean


def load_config(file: str | None, flags: Mapping[str, object]) -> JobConfig:
    """Merge a YAML or TOML file with command-line flags and validate the result. Flags override the file.

    Raises: ConfigError naming the key, the problem and the nearest known key.
    """
    merged = {**(_flatten(_read_file(file), file) if file else {}), **flags}
    if isinstance(calibration := merged.get("calibration"), str):
        merged["calibration"] = _temperatures(calibration)
    return validated(JobConfig, merged)


def _temperatures(file: str) -> dict[str, float]:
    try:
        return read_temperatures(file)
    except ValueError as error:
        raise ConfigError(f"--calibration: {error}") from error


def read_temperatures(file: str) -> dict[str, float]:
    """Read the temperature of each model fingerprint from a calibration file. Raises: ValueError for a bad file."""
    # imported late: few jobs need it, and the import takes half a second
    from pipeline.storage.store import read_text

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
        found = {str(model): float(entry["temperature"]) for model, entry in document["models"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is no calibration as jobs.evaluate --fit-calibration writes it") from error
    if not found or not all(math.isfinite(temperature) and temperature > 0 for temperature in found.values()):
        raise ValueError(f"{file} holds no temperatures, or such as are not above 0")
    return found


def _read_file(file: str) -> Mapping[str, object]:
    from pipeline.storage.store import read_text

    try:
        content = read_text(file)
        parsed = tomllib.loads(content) if file.lower().endswith(".toml") else yaml.safe_load(content)
    except ConfigError as error:
        raise ConfigError(f"--config: {error}") from error
    except (yaml.YAMLError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"--config {file}: {error}") from error
    if not isinstance(parsed, Mapping):
        raise ConfigError(f"--config {file}: expected a mapping of options, found {type(parsed).__name__}")
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
