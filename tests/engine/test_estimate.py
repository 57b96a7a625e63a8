"""What a dry run says a run will need."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.dataset.packing import ASSUMED_DURATION_S, ShardSize
from pipeline.dataset.plan import write_plan
from pipeline.engine import estimate as estimate_module
from pipeline.engine.estimate import Corpus, measure, models_tflop
from pipeline.storage.store import open_store
from tests.support.pins import job_settings
from tests.support.selections import selection_of

SIZE = ShardSize(rows=8, audio_s=100.0)


def table(duration_s: list[float | None], text: list[str | None] | None = None) -> pa.Table:
    columns = {"duration_s": pa.array(duration_s, pa.float64()), "language": ["en"] * len(duration_s)}
    return pa.table({**columns, "text": pa.array(text or [None] * len(duration_s), pa.string())})


def corpus_of(*tables: pa.Table, mode: str = "mean", segmentation: str = "auto") -> Corpus:
    return measure(tables, mode=mode, segmentation=segmentation, group_by=["language"], size=SIZE)


def estimate(corpus: Corpus, mode: str) -> dict[str, str]:
    return estimate_module.estimate(corpus, mode, on_cards="full", on_cores="short")


@pytest.mark.parametrize(
    ("clip_s", "window", "audio_hours"), [(30.0, "full", 5033.0), (4.0, "full", 1189.0), (4.0, "short", 4700.0)]
)
def test_the_arithmetic_of_a_card(clip_s, window, audio_hours):
    """Fails if an H200 hour comes to more than 10 % off the design's figure, which counts the decoder's memory as well."""
    work = models_tflop(corpus_of(table([clip_s] * 100)), "mean", window)
    assert 100 * clip_s * estimate_module.CARDS["H200"] / work == pytest.approx(audio_hours, rel=0.1)


def test_short_windows_cost_what_they_encode():
    """Fails if a window of 30 s costs something else when it is short, or cores are counted with the window of cards."""
    whole = corpus_of(table([29.0, 30.0]))
    assert models_tflop(whole, "mean", "short") == pytest.approx(models_tflop(whole, "mean"), rel=0.01)
    clips = corpus_of(table([4.0] * 1_000))
    cores = [
        estimate_module.estimate(clips, "mean", on_cards="full", on_cores=window)["cpu_core_time_without_gpus"]
        for window in ("full", "short")
    ]
    assert cores[0].startswith("6.1") and cores[1].startswith("1.5")
    assert models_tflop(clips, "mean") == pytest.approx(4.08 * models_tflop(clips, "mean", "short"), rel=0.05)


def test_hours_are_of_known_and_assumed_durations():
    """Fails if rows without a duration count for nothing, or nobody is told that theirs are assumed."""
    corpus = corpus_of(table([1800.0, None]), table([1800.0]))
    assert (corpus.rows, corpus.rows_without_duration, corpus.known_s) == (3, 1, 3600.0)
    assert corpus.audio_s == 3600.0 + ASSUMED_DURATION_S
    assert "1 rows without a duration taken for 15 s" in estimate(corpus, "mean")["audio_hours_expected"]
    assert "without" not in estimate(corpus_of(table([1800.0])), "mean")["audio_hours_expected"]


@pytest.mark.parametrize(
    ("mode", "segmentation", "text", "utterances", "windows"),
    [
        ("mean", "auto", None, 4, 4),
        ("mean", "auto", "words", 1, 0),
        ("mean", "none", None, 1, 4),
        ("mean", "vad", "words", 4, 4),
        ("audio", "auto", None, 4, 0),
    ],
)
def test_what_is_cut_and_what_is_heard(mode, segmentation, text, utterances, windows):
    """Fails if a row of 100 s is counted otherwise than a run cuts and transcribes it."""
    corpus = corpus_of(table([100.0], [text]), mode=mode, segmentation=segmentation)
    assert (corpus.utterances, corpus.windows) == (utterances, windows)
    assert (corpus.heard_s > 0) is (windows > 0)


def test_modes_need_what_their_models_need():
    """Fails if texts are paid for in mode audio, or an encoder in mode text."""
    given = table([4.0] * 10, ["words"] * 10)
    audio, text, mean = (models_tflop(corpus_of(given, mode=mode), mode) for mode in ("audio", "text", "mean"))
    assert text == pytest.approx(0.03) and audio == pytest.approx(2.4, rel=0.01) and mean == pytest.approx(audio + text)


def test_objects_are_those_that_a_plan_has(tmp_path: Path):
    """Fails if the parts that are foretold are not those of the plan of the same rows: by rows, by audio, by folders."""
    speakers = [f"s{n % 3}" for n in range(60)]
    duration_s = [25.0 if n % 3 == 1 else 1.0 for n in range(60)]
    staging = tmp_path / "staging"
    staging.mkdir()
    selection = selection_of([f"r{n}" for n in range(60)], staging, speaker=speakers, duration_s=duration_s)
    corpus = measure(selection.tables(), mode="mean", segmentation="auto", group_by=["speaker", "language"], size=SIZE)
    plan = write_plan(
        open_store(str(tmp_path / "out")), 1, selection, settings=job_settings(partition_by="speaker"), models={},
        embedding_widths={}, manifests=["m"], size=SIZE, needs_text=True,
    )  # fmt: skip
    assert plan is not None and corpus.shards == plan.num_shards == 3 + 5 + 3
    assert "about 11 files of utterances" in estimate(corpus, "mean")["objects"]


def test_a_cluster_is_suggested_where_one_machine_is_too_slow():
    """Fails if a small corpus is told to rent cards, or a large one to wait for months."""
    assert "one machine; 1 CPU core would" in estimate(corpus_of(table([4.0] * 10)), "mean")["suggested_cluster"]
    huge = Corpus(rows=10**9, audio_s=4e9, utterances=10**9, windows=10**9, heard_s=4e9, encoder_tflop=0.24e9, shards=1)
    said = estimate(huge, "mean")
    assert "x H200" in said["suggested_cluster"] and "not measured" in said["gpu_hours_at_least"]
    assert said["driver_plans_for"].startswith("8.4")


def test_cores_beside_a_card_are_those_that_feed_it():
    """Fails if cards are suggested with cores that cannot keep up: a fast card eats long recordings faster than four decode."""
    long, short = corpus_of(table([1800.0] * 100_000)), corpus_of(table([4.0] * 1_000_000))
    assert "2 x H200 with 8 CPU cores each or 12 x A10" in estimate(long, "mean")["suggested_cluster"]
    assert "1 x H200 with 4 CPU cores each or 2 x A10" in estimate(short, "mean")["suggested_cluster"]


def test_an_empty_manifest_needs_nothing():
    """Fails if nothing to do is an error."""
    assert corpus_of(table([])).shards == 0 and estimate(corpus_of(), "text")["cpu_core_time_without_gpus"].startswith(
        "0"
    )
