"""Options of how recordings are cut into utterances."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from pipeline import MAX_SEGMENT_S
from pipeline.config.models import ModelChoice
from pipeline.config.option import MODELS, Option
from pipeline.config.settings import Channels, Segmentation


class SegmentOptions(ModelChoice):
    """Models and segments."""

    channels: Annotated[
        Channels,
        Option(
            MODELS,
            "of rows without a channel: mix, the mean of all channels; split, utterances of each channel; auto: split where "
            "channels carry different speech and the row has no text",
        ),
    ] = "mix"

    turns: Annotated[
        str | None,
        Option(
            MODELS,
            "manifest column with the turns of speakers, the URI of an RTTM file or a list of {start_s, end_s, speaker, text}: "
            "recordings are cut by them",
            metavar="COLUMN",
        ),
    ] = Field(default=None, min_length=1)
    speakers: Annotated[
        bool,
        Option(
            MODELS,
            "write speaker_id: cut recordings without text at pauses and changes of speaker, and tell speakers apart by their "
            "voices; voice embeddings identify people, see docs/responsible-use.md",
        ),
    ] = False
    speaker_model: Annotated[
        str,
        Option(
            MODELS,
            "model of --speakers: resemblyzer, the installed package; a file of its weights; or onnx:FILE",
            metavar="X",
        ),
    ] = Field(default="resemblyzer", min_length=1)
    segmentation: Annotated[
        Segmentation,
        Option(
            MODELS,
            "auto: rows with text or up to 30 s are one utterance, longer ones are cut at pauses; none: whole files; "
            "vad: always cut",
        ),
    ] = "auto"
    max_segment_s: Annotated[
        float, Option(MODELS, "longest utterance of a recording that is cut at pauses, up to 30", metavar="S")
    ] = Field(default=MAX_SEGMENT_S, ge=1, le=MAX_SEGMENT_S)
    min_segment_s: Annotated[
        float,
        Option(
            MODELS,
            "join shorter utterances of a recording that is cut at pauses to a neighbour within --max-segment-s",
            metavar="S",
        ),
    ] = Field(default=0.0, ge=0, le=MAX_SEGMENT_S)
    window_s: Annotated[
        float | None,
        Option(MODELS, "instead of at pauses, cut every recording into windows of this length, up to 30", metavar="S"),
    ] = Field(default=None, ge=0.5, le=MAX_SEGMENT_S)
    hop_s: Annotated[
        float | None,
        Option(MODELS, "with --window-s, time between the starts of two windows (default: the length)", metavar="S"),
    ] = Field(default=None, ge=0.1, le=MAX_SEGMENT_S)

    def bounds_s(self) -> tuple[float | None, float | None]:
        """Return the longest and shortest utterance, in seconds, into which recordings are cut; None for no bound."""
        if self.window_s is not None:
            return self.window_s, self.window_s
        return (None if self.segmentation == "none" else self.max_segment_s), None

    @model_validator(mode="after")
    def _turns_of_mixed_recordings(self) -> Self:
        if self.turns and self.channels != "mix":
            raise ValueError(f"--turns cuts by speaker, --channels {self.channels} by channel: give one of them")
        if self.turns and self.mode == "text":
            raise ValueError("--turns are spans of audio, which mode text does not use; leave it out")
        return self

    @model_validator(mode="after")
    def _speakers_of_mixed_recordings(self) -> Self:
        if "speaker_model" in self.model_fields_set and not self.speakers:
            raise ValueError("--speaker-model needs --speakers")
        if not self.speakers:
            return self
        if self.turns or self.channels != "mix":
            other = "--turns" if self.turns else f"--channels {self.channels}"
            raise ValueError(f"--speakers and {other} say who speaks in different ways: give one of them")
        if self.mode == "text" or self.segmentation == "none" or self.window_s is not None:
            raise ValueError(
                "--speakers cuts recordings where the speaker changes, which mode text, --segmentation none and "
                "--window-s do not; give one of them"
            )
        return self

    @model_validator(mode="after")
    def _possible_cuts(self) -> Self:
        if self.min_segment_s > self.max_segment_s:
            raise ValueError(f"--min-segment-s {self.min_segment_s:g} exceeds --max-segment-s {self.max_segment_s:g}")
        if self.hop_s is not None and self.hop_s > (self.window_s or 0.0):
            raise ValueError("--hop-s needs --window-s, and at most its value: audio between windows would be left out")
        changed = self.min_segment_s > 0 or self.max_segment_s != MAX_SEGMENT_S
        if (self.window_s is not None and (changed or self.segmentation != "auto")) or (
            changed and self.segmentation == "none"
        ):
            raise ValueError(
                "--segmentation none, --window-s, and --max-segment-s or --min-segment-s exclude each other: choose how to cut"
            )
        return self
