"""Shards annotated step by step: plans of one shard, a test's own models, and their results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from pipeline.config import load_config
from pipeline.dataset.compatibility import claim_dataset
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Shard, write_plan
from pipeline.dataset.publish import publish
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Staging
from pipeline.models import roles
from pipeline.models.transcription import Transcript
from pipeline.pins import ModelPin, Role
from pipeline.shard.commit import Finished, finish
from pipeline.shard.context import Work
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from pipeline.shard.transcribe import transcribe
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import LocalStore
from tests.support.golden import PARITY
from tests.support.manifests import jsonl
from tests.support.pins import by_role

pytestmark = pytest.mark.usefixtures("one_thread")
EMOTION = {"angry": "anger", "happy": "joy", "sad": "sadness"}
CLIP = str(PARITY / "audio" / "en_16k_pcm16.wav")


@cache
def pinned(chosen: tuple[tuple[str, str], ...], mode: str) -> tuple[dict[Role, ModelPin], dict[str, int]]:
    return roles.pin(by_role(dict(chosen)), mode)


def models_of(checkpoints: Path, mode: str, languages: Sequence[str], asr: Path | None = None) -> dict[str, str]:
    chosen = {}
    for language in languages:
        chosen[f"fusion/{language}"] = str(checkpoints / f"{mode}-{language}")
        if mode in ("mean", "concat", "multihead"):
            chosen[f"sentence_encoder/{language}"] = str(checkpoints / f"bert-{language}")
        if asr is not None:
            chosen[f"asr/{language}"] = str(asr)
    return chosen


def work_of(
    folder: Path, records: Sequence[dict[str, object]], chosen: dict[str, str], mode: str = "mean", **flags: object
) -> Work:
    """Write a plan of one shard at `folder/out`, as the driver would make it."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jsonl(folder / "m.jsonl", *records)
    config = load_config(None, {"manifest": [str(manifest)], "output": str(folder / "out"), "mode": mode, **flags})
    staging = Staging(folder)
    staging.read([str(manifest)], lambda rows: (rows, {}), audio_optional=mode == "text")
    models, widths = pinned(tuple(sorted(chosen.items())), mode)
    plan = write_plan(
        LocalStore(folder / "out"), 1, staging.select([], id_keys([])),
        settings=config.settings(precision="fp32", asr_compute_type="float32"), models=models,
        embedding_widths={name: width for name, width in widths.items() if name in config.embeddings},
        manifests=[str(manifest)], size=ShardSize(1000, 1e9), needs_text=mode != "audio",
    )  # fmt: skip
    assert plan is not None
    return Work(str(folder / "out"), plan, AudioRoots.parse((), [str(manifest)]))


def parts(work: Work) -> pa.Table:
    table = ds.dataset(f"{work.output}/utterances", partitioning="hive").to_table()
    return table.sort_by("utterance_id")


def committed(work: Work) -> list[Path]:
    return [path for path in Path(work.output, "utterances").rglob("*") if path.is_file()]


def by_hand(
    work: Work, transcriber: object | None = None, recogniser_for: Callable[[str], object] | None = None
) -> tuple[pa.Table, Any]:
    """Run the steps with a test's own models. Returns: the recognised table and the result of `finish`."""
    (shard,) = work.plan.shards()
    table = prepare(work, shard)
    if transcriber is not None:
        table = transcribe(work, shard, table, lambda _language: transcriber)
    if recogniser_for is None:
        recogniser_for = roles.Loaded(work.plan.models, settings=work.plan.settings, device="cpu").recogniser_for
    table = recognise(work, shard, table, recogniser_for)
    return table, finish(work, shard, table, {})


def annotate_shard(work: Work, shard: Shard) -> Finished:
    """Run all steps of one shard in this process; models are loaded for it and released afterwards."""
    loaded = roles.Loaded(work.plan.models, settings=work.plan.settings, device="cpu")
    table = prepare(work, shard)
    if work.plan.needs_asr:
        table = transcribe(work, shard, table, loaded.transcriber_for)
    return finish(work, shard, recognise(work, shard, table, loaded.recogniser_for), {})


def causes(table: pa.Table, name: str = "reason") -> list[Any]:
    """Return one field of the reject of each line of a work table, None where the line is not rejected."""
    return [reject and reject[name] for reject in table["reject"].to_pylist()]


def published(work: Work) -> LocalStore:
    """Publish a plan whose one shard is committed. Returns: its output."""
    store, plan = LocalStore(Path(work.output)), work.plan
    claim_dataset(store, plan.settings)
    report = {"run_id": plan.plan, "config_hash": plan.config_hash}
    publish(store, plan, committed_parts(store, [plan])[plan.plan], report)
    return store


def assert_same(one: pa.Table, two: pa.Table) -> None:
    """Assert that the rows are the same; scores and embeddings may differ as they do between batches."""
    assert one.schema.equals(two.schema) and one.num_rows == two.num_rows > 0
    near = ["scores", "label_scores", "confidence", "margin", "audio_embedding", "text_embedding", "fused_embedding"]
    near = [name for name in near if name in one.column_names]
    assert one.drop_columns(near).equals(two.drop_columns(near))
    for name in near:
        values = [table[name].to_pylist() for table in (one, two)]
        if name in ("scores", "label_scores"):
            values = [[list(dict(scores).values()) for scores in column] for column in values]
        np.testing.assert_allclose(*(np.array(column, dtype=float) for column in values), atol=1e-5, err_msg=name)


def row(number: int | str, audio: str = CLIP, **more: object) -> dict[str, object]:
    return {"id": f"r{number}", "audio": audio, "text": f"Sentence {number}.", "language": "en", **more}


class FailingRecogniser:
    """The real recogniser, except that it fails at some texts."""

    def __init__(self, real: object, texts: set[str], error: Exception) -> None:
        self.real, self.texts, self.error = real, texts, error
        self.calls: list[int] = []

    def recognise(self, waveforms, texts):
        self.calls.append(len(texts))
        if self.texts & set(texts):
            raise self.error
        return self.real.recognise(waveforms, texts)


@cache
def real_recogniser(checkpoints: Path, mode: str = "mean"):
    models, _ = pinned(tuple(sorted(models_of(checkpoints, mode, ["en"]).items())), mode)
    settings = load_config(None, {"manifest": ["m"], "output": "o", "mode": mode}).settings(
        precision="fp32", asr_compute_type="float32"
    )
    return roles.Loaded(models, settings=settings, device="cpu").recogniser_for("en")


class FakeTranscriber:
    """A transcriber that returns one language and one sentence for any audio."""

    def __init__(self, language: str | None, text: str = "heard words") -> None:
        self.language, self.text = language, text
        self.asked: list[tuple[int, str | None]] = []

    def transcribe(self, waveform, language):
        self.asked.append((len(waveform), language))
        return Transcript(self.text, language or self.language, -0.5, 0.1, 1.25)

    def transcribe_many(self, waveforms, languages):
        return [self.transcribe(*each) for each in zip(waveforms, languages, strict=True)]
