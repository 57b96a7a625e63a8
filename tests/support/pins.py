"""Short forms of roles, pins and settings for tests."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import load_config
from pipeline.config.settings import Settings
from pipeline.pins import ModelPin, Role


def by_role(models: Mapping[str, str]) -> dict[Role, str]:
    """Return `{"fusion/en": spec}` with typed keys."""
    return {Role.parse(role): spec for role, spec in models.items()}


def named(models: Mapping[Role, str]) -> dict[str, str]:
    """Return the keys as text again, for comparing with a literal."""
    return {str(role): spec for role, spec in models.items()}


def pins(**sizes_or_hashes: float | str) -> dict[Role, ModelPin]:
    """Return pins of `fusion_en=...`: a number is the model's size in bytes, a text its sha256."""
    found = {}
    for name, value in sizes_or_hashes.items():
        task, _, language = name.rpartition("_")
        sha256, size_bytes = ("0" * 64, value) if not isinstance(value, str) else (value, 1)
        found[Role.parse(f"{task}/{language}")] = ModelPin("m", None, sha256, size_bytes)
    return found


def job_settings(precision: str = "fp32", asr_compute_type: str = "float32", **flags: object) -> Settings:
    """Return the settings of a job with these options."""
    config = load_config(None, {"manifest": ["m"], "output": "o", **flags})
    return config.settings(precision=precision, asr_compute_type=asr_compute_type)
