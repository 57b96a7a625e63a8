"""SQL over the emotion vocabulary, which several analyses share."""

from __future__ import annotations

from pipeline.schema import EMOTIONS

COUNT = "count(*) FILTER ({})::BIGINT"
"""SQL that counts the rows for which a condition is true."""


def per_emotion(expression: str) -> str:
    """Return an SQL struct over the vocabulary; `$` in `expression` is replaced by the emotion."""
    return "{" + ", ".join(f"{emotion}: {expression.replace('$', emotion)}" for emotion in EMOTIONS) + "}"


def transitions(earlier: str) -> str:
    """Return an SQL struct that counts rows by the emotion in the column `earlier`, then by `emotion`."""
    to_each = per_emotion(COUNT.format(f"emotion = '$' AND {earlier} = '€'"))
    return per_emotion(to_each.replace("€", "$"))
