"""The third step of a shard: compute label, scores and embeddings of its utterances."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from pipeline.config import primary_language
from pipeline.dataset.plan import Plan, Shard
from pipeline.errors import Reject, Stage
from pipeline.schema import EMOTIONS
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
        self._labels = np.full(num_lines, None, dtype=object)
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
        self._scores[np.ix_(lines, [EMOTIONS.index(emotion) for emotion in result.emotions])] = result.scores
        embeddings = {
            "audio_embedding": result.audio_embedding,
            "text_embedding": result.text_embedding,
            "fused_embedding": result.fused_embedding,
        }
        for name, values in self._embeddings.items():
            values[lines] = embeddings[name]

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
        scores = [pa.array(self._scores[:, i], mask=np.isnan(self._scores[:, i])) for i in range(len(EMOTIONS))]
        table = table.append_column("label", pa.array(self._labels, pa.string()))
        table = table.append_column("confidence", pa.array(self._confidence, mask=empty))
        table = table.append_column("margin", pa.array(self._margin, mask=empty))
        table = table.append_column("truncated", pa.array(self._truncated))
        table = table.append_column(
            "scores", pa.StructArray.from_arrays(scores, names=list(EMOTIONS), mask=pa.array(empty))
        )
        for name, values in self._embeddings.items():
            column = pa.FixedSizeListArray.from_arrays(
                pa.array(values.reshape(-1)), values.shape[1], mask=pa.array(empty)
            )
            table = table.append_column(name, column)
        return table
