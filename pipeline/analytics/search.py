"""Search queries: the embedding of an utterance, a recording or a sentence, by the model that made the rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray

from pipeline.audio.limits import AudioLimits
from pipeline.audio.sandbox import sandbox
from pipeline.dataset.plan import Plan
from pipeline.dataset.reader import Rows, reading
from pipeline.errors import ConfigError, RejectedRow, did_you_mean
from pipeline.models import roles
from pipeline.pins import Role, Task, languages
from pipeline.redaction import without_query
from pipeline.schema import EMBEDDINGS
from pipeline.storage.fetch import fetch


@dataclass(frozen=True, slots=True)
class Query:
    """Embedding to search for.

    Attributes:
        column: one of `schema.EMBEDDINGS`.
        vector: float32 [D].
        model: `model` of the comparable rows; embeddings of different models or languages share no space.
        itself: id of the query utterance, which is excluded from the results; empty for other queries.
    """

    column: str
    vector: NDArray[np.float32]
    model: str
    itself: str = ""


def query_by_utterance(rows: Rows, utterance_id: str, column: str | None) -> Query:
    """Return a query for the embedding of an utterance; by default the first of `EMBEDDINGS` in the output.

    Raises: ConfigError when no finished run has the utterance, or it has no such embedding.
    """
    column = column or next(iter(_embeddings(rows)), "audio_embedding")
    _require_column(rows, column)
    with reading():
        dataset, itself = rows.utterances(), ds.field("utterance_id") == utterance_id
        # ids first: a scan with the embedding column would decode every embedding
        places = dataset.scanner(columns=["__filename"], filter=itself).to_table()["__filename"].to_pylist()
        files = [file for file in dataset.get_fragments() if file.path in places]
        tables = [file.to_table(schema=dataset.schema, columns=[column, "model"], filter=itself) for file in files]
        matches = [row for table in tables for row in table.to_pylist()]
    if not matches:
        raise ConfigError(
            f"no finished run has an utterance {utterance_id!r}; ids end in their segment, as in call-7#0000"
        )
    vector, model = matches[0][column], matches[0]["model"]
    if vector is None:
        raise ConfigError(f"utterance {utterance_id!r} has no {column}")
    return Query(column, np.array(vector, np.float32), model, itself=utterance_id)


def query_by_audio(rows: Rows, audio: str, language: str | None, column: str | None) -> Query:
    """Return a query for the voice in an audio file, embedded by the model that made the rows. Loads that model.

    Raises: ConfigError for a file that cannot be used, or an embedding other than `audio_embedding`.
    """
    plan, language = _embedder(rows, language, column, option="--audio", makes="audio_embedding")
    limits = AudioLimits(max_bytes=plan.settings.max_bytes, max_duration_s=plan.settings.max_duration_s)
    try:
        waveform = sandbox().decode(fetch(audio, max_bytes=limits.max_bytes), limits=limits)
    except RejectedRow as rejected:
        raise ConfigError(f"--audio {without_query(audio)}: {rejected.detail}") from rejected
    recogniser = roles.Loaded(plan.models, settings=plan.settings, device="cpu").recogniser_for(language)
    embedding = recogniser.recognise([waveform], [""]).audio_embedding
    if embedding is None:
        raise ConfigError(f"--audio needs a model that reads audio; mode {plan.settings.mode} reads only text")
    return Query("audio_embedding", embedding[0], roles.fingerprint(plan.models, plan.settings, language))


def query_by_text(rows: Rows, text: str, language: str | None, column: str | None) -> Query:
    """Return a query for a sentence, embedded by the model that made the rows. Loads that model.

    Raises: ConfigError for an embedding other than `text_embedding`, or when the output has none.
    """
    plan, language = _embedder(rows, language, column, option="--text", makes="text_embedding")
    import torch

    from pipeline.models.sentence import TextModel

    encoder = plan.models.get(Role(Task.SENTENCE_ENCODER, language))
    checkpoint = roles.pinned_checkpoint(encoder or plan.models[Role(Task.EMOTION, language)])
    model = TextModel(checkpoint, classify=encoder is None, device=torch.device("cpu"))
    return Query(
        "text_embedding", model.run([text]).embedding[0], roles.fingerprint(plan.models, plan.settings, language)
    )


def _embedder(rows: Rows, language: str | None, column: str | None, *, option: str, makes: str) -> tuple[Plan, str]:
    """Return a plan that records the model, and the language."""
    if column not in (None, makes):
        raise ConfigError(f"{option} searches the {makes} only; to search the {column}, give an utterance with --like")
    _require_column(rows, makes)
    plans = {each: plan for plan in rows.plans for each in languages(plan.models)}
    if language is None and len(plans) == 1:
        language = next(iter(plans))
    if language is None:
        raise ConfigError(f"{option}: choose with --language which of {', '.join(sorted(plans))} to search")
    if language not in plans:
        raise ConfigError(f"no finished run has a model for language {language!r}{did_you_mean(language, plans)}")
    return plans[language], language


def _require_column(rows: Rows, column: str) -> None:
    existing = _embeddings(rows)
    if column not in existing:
        others = f"it has {', '.join(existing)}" if existing else "it was written without embeddings"
        raise ConfigError(f"the output has no {column}: {others}; see --mode and --embeddings of jobs.annotate")


def _embeddings(rows: Rows) -> list[str]:
    columns = rows.schema().names
    return [name for name in EMBEDDINGS if name in columns]
