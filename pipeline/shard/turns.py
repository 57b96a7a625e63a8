"""Utterances of the turns of speakers that a manifest row gives (`--turns`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from pipeline import SAMPLING_RATE
from pipeline.audio.segmentation import Cuts, Span, cut
from pipeline.audio.turns import MAX_RTTM_BYTES, Overlap, Turn, clipped, listed_turns, rttm_turns, samples_of
from pipeline.config.settings import Settings
from pipeline.errors import Reason, RejectedRow
from pipeline.redaction import without_query
from pipeline.shard.context import Work
from pipeline.shard.recording import Waveform
from pipeline.shard.spans import Piece, cuts_of
from pipeline.storage.fetch import fetch
from pipeline.storage.uri import resolve_audio


def turns_of(work: Work, record: Mapping[str, Any]) -> list[Turn] | None:
    """Return the turns of a plan row, None for a row that gives none. Reads the RTTM file that it names.

    Raises: RejectedRow BAD_TURNS; as for audio, when the file cannot be read, may not be, or is too large.
    """
    column = work.plan.settings.turns
    value = record.get(column) if column else None
    if value is None:
        return None
    if not isinstance(value, str) or value.lstrip()[:1] == "[":
        return listed_turns(value)
    uri = resolve_audio(value, record["manifest"])
    work.roots.check(uri)
    content = fetch(uri, max_bytes=MAX_RTTM_BYTES, allow=work.roots.check_opened)
    return rttm_turns(content, names_in_rttm(record))


def names_in_rttm(record: Mapping[str, Any]) -> set[str]:
    """Return the names that an RTTM file may give a row's recording: its id, and its audio's name with and without extension."""
    audio = PurePosixPath(without_query(str(record["audio"])))
    return {"_".join(str(name).split()) for name in (record["recording_id"], audio.name, audio.stem)}


def turn_pieces(
    waveform: Waveform, settings: Settings, turns: Sequence[Turn], record: Mapping[str, Any]
) -> list[Piece]:
    """Cut a recording into utterances by its turns, in the order of their starts; they may overlap.

    A turn is cut further by the rules for recordings: where it is longer than an utterance may be and has no text, and with
    `--segmentation vad`. Without pauses to cut at it is cut evenly.

    Raises: RejectedRow BAD_TURNS, NO_SPEECH: see `clipped`.
    """
    offset_s, whole = record["offset_s"] or 0.0, record["offset_s"] is None and record["duration_s"] is None
    turns = clipped(turns, offset_s=offset_s, length_s=len(waveform) / SAMPLING_RATE, whole=whole)
    overlap = Overlap(turns)
    pieces: list[Piece] = []
    for turn in turns:
        start, end = samples_of(turn, len(waveform))
        spans = _cut(waveform[start:end], cuts_of(settings), has_text=turn.text is not None)
        for part in spans:
            span = Span(start + part.start, start + part.end)
            share = overlap.share(span.start_s, span.end_s)
            pieces.append(Piece(None, span, turn.text if len(spans) == 1 else None, turn.speaker, share))
    return sorted(pieces, key=lambda piece: (piece.span.start, piece.span.end, piece.speaker_id or ""))


def _cut(waveform: Waveform, cuts: Cuts, *, has_text: bool) -> list[Span]:
    try:
        return cut(waveform, cuts, has_text=has_text)
    except RejectedRow as error:
        if error.reason != Reason.NO_SPEECH:
            raise
    return cut(waveform, replace(cuts, window_s=cuts.max_s, hop_s=cuts.max_s), has_text=has_text)
