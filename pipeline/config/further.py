"""Further emotion models of a dataset (`--also`): their names, and the column with their results, `by_model`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import DIMENSIONS, EMOTIONS, Column

BY_MODEL = "by_model"
"""Column with a struct of `FIELDS` for each further model, by its name."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,39}")
FIELDS = (
    pa.field("label", pa.string()),
    pa.field("label_scores", pa.map_(pa.string(), pa.float32())),
    pa.field("labels", pa.list_(pa.string())),
    pa.field("emotion", pa.string()),
    pa.field("emotion_null_reason", pa.string()),
    pa.field("abstained", pa.bool_()),
    pa.field("confidence", pa.float32()),
    pa.field("margin", pa.float32()),
    pa.field("scores", pa.struct([pa.field(emotion, pa.float32()) for emotion in EMOTIONS])),
    *(pa.field(name, pa.float32()) for name in DIMENSIONS),
    pa.field("truncated", pa.bool_()),
    pa.field("model", pa.string()),
)
"""Results of one further model, each as the column of its name."""
DESCRIPTION = Column(
    "",
    "results of the further models of `--also`: a struct for each name, with the fields "
    + ", ".join(f"`{field.name}`" for field in FIELDS)
    + ", each as the column of its name",
    "never; column absent without `--also`",
)


def with_further(schema: pa.Schema, names: Sequence[str]) -> pa.Schema:
    """Return a schema of the output with the results of further models after `dominance`."""
    if not names:
        return schema
    kind = pa.struct([pa.field(name, pa.struct(FIELDS)) for name in names])
    field = pa.field(BY_MODEL, kind, metadata={"description": DESCRIPTION.description})
    return schema.insert(schema.get_field_index(DIMENSIONS[-1]) + 1, field)


def further_results(rows: pa.Table, name: str) -> pa.Table:
    """Return the results of one further model as columns of their names, beside `language`."""
    struct = rows[BY_MODEL].combine_chunks().field(name)
    columns = {field.name: pc.struct_field(struct, [field.name]) for field in FIELDS}
    return pa.table({"language": rows["language"], **columns}).combine_chunks()


def further_models(value: object) -> dict[str, dict[str, str]]:
    """Return the further models by name, then by language, `*` for every language.

    Args:
        value: texts `NAME[:LANG]=X`, or a mapping of `NAME[:LANG]` to X, or of names to mappings of languages.
    Raises: ValueError for a name that is not an identifier, names that differ in case alone, or two models for one.
    """
    models: dict[str, dict[str, str]] = {}
    for key, spec in _pairs(value):
        name, _, language = (part.strip() for part in key.partition(":"))
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name of up to 40 letters, digits and _, a letter first, as in NAME=X")
        if not isinstance(spec, str) or not spec:
            raise ValueError(f"{key} names no model")
        same = next((known for known in models if known != name and known.lower() == name.lower()), None)
        if same:
            raise ValueError(f"{same!r} and {name!r} differ in case alone, which some readers ignore")
        of_name = models.setdefault(name, {})
        tag = language.partition("-")[0].lower() or "*"
        if tag in of_name:
            raise ValueError(f"names two models for {key}")
        of_name[tag] = spec
    return dict(sorted(models.items()))


def _pairs(value: object) -> Iterable[tuple[str, object]]:
    if isinstance(value, Mapping):
        for name, spec in value.items():
            if isinstance(spec, Mapping):
                yield from ((f"{name}:{'' if language == '*' else language}", each) for language, each in spec.items())
            else:
                yield str(name), spec
        return
    for text in [value] if isinstance(value, str) else value or () if isinstance(value, Iterable) else [value]:
        key, equals, spec = str(text).partition("=")
        if not equals:
            raise ValueError(f"{text!r} is not NAME=X or NAME:LANG=X")
        yield key, spec
