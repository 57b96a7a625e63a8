"""The third step of a shard: compute label, scores and embeddings of its utterances."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import primary_language
from pipeline.config.further import BY_MODEL, FIELDS
from pipeline.dataset.plan import Plan, Shard
from pipeline.errors import Reject, Stage
from pipeline.models import roles
from pipeline.pins import further_names
from pipeline.schema import ABSTAINED, DIMENSIONS, EMOTIONS, OTHER_LANGUAGE, REGRESSION, UNMAPPED
from pipeline.shard.context import Work
from pipeline.shard.crashes import UNWATCHED, Watch
from pipeline.shard.isolation import by_model, isolate
from pipeline.shard.work_table import WORK_SCHEMA, Waveforms, is_committed_elsewhere

if TYPE_CHECKING:
    from pipeline.models.emotion import EmotionRecogniser, Recognised


def recognise(
    work: Work,
    shard: Shard,
    table: pa.Table,
    recogniser_for: Callable[..., EmotionRecogniser],
    watch: Watch = UNWATCHED,
) -> pa.Table:
    """Compute label, scores and embeddings of every utterance, and the results of further models.

    A failure of a further model rejects the utterance as one of the main model does. A batch that fails is halved until
    the failing utterance is alone; the others' results are the same to within 1e-5.

    Args:
        recogniser_for: returns the model of a language, and of a further model's name given after it.
    Returns: the table without audio, with those columns; they are null where `emotion_null_reason` is set.
    """
    if is_committed_elsewhere(table):
        return table
    deaths = watch.begin()
    waveforms = Waveforms(work, shard, table)
    texts = table["text"].to_pylist()
    columns = (table[name].to_pylist() for name in ("reject", "emotion_null_reason", "language"))
    languages = {
        line: primary_language(language or "")
        for line, (reject, null_reason, language) in enumerate(zip(*columns, strict=True))
        if reject is None and null_reason is None
    }
    plan, needs_audio = work.plan, work.mode != "text"
    results = {name: _Results(table.num_rows, plan, name) for name in ("", *plan.settings.also)}
    for language, group in by_model(languages, table, waveforms, needs_audio=needs_audio):
        models = {
            name: recogniser_for(language, *([name] if name else []))
            for name in ("", *further_names(plan.models, language))
        }
        call = partial(_recognise_lines, models, waveforms if needs_audio else None, texts)
        for part, outcome in isolate(call, group, Stage.RECOGNISE, deaths, watch):
            if isinstance(outcome, Reject):
                results[""].reject(part[0], outcome)
            else:
                for name, result in outcome.items():
                    results[name].fill(part, result, language)
    watch.end()
    table = table.drop_columns(["waveform", "sample_bytes", "identity", "speech_s"])
    further = [results[name].struct(table["emotion_null_reason"]) for name in plan.settings.also]
    if further:
        table = table.append_column(BY_MODEL, pa.StructArray.from_arrays(further, names=list(plan.settings.also)))
    return results[""].join(table)


def _recognise_lines(
    models: Mapping[str, EmotionRecogniser], waveforms: Waveforms | None, texts: Sequence[str | None], lines: list[int]
) -> dict[str, Recognised]:
    audio = None if waveforms is None else [waveforms[line] for line in lines]
    words = [texts[line] or "" for line in lines]
    return {name: model.recognise(audio, words) for name, model in models.items()}


class _Results:
    """Columns of one model's results, filled in by line; null in lines that were not filled in.

    Args:
        name: of a further model; empty for the main one.
    """

    def __init__(self, num_lines: int, plan: Plan, name: str = "") -> None:
        self._plan, self._name = plan, name
        self._filled = np.zeros(num_lines, dtype=bool)
        self._labels, self._emotions, self._reasons, self._above = (
            np.full(num_lines, None, dtype=object) for _ in range(4)
        )
        self._label_scores = _LabelScores(num_lines)
        self._dimensions = {name: np.full(num_lines, np.nan, dtype=np.float32) for name in DIMENSIONS}
        self._scales: dict[str, set[tuple[float, float]]] = {name: set() for name in DIMENSIONS}
        self._confidence = np.zeros(num_lines, dtype=np.float32)
        self._margin = np.zeros(num_lines, dtype=np.float32)
        self._truncated = np.zeros(num_lines, dtype=bool)
        self._scores = np.full((num_lines, len(EMOTIONS)), np.nan, dtype=np.float32)
        self._embeddings = {
            column: np.zeros((num_lines, width), dtype=np.float32)
            for column, width in plan.embedding_widths.items()
            if not name
        }
        self._models = np.full(num_lines, None, dtype=object)
        self._rejects: dict[int, Reject] = {}

    def fill(self, lines: list[int], result: Recognised, language: str) -> None:
        self._filled[lines] = True
        if self._name:
            self._models[lines] = roles.fingerprint(self._plan.models, self._plan.settings, language, self._name)
        self._labels[lines] = result.labels
        self._confidence[lines] = result.confidence
        self._margin[lines] = result.margin
        self._truncated[lines] = result.truncated | result.text_truncated
        emotion_of = dict(zip(result.label_names, result.emotions, strict=True))
        emotions = [None if label is None else emotion_of[label] for label in result.labels]
        self._emotions[lines] = emotions
        self._reasons[lines] = [
            REGRESSION if label is None else UNMAPPED if emotion is None else None
            for label, emotion in zip(result.labels, emotions, strict=True)
        ]
        for number, emotion in enumerate(result.emotions):
            if emotion is not None:
                column = EMOTIONS.index(emotion)
                self._scores[lines, column] = np.nan_to_num(self._scores[lines, column]) + result.scores[:, number]
        self._label_scores.add(lines, result.label_names, result.scores)
        if result.above is not None:
            for line, above in zip(lines, result.above, strict=True):
                self._above[line] = above
        for name, values in result.dimensions.items():
            self._dimensions[name][lines] = values
        for name, scale in result.scales.items():
            self._scales[name].add(scale)
        embeddings = {
            "audio_embedding": result.audio_embedding,
            "text_embedding": result.text_embedding,
            "fused_embedding": result.fused_embedding,
        }
        for name, kept in self._embeddings.items():
            kept[lines] = embeddings[name]

    def reject(self, line: int, cause: Reject) -> None:
        self._rejects[line] = cause

    def join(self, table: pa.Table) -> pa.Table:
        if self._rejects:
            rejects = table["reject"].to_pylist()
            for line, reject in self._rejects.items():
                rejects[line] = reject.document()
            field = WORK_SCHEMA.field("reject")
            table = table.set_column(table.schema.get_field_index("reject"), field, pa.array(rejects, field.type))
        reasons = pc.coalesce(table["emotion_null_reason"], pa.array(self._reasons, pa.string()))
        table = table.set_column(table.schema.get_field_index("emotion_null_reason"), "emotion_null_reason", reasons)
        for name, column in self._columns().items():
            field = pa.field(name, column.type, metadata=self._scale(name))
            table = table.append_column(field, column)
        for name, vectors in self._embeddings.items():
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), vectors.shape[1], mask=pa.array(~self._filled)
            )
            table = table.append_column(name, column)
        return table

    def struct(self, null_reasons: pa.ChunkedArray) -> pa.StructArray:
        """Return the results as those of a further model, in which too unsure emotions are null.

        Args:
            null_reasons: reasons why no model was applied to a line. Lines without results and without one are in a language
                that the further model does not cover.
        """
        columns = self._columns()
        least = pa.scalar(self._plan.settings.min_confidence or 0.0, pa.float32())
        abstained = pc.less(columns["confidence"], least).fill_null(False)
        skipped = pc.coalesce(null_reasons.combine_chunks(), pa.scalar(OTHER_LANGUAGE))
        reasons = pc.if_else(pa.array(self._filled), pa.array(self._reasons, pa.string()), skipped)
        columns |= {
            "emotion": pc.if_else(abstained, None, columns["emotion"]),
            "emotion_null_reason": pc.if_else(abstained, ABSTAINED, reasons),
            "abstained": abstained,
            "model": pa.array(self._models, pa.string()),
        }
        return pa.StructArray.from_arrays(
            [columns[field.name].cast(field.type) for field in FIELDS],
            fields=[field.with_metadata(self._scale(field.name)) for field in FIELDS],
        )

    def _columns(self) -> dict[str, pa.Array]:
        """Return the columns of every model."""
        unlabelled = np.array([label is None for label in self._labels], dtype=bool)
        scores = [_floats(self._scores[:, i]) for i in range(len(EMOTIONS))]
        return {
            "label": pa.array(self._labels, pa.string()),
            "emotion": pa.array(self._emotions, pa.string()),
            "label_scores": self._label_scores.array(),
            "labels": pa.array(self._above, pa.list_(pa.string())),
            "confidence": pa.array(self._confidence, mask=unlabelled),
            "margin": pa.array(self._margin, mask=unlabelled),
            "truncated": pa.array(self._truncated),
            "scores": pa.StructArray.from_arrays(scores, names=list(EMOTIONS), mask=pa.array(unlabelled)),
            **{name: _floats(values) for name, values in self._dimensions.items()},
        }

    def _scale(self, name: str) -> dict[str, str] | None:
        """Return the metadata of a dimension with a stated scale; None for other columns."""
        scale = " and ".join(f"{low:g} to {high:g}" for low, high in sorted(self._scales.get(name, ())))
        return {"scale": scale} if scale else None


class _LabelScores:
    """The scores of every label, by line; models of several languages have other labels."""

    def __init__(self, num_lines: int) -> None:
        self._counts = np.zeros(num_lines, dtype=np.int32)
        self._added: list[tuple[list[int], tuple[str, ...], NDArray[np.float32]]] = []

    def add(self, lines: list[int], names: tuple[str, ...], scores: NDArray[np.float32]) -> None:
        self._counts[lines] = len(names)
        self._added.append((lines, names, scores))

    def array(self) -> pa.MapArray:
        """Return map<string, float32>, null in lines without labels."""
        offsets = np.concatenate([np.zeros(1, np.int32), np.cumsum(self._counts, dtype=np.int32)])
        names, values = np.empty(offsets[-1], dtype=object), np.empty(offsets[-1], dtype=np.float32)
        for lines, labels, scores in self._added:
            places = np.add.outer(offsets[lines], np.arange(len(labels)))
            names[places], values[places] = labels, scores
        starts = pa.array(offsets, mask=np.append(self._counts == 0, False))
        return pa.MapArray.from_arrays(starts, pa.array(names, pa.string()), pa.array(values))


def _floats(values: NDArray[np.float32]) -> pa.Array:
    """Return values with nulls for NaN."""
    return pa.array(values, mask=np.isnan(values))
