"""The utterances nearest to one, to a recording or to a sentence, by the cosine of an embedding.

Exact: every embedding of the same model is looked at, streamed from the files, and nothing but the best is kept. A Lance table
that `jobs.compact --publish lance` made can be asked instead; with an index its answer is approximate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.analytics.publish import storage_options
from pipeline.analytics.tables import Rows, asking, optional, quoted
from pipeline.audio.limits import AudioLimits
from pipeline.audio.sandbox import sandbox
from pipeline.errors import ConfigError, RejectedRow, did_you_mean
from pipeline.leftovers import cause
from pipeline.models import slots
from pipeline.plan import Plan
from pipeline.roots import without_query
from pipeline.schema import EMBEDDINGS
from pipeline.storage import fetch

SHOWN = ("utterance_id", "audio", "start_s", "end_s", "emotion", "confidence", "text")


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for.

    Attributes:
        column: of `schema.EMBEDDINGS`.
        vector: float32 [D].
        model: the `model` of the rows that can be compared with it: embeddings of two models, or languages, share no space.
        itself: the utterance it is, which is no answer.
    """

    column: str
    vector: NDArray[np.float32]
    model: str
    itself: str = ""


def like(rows: Rows, utterance_id: str, column: str | None) -> Query:
    """By the embedding of an utterance; by default that of its voice, else of its words.

    Raises: ConfigError when no finished run has the utterance, or it has no such embedding.
    """
    there = [name for name in EMBEDDINGS if name in rows.schema().names]
    column = column or next(iter(there), "audio_embedding")
    _require_column(rows, column)
    with asking(utterances=rows.utterances()) as connection:
        query = f"SELECT {quoted(column)}, model FROM utterances WHERE utterance_id = $id LIMIT 1"
        found = connection.sql(query, params={"id": utterance_id}).fetchall()
    if not found:
        raise ConfigError(
            f"no finished run has an utterance {utterance_id!r}; ids end in their segment, as in call-7#0000"
        )
    vector, model = found[0]
    if vector is None:
        raise ConfigError(f"utterance {utterance_id!r} has no {column}")
    return Query(column, np.array(vector, np.float32), model, itself=utterance_id)


def heard(rows: Rows, audio: str, language: str | None, column: str | None) -> Query:
    """By the voice in a file, embedded by the very model that made the rows. Costs loading that model.

    Raises: ConfigError for a file that cannot be used, or an embedding other than of the voice.
    """
    plan, language = _embedder(rows, language, column, option="--audio", makes="audio_embedding")
    limits = AudioLimits(max_bytes=plan.settings["max_bytes"], max_duration_s=plan.settings["max_duration_s"])
    try:
        waveform = sandbox().decode(fetch(audio, max_bytes=limits.max_bytes), limits=limits)
    except RejectedRow as rejected:
        raise ConfigError(f"--audio {without_query(audio)}: {rejected.detail}") from rejected
    recogniser = slots.Loaded(plan.models, settings=plan.settings, device="cpu").recogniser_for(language)
    embedding = recogniser.recognise([waveform], [""]).audio_embedding
    if embedding is None:
        raise ConfigError(f"mode {plan.settings['mode']} hears no audio")
    return Query("audio_embedding", embedding[0], slots.fingerprint(plan.models, plan.settings, language))


def read(rows: Rows, text: str, language: str | None, column: str | None) -> Query:
    """By a sentence, embedded by the very model that made the rows. Costs loading that model.

    Raises: ConfigError for an embedding other than of the words, or where no model read any.
    """
    plan, language = _embedder(rows, language, column, option="--text", makes="text_embedding")
    import torch

    from pipeline.models.sentence import TextModel

    encoder = plan.models.get(f"sentence_encoder/{language}")
    checkpoint = slots.pinned_checkpoint(encoder or plan.models[f"fusion/{language}"])
    model = TextModel(checkpoint, classify=encoder is None, device=torch.device("cpu"))
    return Query(
        "text_embedding", model.run([text]).embedding[0], slots.fingerprint(plan.models, plan.settings, language)
    )


def _embedder(rows: Rows, language: str | None, column: str | None, *, option: str, makes: str) -> tuple[Plan, str]:
    """The plan whose record names the model, and the language."""
    if column not in (None, makes):
        raise ConfigError(
            f"{option} can be compared with the {makes} alone; for {column} ask with --like and an utterance"
        )
    _require_column(rows, makes)
    plans = {slot.partition("/")[2]: plan for plan in rows.plans for slot in plan.models if slot.startswith("fusion/")}
    if language is None and len(plans) == 1:
        language = next(iter(plans))
    if language is None:
        raise ConfigError(f"{option}: say with --language which of {', '.join(sorted(plans))} it is in")
    if language not in plans:
        raise ConfigError(f"no finished run has a model for language {language!r}{did_you_mean(language, plans)}")
    return plans[language], language


def _require_column(rows: Rows, column: str) -> None:
    there = [name for name in EMBEDDINGS if name in rows.schema().names]
    if column not in there:
        has = f"it has {', '.join(there)}" if there else "its rows were written without any"
        raise ConfigError(f"the output has no {column}: {has}; --mode and --embeddings of jobs.annotate decide")


def nearest(
    rows: Rows, query: Query, *, top: int, where: str | None = None, columns: Sequence[str] = SHOWN
) -> pa.Table:
    """The `top` nearest utterances, nearest first, with their `similarity` (cosine, -1 to 1).

    Costs one pass over the embedding column. Memory: what Arrow reads ahead, whatever the number of rows.
    Raises: ConfigError for a column or condition that the rows do not have.
    """
    similarity = f"array_cosine_similarity({quoted(query.column)}, $vector::FLOAT[{len(query.vector)}])"
    sql = f"""
    SELECT similarity, {", ".join(map(quoted, columns))}
    FROM (SELECT *, {similarity} AS similarity FROM utterances WHERE {_condition(query, where)})
    WHERE NOT isnan(similarity) ORDER BY similarity DESC, utterance_id LIMIT {top:d}
    """
    with asking(utterances=rows.utterances()) as connection:
        return connection.sql(sql, params={"vector": query.vector.tolist()}).to_arrow_table()


def nearest_in_lance(
    table: str, query: Query, *, top: int, where: str | None = None, columns: Sequence[str] = SHOWN
) -> pa.Table:
    """As `nearest`, from a Lance table, by its index where the column has one.

    Raises: ConfigError when there is no such table, Lance is not installed, or the condition is none of Lance's SQL.
    """
    lance = optional("lance", extra="lance")
    wanted: dict[str, Any] = {"column": query.column, "q": query.vector, "k": top, "metric": "cosine"}
    try:
        opened = lance.dataset(table, storage_options=storage_options(table))
        found = opened.to_table(
            columns=[*columns, "_distance"], nearest=wanted, filter=_condition(query, where), prefilter=True
        )
    except (ValueError, OSError) as error:
        raise ConfigError(f"{without_query(table)} cannot be asked: {cause(error)}") from error
    similarity = pa.array(1 - found["_distance"].to_numpy())
    return found.select(list(columns)).add_column(0, "similarity", similarity)


def _condition(query: Query, where: str | None) -> str:
    parts = [
        f"model = {_literal(query.model)}",
        f"utterance_id <> {_literal(query.itself)}",
        f"{query.column} IS NOT NULL",
    ]
    return " AND ".join([*parts, *([f"({where})"] if where else [])])


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
