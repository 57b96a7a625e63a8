"""The whole job as a user runs it, on disk."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.engine import reading, source
from pipeline.schema import EMOTIONS
from tests.support.corpus import AUDIO, broken_rows, model_options, rejects, rows, utterances, write_manifest
from tests.support.shared_ray import SharedRay

GOOD, HEARD = 12, 6


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, checkpoints: Path, asr: Path, shared_ray: SharedRay
) -> tuple[Path, Path, list[str], str]:
    """One run over good rows with and without text, broken rows and broken lines. Returns folder, output, options, stdout."""
    folder = tmp_path_factory.mktemp("job")
    clash = [{**row, "text": text} for row, text in zip(rows(1, prefix="clash") * 2, ("one", "two"), strict=True)]
    long = {"id": "long", "audio": str(AUDIO / "en_16k_long.flac"), "language": "en", "speaker": "s0"}
    records = [
        *rows(GOOD), *rows(HEARD, with_text=False, prefix="heard"), *broken_rows(folder), *clash, rows(1)[0], long,
        '{"id": "cut short", "audio": ', "not json",
    ]  # fmt: skip
    manifest = write_manifest(folder / "manifest.jsonl", records)
    options = [*model_options(checkpoints, asr), "--partition-by", "language,speaker", "--shard-rows", "4"]
    lineage = folder / "openlineage.yml"
    lineage.write_text(f"transport: {{type: file, log_file_path: {folder}/events.jsonl, append: true}}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENLINEAGE_CONFIG", str(lineage))
        patch.setattr(source, "SHARDS_PER_BLOCK", 3)  # as in a large job, a stage spreads the shards,
        patch.setattr(reading, "LARGE_BYTES", 0)  # and tasks read the manifest
        done = shared_ray(manifest, folder / "out", *options)
    return folder, folder / "out", options, done.stdout


def test_every_row_is_an_utterance_or_a_reject(finished: tuple[Path, Path, list[str], str]) -> None:
    """Fails if a row is lost, doubled or rejected for another reason than its own."""
    _, output, _, stdout = finished
    found = utterances(output)
    recordings = set(found["recording_id"].to_pylist())
    good = {r["id"] for r in rows(GOOD)} | {r["id"] for r in rows(HEARD, prefix="heard")} | {"long"}
    assert recordings == good
    assert len(set(found["utterance_id"].to_pylist())) == found.num_rows
    refused = rejects(output).to_pylist()
    by_id = {r["recording_id"]: r["reason"] for r in refused if str(r["recording_id"]).startswith("bad-")}
    assert by_id == {name: name.removeprefix("bad-") for name in by_id} and len(by_id) == 7
    assert [r["reason"] for r in refused if r["recording_id"] == "clash-000"] == ["DUPLICATE_ID"] * 2
    assert sorted(r["line"] for r in refused if r["reason"] == "MALFORMED") == [
        GOOD + HEARD + 7 + 5,
        GOOD + HEARD + 7 + 6,
    ]
    assert len(refused) == 7 + 2 + 2
    assert f"{len(good)} annotated + 11 rejected" in stdout


def test_lineage_counts_what_the_report_counts(finished: tuple[Path, Path, list[str], str]) -> None:
    """Fails if a job sends no events, or its last event has other counts than its report."""
    folder, output, _, _ = finished
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["eventType"] for event in events if event["eventType"] != "RUNNING"] == ["START", "COMPLETE"]
    counts = events[-1]["run"]["facets"]["speechEmotion_counts"]
    report = json.loads((output / "_runs/000001/report.json").read_text())
    named = {"rows": "rows", "annotated": "recordings_annotated", "utterances": "utterances"}
    assert {name: counts[name] for name in named} == {name: report[of] for name, of in named.items()}
    assert counts["rejectsByReason"] == report["rejects_by_reason"]
    columns = {field["name"] for field in events[-1]["outputs"][0]["facets"]["schema"]["fields"]}
    assert columns == set(utterances(output).column_names)


def test_what_a_row_says(finished: tuple[Path, Path, list[str], str]) -> None:
    """Fails if text source, scores, embeddings, lineage or pass-through columns are not what was put in."""
    _, output, _, _ = finished
    table = utterances(output)
    for row in table.to_pylist():
        given = row["recording_id"].startswith("clip")
        assert row["text_source"] == ("manifest" if given else "asr")
        assert (row["asr_avg_logprob"] is None) == (given or row["text"] == "")
        scores = row["scores"]
        assert sum(s for s in scores.values() if s is not None) == pytest.approx(1.0, abs=1e-4)
        assert (scores["surprise"] is None) == (row["language"] == "es")
        assert row["emotion"] == max((e for e in EMOTIONS if scores[e] is not None), key=lambda e: scores[e])
        assert row["confidence"] == pytest.approx(scores[row["emotion"]], abs=1e-6)
        assert row["run_id"] == "000001" and row["model"].startswith(f"mean-{row['language']}:")
        assert row["duration_s"] == pytest.approx(row["end_s"] - row["start_s"])
        assert len(row["fused_embedding"]) == len(row["audio_embedding"]) == len(row["text_embedding"]) == 768
    clips = table.filter(pa.compute.starts_with(table["recording_id"], "clip"))
    assert clips["take"].to_pylist() == list(range(GOOD)) and clips.schema.field("take").type == pa.int64()
    assert set(clips["manifest_label"].to_pylist()) == {"happy"}
    mean = (np.stack(clips["audio_embedding"].to_pylist()) + np.stack(clips["text_embedding"].to_pylist())) / 2
    np.testing.assert_allclose(mean, np.stack(clips["fused_embedding"].to_pylist()), atol=1e-5)


def test_a_long_recording_is_cut_and_its_parts_lie_side_by_side(finished: tuple[Path, Path, list[str], str]) -> None:
    """Fails if parts overlap, leave the recording, are over 30 s, or their indices have holes."""
    _, output, _, _ = finished
    parts = [r for r in utterances(output).to_pylist() if r["recording_id"] == "long"]
    assert len(parts) > 5
    assert [p["segment_index"] for p in parts] == list(range(len(parts)))
    ends = [0.0, *(p["end_s"] for p in parts)]
    assert all(p["start_s"] >= end - 1e-9 for p, end in zip(parts, ends, strict=False))
    assert all(0 < p["duration_s"] <= 30.0 + 1e-6 for p in parts) and ends[-1] <= 172.5


def test_four_readers_see_the_same_rows(finished: tuple[Path, Path, list[str], str]) -> None:
    """Fails if DuckDB, pandas, Polars or pyarrow.dataset cannot read the folder as it lies, partitions included."""
    _, output, _, _ = finished
    folder = output / "utterances"
    expected = utterances(output)
    ids = expected["utterance_id"].to_pylist()
    by_duckdb = duckdb.sql(
        f"select utterance_id, language, speaker, scores.joy from read_parquet('{folder}/**/*.parquet') order by 1"
    )
    assert [row[0] for row in by_duckdb.fetchall()] == ids
    where = f"select count(*) from read_parquet('{folder}/**/*.parquet', hive_partitioning=true) where language = 'es'"
    languages = expected["language"].to_pylist()
    assert duckdb.sql(where).fetchall() == [(languages.count("es"),)]
    assert sorted(pd.read_parquet(folder)["utterance_id"]) == ids
    lazy = pl.scan_parquet(f"{folder}/**/*.parquet", hive_partitioning=True).filter(pl.col("language") == "es")
    assert lazy.select("utterance_id").collect().height == languages.count("es")
    dataset = ds.dataset(folder, partitioning="hive")
    assert dataset.to_table(filter=ds.field("speaker") == "s1", columns=["utterance_id"]).num_rows == sum(
        speaker == "s1" for speaker in expected["speaker"].to_pylist()
    )
    refused = f"select count(*) from read_parquet('{output}/rejects/*.parquet')"
    assert duckdb.sql(refused).fetchall() == [(11,)]


def test_the_report_adds_up(finished: tuple[Path, Path, list[str], str]) -> None:
    """Fails if the run record's counts, models or settings are not those of the run."""
    _, output, _, _ = finished
    report = json.loads((output / "_runs/000001/report.json").read_text())
    assert report["rows"] == report["recordings_annotated"] + report["rejected"]
    assert report["utterances"] == utterances(output).num_rows
    assert report["rejected"] == sum(report["rejects_by_reason"].values()) == 11
    assert set(report["models"]) == {
        f"{kind}/{code}" for kind in ("fusion", "sentence_encoder", "asr") for code in ("en", "es")
    }
    assert all(len(model["sha256"]) == 64 for model in report["models"].values())
    assert report["settings"]["mode"] == "mean" and report["audio_hours"] > 0
    assert set(report["stage_seconds"]) >= {"prepare", "transcribe", "recognise"}
    part = next((output / "utterances").rglob("*.parquet"))
    receipt = json.loads(pq.read_metadata(part).metadata[b"speech_emotion.receipt"])
    assert receipt["config_hash"] == report["config_hash"]


def test_running_it_again_does_nothing(finished: tuple[Path, Path, list[str], str], shared_ray: SharedRay) -> None:
    """Fails if a finished dataset is touched, or rejects are logged a second time."""
    folder, output, options, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*")}
    done = shared_ray(folder / "manifest.jsonl", output, *options)
    assert "Nothing new" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in output.rglob("*")} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (["--embedding-dtype", "float16"], "embedding_dtype"),
        (["--segmentation", "none"], "segmentation"),
        (["--beam-size", "5"], "beam_size"),
    ],
)
def test_other_settings_on_the_same_output_are_refused(
    finished: tuple[Path, Path, list[str], str], change: list[str], named: str, shared_ray: SharedRay
) -> None:
    """Fails if two kinds of rows can get into one dataset, or the refusal does not say which setting differs."""
    folder, output, options, _ = finished
    started = time.monotonic()
    done = shared_ray(folder / "manifest.jsonl", output, *options, *change, expect=2)
    assert f"{named}: " in done.stderr and "in the output" in done.stderr
    assert time.monotonic() - started < 60


def test_other_models_on_the_same_output_are_refused(
    finished: tuple[Path, Path, list[str], str], checkpoints: Path, tmp_path: Path, shared_ray: SharedRay
) -> None:
    """Fails if a changed checkpoint under the same option goes unnoticed."""
    folder, output, options, _ = finished
    changed = tmp_path / "mean-en"
    changed.mkdir()
    for file in (checkpoints / "mean-en").iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    at = options.index("--emotion-model") + 1
    options = [*options[:at], f"en={changed}", *options[at + 1 :]]
    done = shared_ray(folder / "manifest.jsonl", output, *options, expect=2)
    assert "fusion/en" in done.stderr and "models" in done.stderr


def test_a_grown_manifest_does_only_the_new_rows(
    finished: tuple[Path, Path, list[str], str], tmp_path: Path, shared_ray: SharedRay
) -> None:
    """Fails if old rows are done again, or new ones are not done."""
    _, original, options, _ = finished
    output = tmp_path / "moved"
    shutil.copytree(original, output)
    before = utterances(output)
    grown = write_manifest(tmp_path / "grown.jsonl", [*rows(GOOD), *rows(3, prefix="late")])
    done = shared_ray(grown, output, *options)
    assert "run 000002: 3 rows = 3 annotated + 0 rejected" in done.stdout
    after = utterances(output)
    old = after.filter(pa.compute.equal(after["run_id"], "000001"))
    assert old.equals(before)
    assert after.num_rows == before.num_rows + 3
