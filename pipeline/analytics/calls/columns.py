"""Columns of the files of call metrics, and their descriptions."""

from __future__ import annotations

from pipeline.schema import DIMENSIONS, Column

CALL, SPEAKER = "call", "speaker"
"""Values of `scope`: a row of a whole call, or of one speaker in it."""
QUARTERS = ("first", "second", "third", "fourth")
"""Quarters of a call's length; fields of `by_quarter`."""
LEAST_OVERLAP_S = 0.5
"""Shortest overlap that counts as an interruption. Cuts at pauses leave 0.2 s around speech, which overlaps without anybody
talking at once."""

CALL_COLUMNS = {
    "scope": Column("", "`call`, a row of the whole call, or `speaker`, of one speaker in it"),
    "speaker": Column("", "the speaker, from `--speaker`", "`scope` is `call`, or the utterances have none"),
    "length_s": Column(
        "s",
        "length of the call, from 0 to the end of its last recording by the manifest's duration, or else of its last utterance",
        "no time is known",
    ),
    "talk_s": Column("s", "time in which the speaker, or anybody, talks; overlapping utterances count once"),
    "silence_s": Column("s", "`length_s - talk_s`", "as `length_s`"),
    "overlap_s": Column("s", "part of `talk_s` in which somebody else, or two speakers, talk"),
    "interruptions": Column(
        "",
        f"utterances that begin while another speaker's has at least {LEAST_OVERLAP_S} s to go, and that end after it; of the "
        "speaker who interrupts",
    ),
    "utterances": Column("", "utterances"),
    "words": Column("", "words of their texts, separated by spaces"),
    "worded_s": Column("s", "duration of the utterances with a text"),
    "loudness_power_s": Column(
        "s",
        "mean square of the samples times the duration, added up: 10 log10(`loudness_power_s` / `loudness_s`) is dB below full "
        "scale",
    ),
    "loudness_s": Column("s", "duration of the utterances with `loudness_dbfs`"),
    "by_emotion": Column("", "utterances with each emotion (int64)"),
    "speech_s_by_emotion": Column("s", "duration of the utterances with each emotion (double)"),
    "by_quarter": Column(
        "", "utterances with each emotion in each quarter of the call, by the middle of the utterance (int64)"
    ),
    "first_emotion": Column("", "emotion of the first utterance that has one", "none has"),
    "last_emotion": Column("", "emotion of the last utterance that has one", "none has"),
    "transitions": Column(
        "", "consecutive utterances, of the speaker or of anybody, by the first's emotion, then the second's (int64)"
    ),
    **{
        column: description
        for name in DIMENSIONS
        for column, description in (
            (f"{name}_sum", Column("", f"sum of `{name}`")),
            (f"{name}_count", Column("", f"utterances with `{name}`")),
        )
    },
    "runs": Column(
        "",
        "number of runs whose utterances the row counts; of the rows of a call in several files the largest is right",
    ),
    "run_id": Column("", "number of the run whose file has the row"),
}
"""Columns of the files, after those that identify the call. All but emotions and identities are sums, and can be added up."""
