"""Job configuration: one frozen, validated model filled from command-line options and a file."""

from pipeline.config.file import load_config, read_temperatures
from pipeline.config.job import JobConfig, LogFormat
from pipeline.config.labels import ANY_LANGUAGE
from pipeline.config.models import (
    AUTO_LANGUAGE,
    MODEL_OPTIONS,
    RENAMED,
    ModelChoice,
    primary_language,
    validated,
)
from pipeline.config.option import Option
from pipeline.config.settings import require_precision

__all__ = [
    "ANY_LANGUAGE",
    "AUTO_LANGUAGE",
    "MODEL_OPTIONS",
    "RENAMED",
    "JobConfig",
    "LogFormat",
    "ModelChoice",
    "Option",
    "load_config",
    "primary_language",
    "read_temperatures",
    "require_precision",
    "validated",
]
