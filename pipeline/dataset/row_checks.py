"""Checks of manifest rows while planning: where the audio is, the language, and values that cannot name a folder."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import AUTO_LANGUAGE, JobConfig, primary_language
from pipeline.config.columns import optional_names
from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.parts import NULL_PARTITION, partition_folder
from pipeline.errors import ConfigError, Reason, Reject, RejectedRow, Stage, did_you_mean
from pipeline.manifest.read import conform, unify
from pipeline.schema import passthrough_name, rename_passthrough
from pipeline.storage.access import AudioRoots

_LONGEST_PARTITION_BYTES = 200
"""Maximum length of one `column=value` folder name; file systems allow 255."""


def check_rows(
    config: JobConfig, rows: pa.Table, *, version: int, roots: AudioRoots, known: set[str]
) -> tuple[pa.Table, dict[int, Reject]]:
    """Set the language of each row, and reject rows that may not be opened, have no model, or cannot name a folder.

    Args:
        version: of the dataset's columns, after which pass-through columns are named.
        known: languages that have an emotion model.
    Returns: the rows, and the rejects by position, as `Staging.read` expects them.
    """
    rows = rename_passthrough(rows, version, optional_names(config))
    if config.language == AUTO_LANGUAGE:
        languages = rows["language"]
    elif config.language is not None:
        languages = pa.array([config.language] * rows.num_rows, pa.string())
    else:
        languages = pc.fill_null(rows["language"], "en")
    rows = rows.set_column(rows.schema.get_field_index("language"), rows.schema.field("language"), languages)
    rejects: dict[int, Reject] = {}
    columns = [name for name in rows.schema.names if name.lower() in map(str.lower, config.partition_by)]
    checked = rows.select(list(dict.fromkeys(["audio", "language", *columns])))
    checked = conform(checked, unify([checked.schema]))
    for row, record in enumerate(checked.select(["audio", "language"]).to_pylist()):
        try:
            if record["audio"] is not None:
                roots.check(record["audio"])
            check_language(record["language"], known)
            check_partition_value({name: checked[name][row] for name in checked.column_names if name in columns})
        except RejectedRow as error:
            rejects[row] = error.reject
    return rows, rejects


def check_language(tag: str | None, known: set[str]) -> None:
    """Check that a language has an emotion model. Raises: RejectedRow UNSUPPORTED_LANGUAGE."""
    if tag is not None and primary_language(tag) not in known:
        detail = (
            f"no emotion model is known for language {tag!r}; name one with --emotion-model {primary_language(tag)}=X"
        )
        raise RejectedRow(Reason.UNSUPPORTED_LANGUAGE, detail, Stage.MANIFEST)


def check_partition_value(values: Mapping[str, pa.Scalar]) -> None:
    """Check that values of partition columns, by column name, can name a folder. Raises: RejectedRow BAD_FIELD."""
    for column, scalar in values.items():
        try:
            value = scalar.as_py()
        except (OverflowError, ValueError):  # such as a time after the year 9999
            detail = f"column {column!r} holds a {scalar.type} value that cannot be a folder name"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.MANIFEST) from None
        if value == NULL_PARTITION:
            raise RejectedRow(
                Reason.BAD_FIELD,
                f"column {column!r} holds {NULL_PARTITION}, which readers treat as null",
                Stage.MANIFEST,
            )
        if len(partition_folder([column], [value]).encode()) > _LONGEST_PARTITION_BYTES:
            detail = f"column {column!r} gives a folder name of more than {_LONGEST_PARTITION_BYTES} bytes"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.MANIFEST)


def check_partition_columns(config: JobConfig, extra: pa.Schema) -> None:
    """Check that the columns of `--partition-by` can name folders.

    Args:
        extra: pass-through columns of the manifests.
    Raises: ConfigError naming the column.
    """
    for column in config.partition_by:
        if column == "language":
            if config.language == AUTO_LANGUAGE:
                raise ConfigError("--partition-by language: a detected language is a model's output")
            continue
        if column not in extra.names:
            renamed = passthrough_name(column, SCHEMA_VERSION)
            hint = f"; the manifest's {column!r} is written as {renamed!r}" if renamed in extra.names else ""
            hint = hint or did_you_mean(column, [*extra.names, "language"])
            raise ConfigError(f"--partition-by {column}: no manifest has this column{hint}")
        if pa.types.is_nested(extra.field(column).type):
            raise ConfigError(
                f"--partition-by {column}: a {extra.field(column).type} column cannot be used as folder names"
            )


def check_turns_column(config: JobConfig, extra: pa.Schema) -> None:
    """Check that the column of `--turns` can hold turns.

    Args:
        extra: pass-through columns of the manifests.
    Raises: ConfigError naming the column.
    """
    column = config.turns
    if column is None:
        return
    if column not in extra.names:
        raise ConfigError(f"--turns {column}: no manifest has this column{did_you_mean(column, extra.names)}")
    if column in config.partition_by:
        raise ConfigError(f"--partition-by {column}: the output does not have the column of --turns")
    kind = extra.field(column).type
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or is_list_of_structs(kind)):
        raise ConfigError(
            f"--turns {column}: the column is {kind}, not URIs of RTTM files or lists of objects with start_s and end_s"
        )


def is_list_of_structs(kind: pa.DataType) -> bool:
    """Return whether a type is a list of objects, or one whose lists are all empty."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    return bool(pa.types.is_struct(kind.value_type) or pa.types.is_null(kind.value_type))
