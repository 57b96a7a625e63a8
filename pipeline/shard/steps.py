"""The steps of one shard, from plan rows to the committed part, without Ray; called by stages, notebooks and tests.

    prepare -> transcribe -> recognise -> finish

The steps pass on one table (`WORK_SCHEMA`) with a line for each utterance or rejected row, so every row has at least one
line. The table carries audio as 16 kHz PCM until it is recognised, up to `PCM_BUDGET_BYTES` per shard. Recordings beyond
that budget are carried without audio and decoded again, one at a time, where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import pyarrow as pa

from pipeline.audio.segmentation import cut, speech_seconds
from pipeline.config import primary_language
from pipeline.dataset.parts import is_committed
from pipeline.dataset.plan import Plan, Shard, read_shard
from pipeline.errors import JobError, Reason, RejectedRow, Stage
from pipeline.models import roles
from pipeline.models.transcriber import Transcript
from pipeline.schema import EMOTIONS
from pipeline.shard.commit import DONE_ELSEWHERE, Finished, finish, key_of
from pipeline.shard.context import (
    CAUSE,
    PCM_BUDGET_BYTES,
    WORK_SCHEMA,
    Waveforms,
    Work,
    cause_columns,
    check_span,
    fetch_small,
    guard,
    load_recording,
    needs_audio,
    pack_waveform,
    records_of,
)
from pipeline.shard.crashes import MOST_DEATHS, Unwatched, Watch, lethal
from pipeline.shard.languages import settle_languages
from pipeline.shard.missing_audio import refuse_absent
from pipeline.storage.read_ahead import read_ahead

if TYPE_CHECKING:
    from pipeline.models.emotion import EmotionRecogniser, Recognised
    from pipeline.models.transcriber import Transcriber

UNWATCHED = Unwatched()
_UNREACHABLE = 5
T = TypeVar("T")
M = TypeVar("M", bound=Hashable)


def prepare(work: Work, shard: Shard, *, unreachable: int | None = _UNREACHABLE) -> pa.Table:
    """Fetch, decode and segment every row of a shard.

    Args:
        unreachable: number of successive rows that cannot be fetched, each retried for a minute, after which the store
            counts as unreachable. None disables this, and rejects missing audio whatever its share.
    Returns: a table of `WORK_SCHEMA` with at least one line per row; if another run has committed the shard meanwhile, a
        single line with row `DONE_ELSEWHERE`.
    Raises: JobError when the store is unreachable, or when nearly all audio of the plan is missing.
    """
    rows = read_shard(work.store, shard)
    if is_committed(work.store, key_of(work.plan, shard, rows)):
        done = {"row": DONE_ELSEWHERE, "segment_index": 0, "reason": "", "detail": "", "stage": ""}
        return pa.Table.from_pylist([done], schema=WORK_SCHEMA)
    lines: list[dict[str, Any]] = []
    pcm_bytes = failed = missing = 0
    records = records_of(rows)
    wanted = [record for record in records if needs_audio(work, record)]
    contents = read_ahead(partial(fetch_small, work), wanted)
    for row, record in enumerate(records):
        content = next(contents) if needs_audio(work, record) else None
        outcome = guard(partial(_prepare_row, work, record, content), Stage.DECODE)
        failed = failed + 1 if isinstance(outcome, RejectedRow) and outcome.reason == Reason.FETCH_FAILED else 0
        if isinstance(outcome, RejectedRow):
            missing += outcome.reason in (Reason.NOT_FOUND, Reason.REFUSED)
            if failed == unreachable:
                raise JobError(
                    f"the audio's store has failed {failed} objects in succession, the last so: {outcome.detail}"
                )
            lines.append({"row": row, "segment_index": 0, **cause_columns(outcome)})
            continue
        for line in outcome:
            pcm_bytes += len(line["waveform"] or b"")
            if pcm_bytes > PCM_BUDGET_BYTES:
                line["waveform"] = None
            lines.append({"row": row, **line})
    if unreachable is not None:
        refuse_absent(work, shard, missing, len(wanted))
    return pa.Table.from_pylist(lines, schema=WORK_SCHEMA)


def _is_to_be_heard(work: Work, line: Mapping[str, Any]) -> bool:
    return _needs_text(work, line) or line["language"] is None


def _needs_text(work: Work, line: Mapping[str, Any]) -> bool:
    return line["text"] is None and work.mode != "audio"


def _spoken(line: Mapping[str, Any]) -> str | None:
    """Return the language in which to transcribe a line; None to detect it."""
    return None if line["language"] is None else primary_language(str(line["language"]))


def _prepare_row(
    work: Work, record: dict[str, Any], content: Callable[[], bytes | None] | None
) -> list[dict[str, Any]]:
    """Return the lines of one recording's utterances.

    Args:
        content: returns the audio object's bytes, or None if they were not read ahead; None when no audio is needed.
    """
    check_span(record)
    text = record["text"]
    common = {"language": record["language"], "text": text, "text_source": "none" if text is None else "manifest"}
    offset_s = record["offset_s"] or 0.0
    if content is None:
        duration_s = record["duration_s"]
        end_s = None if duration_s is None else offset_s + duration_s
        return [{**common, "segment_index": 0, "start_s": offset_s, "end_s": end_s, "waveform": None}]
    recording = load_recording(work, record, content())
    waveform = recording.waveform
    spans = cut(waveform, segmentation=work.plan.settings.segmentation, has_text=text is not None)
    if len(spans) > 1:
        common = {**common, "text": None, "text_source": "none"}
    return [
        {
            **common,
            "segment_index": index,
            "start_s": offset_s + span.start_s,
            "end_s": offset_s + span.end_s,
            **dict(zip(("waveform", "sample_bytes"), pack_waveform(waveform[span.start : span.end]), strict=True)),
            "identity": recording.identity,
            # counted here, on the CPU workers, because Whisper's device would have to wait for it
            "speech_s": speech_seconds(waveform[span.start : span.end]) if _is_to_be_heard(work, common) else None,
        }
        for index, span in enumerate(spans)
    ]


def transcribe(
    work: Work,
    shard: Shard,
    table: pa.Table,
    transcriber_for: Callable[[str | None], Transcriber],
    watch: Watch = UNWATCHED,
) -> pa.Table:
    """Transcribe every utterance without a text, and detect languages where they are not given.

    Without speech the text is empty and no model is called, since Whisper transcribes silence as words. A recording's
    language is decided over all its segments; segments transcribed in another language are then transcribed again.

    Args:
        transcriber_for: returns the model for a language, loaded once by the caller; it gets all its lines in one call.
        watch: the crash tracker's interface, which identifies an utterance that kills this process.
    """
    deaths = watch.begin()
    waveforms = Waveforms(work, shard, table)
    lines = table.select([name for name in WORK_SCHEMA.names if name != "waveform"]).to_pylist()
    wanted: dict[int, Transcriber] = {}
    transcripts: dict[int, Transcript] = {}
    for index, line in enumerate(lines):
        if line["reason"] is not None or not _is_to_be_heard(work, line):
            continue
        if line["speech_s"]:
            wanted[index] = transcriber_for(_spoken(line))
        else:
            transcripts[index] = Transcript("", _spoken(line))

    def run(wanted: Mapping[int, Transcriber]) -> None:
        spoken = {index: _spoken(lines[index]) for index in wanted}
        for transcriber, together in _by_model_and_load(wanted, table, waveforms):
            call = partial(_transcribe_lines, transcriber, waveforms, spoken)
            for part, outcome in _carefully(call, together, Stage.TRANSCRIBE, deaths, watch):
                for index, found in zip(part, [outcome] if isinstance(outcome, RejectedRow) else outcome, strict=True):
                    if isinstance(found, RejectedRow):
                        lines[index].update(cause_columns(found))
                        transcripts.pop(index, None)
                    else:
                        transcripts[index] = found

    run(wanted)
    settle_languages(work.plan, lines, transcripts)
    run({i: wanted[i] for i, transcript in transcripts.items()
         if i in wanted and _needs_text(work, lines[i]) and transcript.language != _spoken(lines[i])})  # fmt: skip
    for index, transcript in transcripts.items():
        if _needs_text(work, lines[index]):
            lines[index].update(_text_columns(transcript))
    watch.end()
    audio = table["waveform"]
    texts = pa.Table.from_pylist(lines, schema=WORK_SCHEMA.remove(WORK_SCHEMA.get_field_index("waveform")))
    return texts.append_column("waveform", audio).select(WORK_SCHEMA.names)


def _by_model_and_load(
    wanted: Mapping[int, M], table: pa.Table, waveforms: Waveforms, *, needs_audio: bool = True
) -> Iterator[tuple[M, list[int]]]:
    """Group lines into calls of one model: all lines with audio, then each recording that must be decoded again.

    Args:
        wanted: lines, in order, with their models.
    """
    groups: dict[tuple[M, int], list[int]] = {}
    rows = table["row"].to_pylist()
    for line, model in wanted.items():
        carried = not needs_audio or waveforms.carried(line)
        groups.setdefault((model, -1 if carried else rows[line]), []).append(line)
    for (model, _), lines in groups.items():
        yield model, lines


def _carefully(
    work: Callable[[list[int]], T], lines: list[int], stage: Stage, deaths: Mapping[int, int] | None, watch: Watch
) -> Iterator[tuple[list[int], T | RejectedRow]]:
    """Run guarded work on all lines at once, halving a failed batch until the failing line is alone.

    After a death, lines are processed one at a time; each is reported first, and skipped if it has killed too often.

    Yields: groups of lines with their outcome, which together cover `lines`; a reject is always that of a single line.
    """
    if deaths is None:
        yield from _in_halves(work, lines, stage)
        return
    for line in lines:
        if deaths.get(line, 0) >= MOST_DEATHS:
            yield [line], lethal(deaths[line], stage)
        else:
            watch.enter(line)
            yield from _in_halves(work, [line], stage)


def _in_halves(
    work: Callable[[list[int]], T], lines: list[int], stage: Stage
) -> Iterator[tuple[list[int], T | RejectedRow]]:
    outcome = guard(partial(work, lines), stage)
    if not isinstance(outcome, RejectedRow) or len(lines) == 1:
        yield lines, outcome
        return
    half = len(lines) // 2
    for part in (lines[:half], lines[half:]):
        yield from _in_halves(work, part, stage)


def _transcribe_lines(
    transcriber: Transcriber, waveforms: Waveforms, spoken: Mapping[int, str | None], lines: list[int]
) -> list[Transcript | RejectedRow]:
    return transcriber.transcribe_many([waveforms[line] for line in lines], [spoken[line] for line in lines])


def _text_columns(transcript: Transcript) -> dict[str, Any]:
    return {
        "text": transcript.text,
        "text_source": "asr",
        "asr_avg_logprob": transcript.avg_logprob,
        "asr_no_speech_prob": transcript.no_speech_prob,
        "asr_compression_ratio": transcript.compression_ratio,
    }


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
    deaths = watch.begin()
    waveforms = Waveforms(work, shard, table)
    texts = table["text"].to_pylist()
    columns = (table[name].to_pylist() for name in ("reason", "emotion_null_reason", "language"))
    wanted = {
        line: primary_language(language or "")
        for line, (reject, no_emotion, language) in enumerate(zip(*columns, strict=True))
        if reject is None and no_emotion is None
    }
    needs_audio = work.mode != "text"
    out = _Recognised(table.num_rows, work.plan)
    for language, together in _by_model_and_load(wanted, table, waveforms, needs_audio=needs_audio):
        label = partial(_label, recogniser_for(language), waveforms if needs_audio else None, texts)
        for part, outcome in _carefully(label, together, Stage.RECOGNISE, deaths, watch):
            if isinstance(outcome, RejectedRow):
                out.reject(part[0], outcome)
            else:
                out.fill(part, outcome)
    watch.end()
    return out.join(table.drop_columns(["waveform", "sample_bytes", "identity", "speech_s"]))


def _label(
    recogniser: EmotionRecogniser, waveforms: Waveforms | None, texts: Sequence[str | None], lines: list[int]
) -> Recognised:
    audio = None if waveforms is None else [waveforms[line] for line in lines]
    return recogniser.recognise(audio, [texts[line] or "" for line in lines])


class _Recognised:
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
        self._rejects: dict[int, RejectedRow] = {}

    def fill(self, lines: list[int], result: Recognised) -> None:
        self._filled[lines] = True
        self._labels[lines] = result.labels
        self._confidence[lines] = result.confidence
        self._margin[lines] = result.margin
        self._truncated[lines] = result.truncated | result.text_truncated
        self._scores[np.ix_(lines, [EMOTIONS.index(emotion) for emotion in result.emotions])] = result.scores
        for name, values in self._embeddings.items():
            values[lines] = getattr(result, name)

    def reject(self, line: int, cause: RejectedRow) -> None:
        self._rejects[line] = cause

    def join(self, table: pa.Table) -> pa.Table:
        for name in CAUSE:
            values = table[name].to_pylist()
            for line, cause in self._rejects.items():
                values[line] = cause_columns(cause)[name]
            field = WORK_SCHEMA.field(name)
            table = table.set_column(table.schema.get_field_index(name), field, pa.array(values, field.type))
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


def annotate_shard(work: Work, shard: Shard) -> Finished:
    """Run all steps of one shard in this process; models are loaded for it and released afterwards."""
    loaded = roles.Loaded(work.plan.models, settings=work.plan.settings, device="cpu")
    table = prepare(work, shard)
    if work.plan.needs_asr:
        table = transcribe(work, shard, table, loaded.transcriber_for)
    return finish(work, shard, recognise(work, shard, table, loaded.recogniser_for), {})
