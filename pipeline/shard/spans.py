"""The utterances into which one decoded recording is cut, over its channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pipeline.audio.segmentation import Cuts, Span, cut
from pipeline.audio.speakers import speaker_spans
from pipeline.config.settings import Settings
from pipeline.errors import Reason, RejectedRow
from pipeline.models.speakers import speaker_encoder
from pipeline.pins import ModelPin
from pipeline.shard.recording import Waveform


class Piece(NamedTuple):
    """One utterance of a recording.

    Attributes:
        channel: channel of its audio; None for the recording's only waveform.
        span: its samples.
        text: the manifest's text of it.
        speaker_id: its speaker; None if nobody is named.
        overlap_share: share of it in which others talk too; None without turns.
    """

    channel: int | None
    span: Span
    text: str | None
    speaker_id: str | None = None
    overlap_share: float | None = None


def pieces_of(waveforms: Mapping[int | None, Waveform], settings: Settings, text: str | None) -> list[Piece]:
    """Cut a recording into utterances, in the order of their starts, then of their channels.

    A text of the whole recording is that of its only utterance; no part of it can be assigned to one of several.

    Args:
        waveforms: float32 [num_samples] by channel.
    Raises: RejectedRow NO_SPEECH when no channel has speech; a channel without speech has no utterances beside others.
    """
    spans: list[tuple[Span, int | None]] = []
    silent: RejectedRow | None = None
    has_text = text is not None and len(waveforms) == 1
    for channel, waveform in waveforms.items():
        try:
            spans += [(span, channel) for span in cut(waveform, cuts_of(settings), has_text=has_text)]
        except RejectedRow as error:
            if error.reason != Reason.NO_SPEECH:
                raise
            silent = silent or error
    if silent is not None and not spans:
        raise silent
    spans.sort(key=lambda each: (each[0].start, each[1] or 0))
    return [Piece(channel, span, text if len(spans) == 1 else None) for span, channel in spans]


def pieces_by_speaker(waveform: Waveform, settings: Settings, pin: ModelPin) -> list[Piece]:
    """Cut a recording without a text at pauses and changes of speaker; one in which nobody is found is cut as usual.

    Args:
        pin: the speaker model.
    Raises: RejectedRow NO_SPEECH; JobError when this node has another speaker model.
    """
    spans = speaker_spans(waveform, cuts_of(settings), speaker_encoder(pin).embed)
    if not spans:
        return pieces_of({None: waveform}, settings, None)
    return [Piece(None, span, None, f"S{speaker + 1}") for span, speaker in spans]


def cuts_of(settings: Settings) -> Cuts:
    """Return how the settings cut recordings."""
    return Cuts(
        segmentation=settings.segmentation,
        max_s=settings.max_segment_s,
        min_s=settings.min_segment_s,
        window_s=settings.window_s,
        hop_s=settings.hop_s,
    )
