"""The last step refuses what is not a whole shard, and writes what is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from pipeline.config.settings import SCHEMA_VERSION
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.parts import committed_parts, read_receipt
from pipeline.dataset.plan import write_plan
from pipeline.errors import JobError, Reason, Reject, Stage
from pipeline.manifest.hash_buckets import id_keys
from pipeline.manifest.staging import Staging
from pipeline.schema import DIMENSIONS, EMOTIONS, utterance_schema
from pipeline.shard.commit import finish
from pipeline.shard.context import Work
from pipeline.shard.work_table import WORK_SCHEMA
from pipeline.storage.access import AudioRoots
from pipeline.storage.store import LocalStore
from tests.support.manifests import jsonl
from tests.support.pins import pins

MODELS = pins(fusion_en="ab" * 32)


def work_of(folder: Path, count: int, **flags: object) -> Work:
    manifest = jsonl(
        folder / "m.jsonl", *({"id": f"r{n}", "audio": f"/a/{n}.wav", "text": "t", "take": n} for n in range(count))
    )
    config = load_config(
        None, {"manifest": [str(manifest)], "output": str(folder / "out"), "embeddings": "audio", **flags}
    )
    staging = Staging(folder)
    staging.read([str(manifest)], lambda rows: (rows, {}))
    plan = write_plan(
        LocalStore(folder / "out"), 1, staging.select([], id_keys([])),
        settings=config.settings(precision="fp32", asr_compute_type="float32"), models=MODELS,
        embedding_widths={"audio_embedding": 2}, manifests=["m"], size=ShardSize(100, 1e9), needs_text=True,
    )  # fmt: skip
    assert plan is not None
    return Work(str(folder / "out"), plan, AudioRoots.parse(("/a",), []))


def recognised(*lines: tuple[int, int, str | None]) -> pa.Table:
    """Row, segment and reason of each line, as `recognise` leaves them."""
    count = len(lines)
    records = [
        {
            "row": r, "segment_index": s, "start_s": 1.5 * s, "end_s": 1.5 * s + 1.25, "language": "en", "text": "t",
            "text_source": "asr", "reject": why and {"reason": why, "detail": f"{why} it is", "stage": "decode", "attempts": 3},
        }
        for r, s, why in lines
    ]  # fmt: skip
    table = pa.Table.from_pylist(records, schema=WORK_SCHEMA).drop_columns(["waveform", "sample_bytes", "identity"])
    scores = [pa.array(np.full(count, 1 / 7, np.float32)) for _ in EMOTIONS]
    for name, column in {
        "label": pa.array([None if why else "happy" for *_, why in lines], pa.string()),
        "emotion": pa.array([None if why else "joy" for *_, why in lines], pa.string()),
        "label_scores": pa.array([[("happy", 0.5)]] * count, pa.map_(pa.string(), pa.float32())),
        "labels": pa.nulls(count, pa.list_(pa.string())),
        **{name: pa.nulls(count, pa.float32()) for name in DIMENSIONS},
        "confidence": pa.array(np.full(count, 0.5, np.float32)),
        "margin": pa.array(np.full(count, 0.25, np.float32)),
        "truncated": pa.array([False] * count),
        "scores": pa.StructArray.from_arrays(scores, names=list(EMOTIONS)),
        "audio_embedding": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2 * count, np.float32)), 2),
    }.items():
        table = table.append_column(name, column)
    return table


def run(work: Work, *lines: tuple[int, int, str | None], **options: float):
    return finish(work, next(work.plan.shards()), recognised(*lines), {"prepare": 1.0}, **options)


@pytest.mark.parametrize(
    "lines",
    [
        [(0, 0, None), (1, 0, None)],
        [(0, 0, None), (2, 0, None), (2, 1, None)],
        [(0, 0, None), (1, 0, None), (2, 0, None), (3, 0, None)],
        [(0, 0, "NOT_FOUND")],
    ],
)
def test_a_table_that_is_not_the_shard_is_not_committed(tmp_path, lines):
    """Fails if a row lost or added between the steps is committed as a whole shard."""
    work = work_of(tmp_path, 3)
    with pytest.raises(JobError, match=r"shard 000001-000000 has \d of 3 rows before"):
        run(work, *lines)
    assert not (tmp_path / "out" / "utterances").exists()


def test_a_line_that_is_there_twice_is_not_committed(tmp_path):
    """Fails if an utterance doubled between the steps gets into the output, where ids are unique."""
    with pytest.raises(JobError):
        run(work_of(tmp_path, 2), (0, 0, None), (1, 0, None), (1, 0, None))
    assert not (tmp_path / "out" / "utterances").exists()


def test_what_is_written(tmp_path):
    """Fails if the part's schema, rows or receipt are not those of plan and table, in whatever order lines come."""
    work = work_of(tmp_path, 4)
    finished = run(work, (3, 0, None), (1, 1, None), (0, 0, None), (1, 0, None), (2, 0, "TOO_SHORT"))
    assert (finished.won, finished.rows, finished.utterances, finished.rejects) == (True, 4, 4, ("TOO_SHORT",))
    assert finished.audio_s == pytest.approx(5.0) and set(finished.stage_s) >= {"prepare", "commit"}
    parts = committed_parts(work.store, [work.plan])[work.plan.plan]
    table = pq.read_table(Path(work.output) / parts[0])
    assert sorted(table["utterance_id"].to_pylist()) == ["r0#0000", "r1#0000", "r1#0001", "r3#0000"]
    assert dict(zip(table["recording_id"].to_pylist(), table["take"].to_pylist(), strict=True)) == {
        "r0": 0,
        "r1": 1,
        "r3": 3,
    }
    assert set(table["emotion"].to_pylist()) == {"joy"} and set(table["label"].to_pylist()) == {"happy"}
    assert set(table["model"].to_pylist()) == {"mean-en:abababababab@fp32"}
    expected = utterance_schema({"audio_embedding": 2}, "float32", work.plan.extra, version=SCHEMA_VERSION)
    assert table.schema.remove_metadata().equals(expected.remove_metadata())
    receipt = read_receipt(work.store, parts[0])
    assert (receipt.rows, receipt.utterances, receipt.config_hash) == (4, 4, work.plan.config_hash)
    assert list(receipt.rejects) == [(2, Reject(Reason.TOO_SHORT, "TOO_SHORT it is", Stage.DECODE, attempts=3))]
    assert receipt.models == MODELS and receipt.stage_s["prepare"] == 1.0 and receipt.versions["torch"]


def test_one_reject_of_a_recording_rejects_it_once(tmp_path):
    """Fails if a recording of which two utterances failed has two rejects, or keeps the third."""
    finished = run(work_of(tmp_path, 2), (0, 0, None), (0, 1, "INTERNAL"), (0, 2, "INTERNAL"), (1, 0, None))
    assert (finished.utterances, finished.rejects) == (1, ("INTERNAL",))


@pytest.mark.parametrize(("rows", "failed", "sick"), [(3, 3, False), (4, 4, True), (50, 5, False), (50, 6, True)])
def test_how_many_unforeseen_failures_are_too_many(tmp_path, rows, failed, sick):
    """Fails if the bound is not three rows and a tenth of the shard, whichever is more, or nobody can lift it."""
    work = work_of(tmp_path, rows)
    lines = [(n, 0, "INTERNAL" if n < failed else None) for n in range(rows)]
    if sick:
        with pytest.raises(JobError, match=rf"{failed} of {rows} rows .*INTERNAL, .*--max-reject-rate 1"):
            run(work, *lines)
        assert not (tmp_path / "out" / "utterances").exists()
        assert run(work, *lines, max_denied=1.0).won
    else:
        assert run(work, *lines).won


@pytest.mark.parametrize("reason", ["NOT_FOUND", "DECODER_CRASH", "TIMEOUT", "OUT_OF_MEMORY"])
def test_what_is_the_files_fault_is_never_too_much(tmp_path, reason):
    """Fails if files that are gone, or that the decoder dies of in its own process, fail the job."""
    assert run(work_of(tmp_path, 20), *((n, 0, reason) for n in range(20))).rejects == (reason,) * 20
