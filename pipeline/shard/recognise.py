"""The third step of a shard: compute label, scores and embeddings of its utterances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.config import primary_language
from pipeline.dataset.plan import Plan, Shard
from pipeline.errors import Reject, Stage
from pipeline.schema import DIMENSIONS, EMOTIONS, REGRESSION, UNMAPPED
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
    recogniser_for: Callable[[str], EmotionRecogniser],
    watch: Watch = UNWATCHED,
) -> pa.Table:
    """Compute label, scores and embeddings of every utterance.

    A batch that fails is halved until the failing utterance is alone; the others' results are the same to within 1e-5.

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
    needs_audio = work.mode != "text"
    results = _Results(table.num_rows, work.plan)
    for language, group in by_model(languages, table, waveforms, needs_audio=needs_audio):
        call = partial(_recognise_lines, recogniser_for(language), waveforms if needs_audio else None, texts)
        for part, outcome in isolate(call, group, Stage.RECOGNISE, deaths, watch):
            if isinstance(outcome, Reject):
                results.reject(part[0], outcome)
            else:
                results.fill(part, outcome)
    watch.end()
    return results.join(table.drop_columns(["waveform", "sample_bytes", "identity", "speech_s"]))


def _recognise_lines(
    recogniser: EmotionRecogniser, waveforms: Waveforms | None, texts: Sequence[str | None], lines: list[int]
) -> Recognised:
    audio = None if waveforms is None else [waveforms[line] for line in lines]
    return recogniser.recognise(audio, [texts[line] or "" for line in lines])


class _Results:
    """Columns of results, filled in by line; null in lines that were not filled in."""

    def __init__(self, num_lines: int, plan: Plan) -> None:
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
            name: np.zeros((num_lines, width), dtype=np.float32) for name, width in plan.embedding_widths.items()
        }
        self._rejects: dict[int, Reject] = {}

    def fill(self, lines: list[int], result: Recognised) -> None:
        self._filled[lines] = True
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
        empty = ~self._filled
        unlabelled = np.array([label is None for label in self._labels], dtype=bool)
        scores = [_floats(self._scores[:, i]) for i in range(len(EMOTIONS))]
        reasons = pc.coalesce(table["emotion_null_reason"], pa.array(self._reasons, pa.string()))
        table = table.set_column(table.schema.get_field_index("emotion_null_reason"), "emotion_null_reason", reasons)
        table = table.append_column("label", pa.array(self._labels, pa.string()))
        table = table.append_column("emotion", pa.array(self._emotions, pa.string()))
        table = table.append_column("label_scores", self._label_scores.array())
        table = table.append_column("labels", pa.array(self._above, pa.list_(pa.string())))
        table = table.append_column("confidence", pa.array(self._confidence, mask=unlabelled))
        table = table.append_column("margin", pa.array(self._margin, mask=unlabelled))
        table = table.append_column("truncated", pa.array(self._truncated))
        table = table.append_column(
            "scores", pa.StructArray.from_arrays(scores, names=list(EMOTIONS), mask=pa.array(unlabelled))
        )
        for name, values in self._dimensions.items():
            scale = " and ".join(f"{low:g} to {high:g}" for low, high in sorted(self._scales[name]))
            field = pa.field(name, pa.float32(), metadata={"scale": scale} if scale else None)
            table = table.append_column(field, _floats(values))
        for name, vectors in self._embeddings.items():
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), vectors.shape[1], mask=pa.array(empty)
            )
            table = table.append_column(name, column)
        return table


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
