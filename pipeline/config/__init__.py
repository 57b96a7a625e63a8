"""Job configuration: one frozen, validated model filled from command-line options and a file."""

from pipeline.config.file import load_config, read_temperatures
from pipeline.config.job import (
    ANY_LANGUAGE,
    AUTO_LANGUAGE,
    MODEL_OPTIONS,
    RENAMED,
    JobConfig,
    ModelChoice,
    primary_language,
    require_precision,
    validated,
)
from pipeline.config.option import Option

__all__ = [
    "ANY_LANGUAGE",
    "AUTO_LANGUAGE",
    "MODEL_OPTIONS",
    "RENAMED",
    "JobConfig",
    "ModelChoice",
    "Option",
    "load_config",
    "primary_language",
    "read_temperatures",
    "require_precision",
    "validated",
]
