"""Descriptions of the columns of summaries, in docs/columns.md and in the metadata of the files."""

from __future__ import annotations

from pipeline.schema import DIMENSIONS, Column

_NO_CONFIDENCE = "no utterance has one"
_NO_FURTHER = "never; column absent without `--also`"
_SINCE_3 = "column absent before schema version 3"

SUMMARY_COLUMNS = {
    "run_id": Column("", "number of the run"),
    "recordings": Column("", "recordings with an utterance in the group"),
    "utterances": Column("", "utterances"),
    "speech_s": Column("s", "duration of the utterances", "none has a duration"),
    "length_s": Column(
        "s", "duration of the recordings: the manifest's, or up to the end of the last utterance", "none is known"
    ),
    "by_emotion": Column("", "utterances with each emotion (int64)"),
    "speech_s_by_emotion": Column(
        "s", "duration of the utterances with each emotion (double)", "a field: no such utterance"
    ),
    "transitions": Column(
        "", "neighbouring utterances of a recording by the first's emotion, then the second's (int64)"
    ),
    "first_emotion": Column("", "recordings that begin with each emotion (int64)"),
    "last_emotion": Column("", "recordings that end with each emotion (int64)"),
    "confidence_sum": Column("", "sum of `confidence`", _NO_CONFIDENCE),
    "confidence_min": Column("0 to 1", "smallest `confidence`", _NO_CONFIDENCE),
    "confidence_max": Column("0 to 1", "largest `confidence`", _NO_CONFIDENCE),
    "timed_speech_s": Column(
        "s",
        "`speech_s` of recordings whose duration the manifest gives",
        "there is none; column absent in files of earlier versions",
    ),
    "timed_length_s": Column("s", "`length_s` of those recordings", "as `timed_speech_s`"),
    "confidence_count": Column(
        "", "utterances with a `confidence`", "never; column absent in files of earlier versions"
    ),
    "by_label": Column("", "utterances with each label of the models (int64)", f"none has a label; {_SINCE_3}"),
    "by_null_reason": Column(
        "", "utterances without an emotion by `emotion_null_reason` (int64)", f"never; {_SINCE_3}"
    ),
    **{
        column: description
        for name in DIMENSIONS
        for column, description in (
            (f"{name}_sum", Column("", f"sum of `{name}`", f"no utterance has one; {_SINCE_3}")),
            (f"{name}_count", Column("", f"utterances with `{name}`", f"never; {_SINCE_3}")),
        )
    },
    "by_model": Column(
        "",
        "the same sums of each further model, a struct by its name: `by_emotion`, `confidence_sum`, `confidence_count`, "
        "`by_label`, `by_null_reason` and those of the dimensions; `compared`, utterances to which it and the main model give "
        "an emotion; `agreed`, those with the same one",
        _NO_FURTHER,
    ),
}
"""Columns of the files in `summaries/`, after those of the group."""

MERGED_COLUMNS = {
    "recordings": Column("", "sum over the runs"),
    "utterances": Column("", "sum over the runs"),
    "speech_s": Column("s", "sum over the runs", "none has a duration"),
    "length_s": Column("s", "sum over the runs", "none is known"),
    "speech_share": Column("0 to 1", "`timed_speech_s` over `timed_length_s`", "no duration in the manifest"),
    "share": Column("0 to 1", "share of the utterances with each emotion (double)"),
    "share_s": Column("0 to 1", "share of their seconds (double)", "`speech_s` is 0 or null"),
    "confidence": Column("0 to 1", "mean `confidence`", _NO_CONFIDENCE),
    "confidence_min": Column("0 to 1", "smallest `confidence`", _NO_CONFIDENCE),
    "confidence_max": Column("0 to 1", "largest `confidence`", _NO_CONFIDENCE),
    "transitions": Column("", "sums over the runs (int64)"),
    "changes": Column("0 to 1", "share of neighbouring utterances whose emotions differ", "no neighbours"),
    "opens_with": Column("", "emotion with which recordings most often begin", "no emotion"),
    "closes_with": Column("", "emotion with which recordings most often end", "no emotion"),
    "by_label": Column("", "sums over the runs (int64)", _SINCE_3),
    "null_share": Column("0 to 1", "share of the utterances without an emotion, by reason (double)", _SINCE_3),
    **{f"mean_{name}": Column("0 to 1", f"mean `{name}`", f"no utterance has one; {_SINCE_3}") for name in DIMENSIONS},
    "by_model": Column(
        "",
        "results of each further model, a struct by its name: `share`, `confidence`, `by_label`, `null_share`, means of the "
        "dimensions; `compared`, utterances to which it and the main model give an emotion; `agreement`, the share of them "
        "with the same one",
        _NO_FURTHER,
    ),
}
"""Columns of the file that `summarize --to` writes, after those of the group."""
