"""The first step of a shard: fetch, decode and segment its rows.

    prepare -> transcribe -> recognise -> finish

The steps pass on one table (`pipeline.shard.work_table`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline import SAMPLING_RATE
from pipeline.audio.quality import sound_quality
from pipeline.audio.segmentation import speech_seconds
from pipeline.audio.turns import Turn
from pipeline.config.columns import OVERLAP_SHARE, SPEAKER_ID
from pipeline.dataset.parts import is_committed
from pipeline.dataset.plan import Shard, read_shard
from pipeline.dataset.texts import require_texts
from pipeline.errors import JobError, Reason, Reject, Stage
from pipeline.models.speakers import SPEAKER
from pipeline.schema import NO_SPEECH
from pipeline.shard.commit import key_of
from pipeline.shard.context import Work
from pipeline.shard.isolation import guard
from pipeline.shard.missing_audio import refuse_absent
from pipeline.shard.recording import (
    Recording,
    Waveform,
    check_span,
    fetch_small,
    load_recording,
    needs_audio,
    records_of,
)
from pipeline.shard.spans import Piece, pieces_by_speaker, pieces_of
from pipeline.shard.transcribe import has_voice_rules, needs_voice_activity
from pipeline.shard.turns import turn_pieces, turns_of
from pipeline.shard.work_table import PCM_BUDGET_BYTES, WORK_SCHEMA, committed_elsewhere, pack_waveform
from pipeline.stats import MIXED
from pipeline.storage.read_ahead import read_ahead

_UNREACHABLE = 5


def prepare(
    work: Work, shard: Shard, *, unreachable: int | None = _UNREACHABLE, figures: dict[str, float] | None = None
) -> pa.Table:
    """Fetch, decode and segment every row of a shard.

    Args:
        unreachable: number of successive rows that cannot be fetched, each retried for a minute, after which the store
            counts as unreachable. None disables this, and rejects missing audio whatever its share.
        figures: gets the counters of this stage (`pipeline.stats`).
    Returns: a table of `WORK_SCHEMA` with at least one line per row, or `committed_elsewhere()` if another run has committed
        the shard meanwhile.
    Raises: JobError when the store is unreachable, or when nearly all audio of the plan is missing.
    """
    rows = read_shard(work.store, shard)
    if is_committed(work.store, key_of(work.plan, shard, rows)):
        return committed_elsewhere()
    if shard.texts_file is not None:
        require_texts(work.store, shard.plan, shard.texts_file)
    lines: list[dict[str, Any]] = []
    pcm_bytes = failed_in_succession = missing = 0
    records, counted = records_of(rows, work.plan.settings.turns), {MIXED: 0.0} if figures is None else figures
    with_audio = [record for record in records if needs_audio(work, record)]
    contents = read_ahead(partial(fetch_small, work), with_audio)
    for row, record in enumerate(records):
        content = next(contents) if needs_audio(work, record) else None
        outcome = guard(partial(_lines_of, work, record, content, counted), Stage.DECODE)
        if isinstance(outcome, Reject):
            missing += outcome.reason in (Reason.NOT_FOUND, Reason.REFUSED)
            failed_in_succession = failed_in_succession + 1 if outcome.reason == Reason.FETCH_FAILED else 0
            if failed_in_succession == unreachable:
                raise JobError(
                    f"the audio's store failed for {unreachable} objects in succession; the last error: {outcome.detail}. "
                    "Nothing of the shard is committed; run the same command again when the store is available"
                )
            lines.append({"row": row, "segment_index": 0, "reject": outcome.document()})
            continue
        failed_in_succession = 0
        for line in outcome:
            pcm_bytes += len(line["waveform"] or b"")
            if pcm_bytes > PCM_BUDGET_BYTES:
                line["waveform"] = None
            lines.append({"row": row, **line})
    if unreachable is not None:
        refuse_absent(work, shard, missing, len(with_audio))
    return pa.Table.from_pylist(lines, schema=WORK_SCHEMA)


def _lines_of(
    work: Work, record: dict[str, Any], content: Callable[[], bytes | None] | None, counted: dict[str, float]
) -> list[dict[str, Any]]:
    """Return the lines of one recording's utterances. Raises: RejectedRow.

    Args:
        content: returns the audio object's bytes, or None if they were not read ahead; None when no audio is needed.
    """
    check_span(record)
    offset_s, language = record["offset_s"] or 0.0, record["language"]
    if content is None:
        duration_s = record["duration_s"]
        end_s = None if duration_s is None else offset_s + duration_s
        given = {"language": language, **_text_columns(record["text"])}
        return [{**given, "segment_index": 0, "start_s": offset_s, "end_s": end_s, "waveform": None}]
    turns = turns_of(work, record)
    recording = load_recording(work, record, content())
    settings, waveforms = work.plan.settings, recording.waveforms
    pieces = _pieces(work, record, recording, turns)
    counted[MIXED] = counted.get(MIXED, 0.0) + recording.mixed
    num_samples = sum(piece.span.end - piece.span.start for piece in pieces)  # overlapping ones count more than once
    small = num_samples * np.dtype(np.float32).itemsize <= PCM_BUDGET_BYTES
    pack = pack_waveform if small else _leave_out  # packing takes half as much again
    lines = []
    for index, piece in enumerate(pieces):
        span, waveform = piece.span, waveforms[piece.channel][piece.span.start : piece.span.end]
        line = {"language": language, **_text_columns(piece.text)}
        # counted here, on the CPU workers, because Whisper's device would have to wait for it
        speech_s = speech_seconds(waveform) if settings.sound_quality or needs_voice_activity(work, line) else None
        silent = has_voice_rules(settings) and speech_s == 0.0
        lines.append(
            {
                **line,
                "segment_index": index,
                "channel": piece.channel,
                SPEAKER_ID: piece.speaker_id,
                OVERLAP_SHARE: piece.overlap_share,
                "start_s": offset_s + span.start_s,
                "end_s": offset_s + span.end_s,
                **dict(zip(("waveform", "sample_bytes"), pack(waveform), strict=True)),
                "identity": recording.identity,
                "speech_s": speech_s,
                **(_sound(waveform, speech_s) if settings.sound_quality else {}),
                "emotion_null_reason": NO_SPEECH if silent and piece.text is None else None,
            }
        )
    return lines


def _pieces(work: Work, record: dict[str, Any], recording: Recording, turns: Sequence[Turn] | None) -> list[Piece]:
    """Return the utterances of a recording. Raises: RejectedRow."""
    settings, waveforms = work.plan.settings, recording.waveforms
    if turns is not None:
        return turn_pieces(waveforms[None], settings, turns, record)
    if settings.speakers and record["text"] is None:
        return pieces_by_speaker(waveforms[None], settings, work.plan.models[SPEAKER])
    return pieces_of(waveforms, settings, record["text"])


def _text_columns(text: str | None) -> dict[str, str | None]:
    return {"text": text, "text_source": "none" if text is None else "manifest"}


def _sound(waveform: Waveform, speech_s: float | None) -> dict[str, float | None]:
    return {**sound_quality(waveform)._asdict(), "speech_share": _share(speech_s, waveform)}


def _share(speech_s: float | None, waveform: Waveform) -> float:
    """Return speech as a share of a waveform; the last window of voice activity may end after it."""
    return min((speech_s or 0.0) * SAMPLING_RATE / len(waveform), 1.0) if len(waveform) else 0.0


def _leave_out(_: Waveform) -> tuple[None, None]:
    """Return the columns of a waveform that is not carried: the recording is decoded again where it is needed."""
    return None, None
