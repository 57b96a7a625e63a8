"""A small finished output, made by the real planner, `finish` and `publish` from made-up results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.config import load_config
from pipeline.config.settings import SCHEMA_VERSION, Settings
from pipeline.dataset.compatibility import claim_dataset, settle_types
from pipeline.dataset.history import History
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import committed_parts
from pipeline.dataset.plan import Plan, load_plans, read_shard, write_plan
from pipeline.dataset.publish import publish
from pipeline.errors import Reason, Reject, Stage
from pipeline.manifest.staging import Staging
from pipeline.schema import DIMENSIONS, EMOTIONS
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.shard.work_table import WORK_SCHEMA
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import Store, open_store
from tests.support.manifests import jsonl
from tests.support.pins import pins

MODELS = pins(fusion_en="ab" * 32)
REJECTED = ("r4", "r7")
"""Recordings that are rejected when they are annotated."""
LONG = "r1"
"""The recording with three segments; the others have one."""
FIRST = [
    {"id": f"r{n}", "audio": f"/a/{n}.wav", "text": f"Words {n}.", "speaker": "ab"[n % 2], "take": n} for n in range(12)
]
SECOND = [{"id": f"s{n}", "audio": f"/a/s{n}.wav", "text": "t", "speaker": "c", "take": None} for n in range(3)]
BAD = {"id": "bad", "audio": 5}
"""A row that is refused while planning."""


FLAGS: dict[str, object] = {}
"""Options beside the usual ones; a test sets them for outputs of another shape."""

VERSION = SCHEMA_VERSION
"""Schema version of the output; a test may set it for an older one."""

WIDTH = 4
"""Width of the embeddings; a test may set it too."""


def settings_of() -> Settings:
    usual = {"manifest": ["m"], "output": "o", "partition_by": "speaker", "embeddings": "audio"}
    return load_config(None, {**usual, **FLAGS}).settings(precision="fp32", asr_compute_type="float32", version=VERSION)


def plan_rows(
    store: Store, folder: Path, records: Sequence[dict[str, object]], *, held: bool = True, shard_rows: int = 2
) -> Plan:
    """Write the next plan of an output, with shards of `shard_rows`. `held=False` plans ids of earlier plans once more."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = jsonl(folder / "m.jsonl", *records)
    staging = Staging(folder)
    staging.read([str(manifest)], lambda rows: (rows, {}))
    plans = load_plans(store)
    staging.extra = settle_types(staging.extra, plans)
    claim_dataset(store, settings_of())
    plan = write_plan(
        store, len(plans) + 1, staging.select(*History(store).held(plans if held else [])), settings=settings_of(), models=MODELS,
        embedding_widths=dict.fromkeys(settings_of().embeddings, WIDTH), manifests=[str(manifest)],
        size=ShardSize(shard_rows, 1e9), needs_text=True,
    )  # fmt: skip
    assert plan is not None
    return plan


def recognised(rows: pa.Table, seed: int) -> pa.Table:
    """Return a table like that of `recognise`: one utterance for each row, three for LONG, and rejects for REJECTED."""
    lines = [(n, s) for n, i in enumerate(rows["recording_id"].to_pylist()) for s in range(3 if i == LONG else 1)]
    ids = [rows["recording_id"][n].as_py() for n, _ in lines]
    records = [
        {
            "row": n, "segment_index": s, "start_s": 1.5 * s, "end_s": 1.5 * s + 1.25, "language": "en", "text": "t",
            "text_source": "asr", "asr_flag": "none",
            **({"reject": Reject(Reason.NOT_FOUND, f"no {i}", Stage.FETCH).document()} if i in REJECTED else {}),
        }
        for (n, s), i in zip(lines, ids, strict=True)
    ]  # fmt: skip
    table = pa.Table.from_pylist(records, schema=WORK_SCHEMA).drop_columns(["waveform", "sample_bytes", "identity"])
    random = np.random.default_rng(seed)
    scores = random.dirichlet(np.ones(len(EMOTIONS)), len(lines)).astype(np.float32)
    ranked = np.sort(scores, axis=1)
    labels = [None if i in REJECTED else EMOTIONS[best] for i, best in zip(ids, scores.argmax(axis=1), strict=True)]
    label_scores = [
        None if i in REJECTED else list(zip(EMOTIONS, row.tolist(), strict=True))
        for i, row in zip(ids, scores, strict=True)
    ]
    embedding = pa.array(random.normal(size=WIDTH * len(lines)).astype(np.float32))
    for name, column in {
        "label": pa.array(labels, pa.string()),
        "emotion": pa.array(labels, pa.string()),
        "label_scores": pa.array(label_scores, pa.map_(pa.string(), pa.float32())),
        "labels": pa.nulls(len(lines), pa.list_(pa.string())),
        **{name: pa.nulls(len(lines), pa.float32()) for name in DIMENSIONS},
        "confidence": pa.array(ranked[:, -1].copy()),
        "margin": pa.array(ranked[:, -1] - ranked[:, -2]),
        "truncated": pa.array([False] * len(lines)),
        "scores": pa.StructArray.from_arrays([pa.array(column.copy()) for column in scores.T], names=list(EMOTIONS)),
        "audio_embedding": pa.FixedSizeListArray.from_arrays(embedding, WIDTH),
    }.items():
        table = table.append_column(name, column)
    return table


def annotate(output: str, plan: Plan, *, shards: Sequence[int] | None = None) -> None:
    """Commit the parts of a plan, or of some of its shards."""
    work = Work(output, plan, AudioRoots.parse(("/a",), []))
    for shard in plan.shards():
        if shards is None or shard.number in shards:
            assert finish(work, shard, recognised(read_shard(work.store, shard), shard.number), {"prepare": 1.0}).won


def publish_plan(store: Store, plan: Plan) -> None:
    report = {"run_id": plan.plan, "config_hash": plan.config_hash}
    publish(store, plan, committed_parts(store, [plan])[plan.plan], report)


def finished_output(output: str, folder: Path) -> Store:
    """Write two published plans, of 6 and 2 shards, with a planning reject, two rejects of the run, and two partitions."""
    store = open_store(output)
    for number, records in enumerate([[*FIRST, BAD], SECOND]):
        plan = plan_rows(store, folder / str(number), records)
        annotate(output, plan)
        publish_plan(store, plan)
    return store
