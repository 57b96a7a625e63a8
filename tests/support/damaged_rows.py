"""Damage to the content of parts: receipt, ids, values. The files stay readable. See `tests/support/damages.py`."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.verify.invariants import Invariant
from pipeline.schema import EMOTIONS
from tests.support.damages import DEEP, SHALLOW, column, first, part, receipt_in, rewrite, shows

__all__ = ["DEEP", "SHALLOW"]


# -- receipts and rows


@shows(Invariant.RECEIPT_ROWS)
def a_receipt_counts_wrong(out: Path) -> None:
    """A shard of which a row was lost before its receipt was made."""
    rewrite(part(out, 0), rows=3)


@shows(Invariant.RECEIPT_IDS)
def a_receipt_is_about_other_ids(out: Path) -> None:
    """A part made from a manifest that has changed since it was planned."""
    rewrite(part(out, 0), ids_sha256="0" * 64)


@shows(Invariant.RECEIPT_CONFIG)
def a_part_is_of_another_configuration(out: Path) -> None:
    """A worker that ran with other weights."""
    rewrite(part(out, 0), config_hash="0" * 64)


@shows(Invariant.RECEIPT_MISSING)
def a_reject_has_an_unknown_reason(out: Path) -> None:
    """A reason that is not in the closed list."""
    ((row, reject),) = receipt_in(part(out, 1)).rejects
    rewrite(part(out, 1), rejects=((row, dataclasses.replace(reject, reason="WHATEVER")),))


@shows(Invariant.RECEIPT_REJECTS)
def a_reject_is_of_no_row(out: Path) -> None:
    """A reject with the row's number in the manifest instead of the shard; it rejects nothing."""
    ((row, reject),) = receipt_in(part(out, 1)).rejects
    rewrite(part(out, 1), rejects=((row, reject), (99, reject)))


@shows(Invariant.SCHEMA)
def a_column_has_another_type(out: Path) -> None:
    """A part of an older version of this pipeline."""
    rewrite(part(out, 0), lambda rows: rows.set_column(2, "audio", rows["audio"].cast(pa.large_string())))


@shows(Invariant.SCHEMA)
def the_id_column_is_not_there(out: Path) -> None:
    """A part whose columns were renamed; nothing can be said of its rows."""
    rewrite(part(out, 0), lambda rows: rows.drop_columns(["recording_id"]))


@shows(Invariant.RECEIPT_UTTERANCES, Invariant.ROW_LOST)
def a_row_is_dropped(out: Path) -> None:
    """A filter applied to the output in place."""
    rewrite(part(out, 0), lambda rows: rows.slice(1))


@shows(Invariant.ROW_LOST, Invariant.REPORT_COUNTS)
def a_row_is_dropped_and_the_receipt_agrees(out: Path) -> None:
    """A row lost before the part was written: only the plan knows of it."""
    rewrite(part(out, 0), lambda rows: rows.slice(1), utterances=1)


@shows(Invariant.RECEIPT_UTTERANCES, Invariant.UTTERANCE_TWICE)
def a_row_is_doubled(out: Path) -> None:
    """A batch that was written again after an error."""
    rewrite(part(out, 0), lambda rows: pa.concat_tables([rows, rows.slice(0, 1)]))


@shows(Invariant.RECEIPT_UTTERANCES, Invariant.SEGMENT_GAP)
def a_segment_is_dropped(out: Path) -> None:
    """Half a recording that looks like a whole one."""
    rewrite(part(out, 2), lambda rows: rows.filter(pc.not_equal(rows["utterance_id"], "r1#0001")))


@shows(Invariant.UTTERANCE_ID)
def an_utterance_id_is_anothers(out: Path) -> None:
    """Ids made from a row's position after a sort."""
    rewrite(part(out, 0), column("utterance_id", lambda ids: ids[::-1]))


@shows(Invariant.ROW_UNKNOWN, Invariant.ROW_LOST, Invariant.UTTERANCE_ID)
def an_utterance_is_of_another_shard(out: Path) -> None:
    """A worker that mixed the rows of two shards."""
    rewrite(part(out, 0), column("recording_id", first("r9")))


@shows(Invariant.ROW_TWICE, Invariant.REJECTS_ROWS, Invariant.REPORT_COUNTS)
def a_row_is_an_utterance_and_a_reject(out: Path) -> None:
    """A retry that succeeded beside the reject of the first try."""
    ((_, reject),) = receipt_in(part(out, 1)).rejects
    rewrite(part(out, 0), rejects=((0, reject),))


# -- values


@shows(Invariant.PART_UNREADABLE, deep=True)
def a_byte_of_a_page_is_flipped(out: Path) -> None:
    """A disk that changes bits: the file opens, its footer is right, a number in it is not."""
    path = part(out, 0)
    content = bytearray(path.read_bytes())
    footer = pq.read_metadata(path)
    names = [footer.row_group(0).column(n).path_in_schema for n in range(footer.num_columns)]
    place = footer.row_group(0).column(names.index("audio_embedding.list.element"))
    content[place.data_page_offset + place.total_compressed_size - 3] ^= 1
    path.write_bytes(bytes(content))


@shows(Invariant.SCORES, deep=True)
def scores_do_not_add_up(out: Path) -> None:
    """Logits written where probabilities belong, below the highest score."""

    def halved(scores: list[dict[str, float]]) -> list[dict[str, float]]:
        best = max(scores[0].values())
        return [{name: s if s == best else s / 8 if s < sorted(scores[0].values())[-2] else s
                 for name, s in scores[0].items()}, *scores[1:]]  # fmt: skip

    rewrite(part(out, 0), column("scores", halved))


@shows(Invariant.SCORES, deep=True)
def a_score_is_no_number(out: Path) -> None:
    """A model that overflowed in half precision."""
    rewrite(part(out, 0), column("scores", lambda scores: [{**scores[0], "fear": math.nan}, *scores[1:]]))


@shows(Invariant.SCORES, Invariant.CONFIDENCE, Invariant.LABEL, deep=True)
def label_scores_are_another_rows(out: Path) -> None:
    """Maps that were joined to rows by position after a sort."""
    rewrite(part(out, 0), column("label_scores", lambda maps: maps[::-1]))


@shows(Invariant.SCORES, Invariant.CONFIDENCE, Invariant.LABEL, deep=True)
def label_scores_are_missing(out: Path) -> None:
    """A writer that does not know the column."""
    rewrite(part(out, 0), column("label_scores", first(None)))


@shows(Invariant.SCORES, deep=True)
def an_emotion_of_the_model_has_no_score(out: Path) -> None:
    """A label that was mapped to nothing while scores were summed."""
    rewrite(part(out, 0), column("scores", lambda scores: [{**scores[0], "fear": None}, *scores[1:]]))


@shows(Invariant.SCORES, deep=True)
def a_dimension_is_infinite(out: Path) -> None:
    """A regression that overflowed in half precision."""
    rewrite(part(out, 0), column("arousal", first(math.inf)))


@shows(Invariant.LABEL, deep=True)
def labels_above_the_threshold_are_not_those_of_the_scores(out: Path) -> None:
    """A threshold on logits."""
    rewrite(part(out, 0), column("labels", first(list(EMOTIONS))))


@shows(Invariant.LABEL, deep=True)
def a_mapped_label_is_called_unmapped(out: Path) -> None:
    """An emotion dropped by a map that the settings do not record."""
    rewrite(part(out, 0), column("emotion", first(None)))
    rewrite(part(out, 0), column("emotion_null_reason", first("unmapped")))


@shows(Invariant.LABEL, deep=True)
def a_labelled_row_is_called_a_regression(out: Path) -> None:
    """A reason of a model without classes."""
    rewrite(part(out, 0), column("emotion", first(None)))
    rewrite(part(out, 0), column("emotion_null_reason", first("regression")))


@shows(Invariant.CONFIDENCE, deep=True)
def confidence_is_another_rows(out: Path) -> None:
    """Columns that were sorted apart from each other."""
    rewrite(part(out, 0), column("confidence", lambda values: values[::-1]))


@shows(Invariant.LABEL, deep=True)
def a_label_is_another_emotion(out: Path) -> None:
    """A mapping from labels to emotions that was shifted by one."""
    rewrite(
        part(out, 0), column("emotion", lambda emotions: ["fear" if emotions[0] != "fear" else "joy", *emotions[1:]])
    )


@shows(Invariant.EMBEDDING, deep=True)
def an_embedding_is_infinite(out: Path) -> None:
    """A number that does not fit into half precision."""
    rewrite(part(out, 0), column("audio_embedding", first([0.0, math.inf, 0.0, 0.0])))


@shows(Invariant.EMBEDDING, deep=True)
def an_embedding_is_missing(out: Path) -> None:
    """A row that was labelled and not embedded."""
    rewrite(part(out, 0), column("audio_embedding", first(None)))


@shows(Invariant.LANGUAGE, deep=True)
def results_go_with_the_reason_that_there_are_none(out: Path) -> None:
    """A reason written for every segment of another language, also where a model covers it."""
    rewrite(part(out, 0), column("emotion_null_reason", first("language")))


@shows(Invariant.LANGUAGE, Invariant.TRANSCRIPT, deep=True)
def a_labelled_row_is_said_to_have_no_speech(out: Path) -> None:
    """The reason of a clip without voice, written for one that was labelled."""
    rewrite(part(out, 0), column("emotion_null_reason", first("no_speech")))


@shows(Invariant.LANGUAGE, deep=True)
def a_language_has_the_probability_of_a_logit(out: Path) -> None:
    """Logits written where probabilities belong."""
    rewrite(part(out, 0), column("language_prob", first(2.5)))


@shows(Invariant.LANGUAGE, deep=True)
def a_labelled_row_names_no_model(out: Path) -> None:
    """Lineage lost on the way."""
    rewrite(part(out, 0), column("model", first(None)))


@shows(Invariant.LABEL, deep=True)
def an_emotion_that_is_there_has_a_reason_why_it_is_not(out: Path) -> None:
    """A reason of another row."""
    rewrite(part(out, 0), column("emotion_null_reason", first("abstained")))


@shows(Invariant.TRANSCRIPT, deep=True)
def a_flag_has_an_unknown_value(out: Path) -> None:
    """A flag of a later version."""
    rewrite(part(out, 0), column("asr_flag", first("whispered")))


@shows(Invariant.RUN_ID, deep=True)
def a_row_names_another_run(out: Path) -> None:
    """Lineage filled in from the job instead of the plan."""
    rewrite(part(out, 0), column("run_id", first("000002")))


@shows(Invariant.PLAN_COLUMNS, deep=True)
def a_manifest_column_is_another_rows(out: Path) -> None:
    """Results joined to manifest rows by position after a sort."""
    rewrite(part(out, 0), column("take", lambda values: values[::-1]))
