"""Labelled utterances of an output, in columns, and counts of those that cannot be compared.

Costs about 150 bytes of memory per utterance, and one read of the columns that are needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.config.settings import Settings
from pipeline.dataset.compatibility import dataset_settings, read_columns
from pipeline.dataset.plan import Plan, load_plans
from pipeline.dataset.publish import is_published
from pipeline.errors import ConfigError, did_you_mean
from pipeline.layout import UTTERANCES
from pipeline.manifest.growth import path_type
from pipeline.schema import EMOTIONS, emotion_of, passthrough_name, utterance_schema
from pipeline.storage.access import without_query
from pipeline.storage.store import open_store, resolve

REFERENCE = "reference"
"""Default manifest column of the reference texts."""
SMALL = 30
"""Number of rows below which results are mostly chance: with 30 rows an accuracy of 0.8 is known to within 0.14."""
_NEEDED = ("utterance_id", "recording_id", "segment_index", "language", "duration_s", "text", "text_source", "label",
           "confidence", "scores", "abstained", "model")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Labelled:
    """N labelled utterances of one output.

    Attributes:
        output: its URI without the query.
        settings: those of the dataset: mode, precision and the rest.
        table: the requested columns of the output, N rows.
        truth, predicted: int64 [N], indices into `EMOTIONS`; the prediction is the model's label, even where it
            abstained.
        confidence: float64 [N].
        scores: float64 [N, 7]; 0 for an emotion that the model does not know.
        abstained: bool [N].
        counts: numbers of utterances, of those compared, without a label, with other labels, without a prediction, of
            labelled rejects, and of recordings.
        warnings: sentences on what limits the results.
    """

    output: str
    settings: Settings
    table: pa.Table
    truth: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: NDArray[np.float64]
    scores: NDArray[np.float64]
    abstained: NDArray[np.bool_]
    counts: dict[str, Any]
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return N."""
        return len(self.truth)

    def take(self, rows: NDArray[np.int64]) -> Labelled:
        """Return the given rows, in the given order."""
        return Labelled(
            self.output, self.settings, self.table.take(pa.array(rows)), self.truth[rows], self.predicted[rows],
            self.confidence[rows], self.scores[rows], self.abstained[rows], self.counts, self.warnings,
        )  # fmt: skip

    def column(self, name: str) -> list[Any]:
        """Return the values of a column."""
        values: list[Any] = self.table[name].to_pylist()
        return values


def read_labelled(output: str, labels: str, columns: Sequence[str] = ()) -> Labelled:
    """Read the utterances of an output whose true label is in the emotion vocabulary.

    Args:
        output: value of the job's `--output`.
        labels: the manifest column that holds the true label.
        columns: further columns to keep, by their names in the output; missing ones are ignored.
    Raises: ConfigError when there is no output, no such column, or no row to compare.
    """
    store = open_store(output)
    shown, settings, plans = without_query(output), dataset_settings(store), load_plans(store)
    if settings is None or not plans:
        raise ConfigError(f"{shown} holds no output of jobs.annotate")
    schema, partitions = _schema_of(plans, settings)
    column = _column_of(labels, [*schema.names, *partitions.names], shown)
    wanted = [name for name in dict.fromkeys([*_NEEDED, column, *columns]) if name in schema.names + partitions.names]
    table = _dataset(output, UTTERANCES, schema, partitions).to_table(columns=wanted)
    truth, unknown = _truth(table[column])
    labelled = table["label"].is_valid().to_numpy()
    kept = np.flatnonzero((truth >= 0) & labelled)
    rejected = _rejected_with_label(output, column, schema, partitions)
    counts = {
        "utterances": table.num_rows,
        "compared": len(kept),
        "without_label": table[column].null_count,
        "other_labels": dict(sorted(unknown.items())),
        "without_prediction": int(((truth >= 0) & ~labelled).sum()),
        "rejected_with_label": rejected,
        "recordings": pc.count_distinct(table["recording_id"].take(pa.array(kept))).as_py(),
    }
    if not len(kept):
        words = ", ".join(map(repr, sorted(unknown)[:5])) or "none"
        raise ConfigError(
            f"{shown}: no utterance has a label of {', '.join(EMOTIONS)} in {column!r}; its words are {words}"
        )
    table = table.take(pa.array(kept))
    unfinished = [plan.plan for plan in plans if not is_published(store, plan)]
    return Labelled(
        output=shown, settings=settings, table=table, truth=truth[kept], predicted=_numbers(table["label"]),
        confidence=table["confidence"].to_numpy().astype(np.float64), scores=_scores(table["scores"]),
        abstained=table["abstained"].fill_null(False).to_numpy(), counts=counts,
        warnings=tuple(_warnings(counts, unfinished)),
    )  # fmt: skip


def _schema_of(plans: Sequence[Plan], settings: Settings) -> tuple[pa.Schema, pa.Schema]:
    """Return the schema of the files of all plans, and the schema of the partition columns in their paths."""
    extra = read_columns(plan.extra for plan in plans)
    whole = utterance_schema({}, "float32", extra, version=settings.schema_version)
    fields = [whole.field(name) for name in settings.partition_by]
    partitions = pa.schema([field.with_type(path_type(field.type)) for field in fields])
    return pa.schema([field.with_nullable(True) for field in whole if field.name not in partitions.names]), partitions


def _dataset(output: str, folder: str, schema: pa.Schema, partitions: pa.Schema) -> ds.Dataset:
    filesystem, path = resolve(f"{output.rstrip('/')}/{folder}")
    hive = ds.partitioning(partitions, flavor="hive") if len(partitions) else None
    whole = pa.schema([*schema, *partitions])
    return ds.dataset(path, schema=whole, format="parquet", filesystem=filesystem, partitioning=hive)


def _column_of(labels: str, names: Sequence[str], shown: str) -> str:
    """Return the output name of a manifest column: `label` becomes `manifest_label`, because `label` is reserved."""
    column = passthrough_name(labels)
    if column in names:
        return column
    if labels.startswith("manifest_") and labels in names:
        return labels
    raise ConfigError(f"--labels {labels}: {shown} has no column {column!r}{did_you_mean(column, names)}")


def _truth(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Return the emotion index of each row, -1 without one, and counts of the labels outside the vocabulary."""
    texts = column.cast(pa.string())
    numbers: dict[str, int] = {}
    for word in texts.unique().drop_null().to_pylist():
        try:
            numbers[word] = EMOTIONS.index(emotion_of(word))
        except ConfigError:
            numbers[word] = -1
    values = texts.to_pylist()
    unknown = Counter(word for word in values if word is not None and numbers[word] < 0)
    return np.array([-1 if word is None else numbers[word] for word in values], np.int64), dict(unknown)


def _numbers(labels: pa.ChunkedArray) -> NDArray[np.int64]:
    numbers = {label: EMOTIONS.index(emotion_of(label)) for label in labels.unique().to_pylist()}
    return np.array([numbers[label] for label in labels.to_pylist()], np.int64)


def _scores(column: pa.ChunkedArray) -> NDArray[np.float64]:
    structs = column.combine_chunks()
    fields = [structs.field(emotion).fill_null(0.0).to_numpy(zero_copy_only=False) for emotion in EMOTIONS]
    return np.stack(fields, axis=1).astype(np.float64)


def _rejected_with_label(output: str, column: str, schema: pa.Schema, partitions: pa.Schema) -> int:
    """Count the labelled recordings of finished runs that were rejected, since they are missing from the results."""
    field = pa.schema([*schema, *partitions]).field(column)
    try:
        dataset = _dataset(output, "rejects", pa.schema([field]), pa.schema([]))
        return int(dataset.count_rows(filter=pc.field(column).is_valid()))
    except FileNotFoundError:
        return 0


def _warnings(counts: dict[str, Any], unfinished: Sequence[str]) -> Iterable[str]:
    if unfinished:
        yield f"{len(unfinished)} run(s) are not finished: the figures are of what is there"
    if counts["rejected_with_label"]:
        yield f"{counts['rejected_with_label']:,} labelled recordings were rejected, and are in no figure"
    if counts["without_prediction"]:
        yield f"{counts['without_prediction']:,} labelled utterances are in a language without a model, and are in no figure"
    if counts["other_labels"]:
        words = ", ".join(f"{word!r} {count:,}" for word, count in counts["other_labels"].items())
        yield f"labels that are none of the classes are in no figure: {words}"
    if counts["recordings"] < counts["compared"]:
        more = counts["compared"] - counts["recordings"]
        yield f"{more:,} utterances more than recordings: recordings were cut, and each part took its recording's label"
