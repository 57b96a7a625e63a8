"""Checks that reject a manifest row while planning: a language without a model, a value that cannot name a folder."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from pipeline.config import primary_language
from pipeline.dataset.parts import NULL_PARTITION, partition_folder
from pipeline.errors import Reason, RejectedRow, Stage

_LONGEST_PARTITION_BYTES = 200
"""Maximum length of one `column=value` folder name; file systems allow 255."""


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
            detail = f"column {column!r} holds a {scalar.type} that no folder can be named after"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.MANIFEST) from None
        if value == NULL_PARTITION:
            raise RejectedRow(
                Reason.BAD_FIELD,
                f"column {column!r} holds {NULL_PARTITION}, which readers take for null",
                Stage.MANIFEST,
            )
        if len(partition_folder([column], [value]).encode()) > _LONGEST_PARTITION_BYTES:
            detail = f"column {column!r} names a folder of more than {_LONGEST_PARTITION_BYTES} bytes"
            raise RejectedRow(Reason.BAD_FIELD, detail, Stage.MANIFEST)
