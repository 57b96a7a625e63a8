"""Figures and tables of a stress test, from predictions that are made up; its page; and the clips that are prepared."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import recall_score

from pipeline.analytics.report.page import render
from pipeline.analytics.stress.clips import CLIPS, CONDITION, LEVEL, RECORDING, REJECTS, claim, prepare, read_rows
from pipeline.analytics.stress.conditions import parse_conditions
from pipeline.analytics.stress.figures import Bootstrap, ccc, figure, uar
from pipeline.analytics.stress.outcome import Outcome, lines_of
from pipeline.analytics.stress.page import stress_page
from pipeline.analytics.stress.results import (
    Truth,
    clean_uar,
    compare,
    predictions_of,
    predictions_table,
    without_strangers,
)
from pipeline.audio.decode import decode
from pipeline.audio.limits import DEFAULT_LIMITS
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.shard.checksums import check_content
from pipeline.storage.store import open_store
from tests.analytics.test_report import Read
from tests.analytics.test_report_behind import links, members, totals
from tests.support.corpus import ROOT

CLASSES = ["anger", "joy", "neutral"]
VARIANTS = parse_conditions(["white_noise=20,0", "opus=6"])


def random_truth(count=60, speakers=6):
    random = np.random.default_rng(0)
    labels = tuple(random.choice(CLASSES, count))
    groups = np.arange(count) % speakers
    return Truth(tuple(f"clip-{n:03d}" for n in range(count)), labels, groups, {"arousal": random.uniform(0, 1, count)})


def run_of(truth, *, wrong, reject=(), silent=(), noise=0.1):
    """Utterances and rejects in which a share of the clips of each condition has another label than the true one."""
    random = np.random.default_rng(1)
    utterances, rejects = [], []
    for key, share in wrong.items():
        for place, name in enumerate(truth.ids):
            row = {RECORDING: name, CONDITION: key[0], LEVEL: key[1]}
            if (key, place) in reject:
                rejects.append({**row, "reason": "DAMAGED"})
                continue
            label = random.choice(CLASSES) if random.uniform() < share else truth.labels[place]
            arousal = float(np.clip(truth.dimensions["arousal"][place] + random.normal(0, noise + share), 0, 1))
            utterances.append({**row, "label": None if (key, place) in silent else label, "arousal": arousal})
    kinds = {LEVEL: pa.float64(), "arousal": pa.float64()}
    names = (RECORDING, CONDITION, LEVEL, "label", "arousal")
    table = pa.Table.from_pylist(utterances, pa.schema([(name, kinds.get(name, pa.string())) for name in names]))
    kept = pa.schema([(name, kinds.get(name, pa.string())) for name in (RECORDING, CONDITION, LEVEL, "reason")])
    return predictions_of(truth, table, pa.Table.from_pylist(rejects, kept))


WRONG = {("clean", None): 0.1, ("white_noise", 20.0): 0.2, ("white_noise", 0.0): 0.8, ("opus", 6.0): 0.1}


def rows_of(table, metric):
    return {(row["condition"], row["level"]): row for row in table.to_pylist() if row["metric"] == metric}


def test_figures_are_scikit_learns():
    """Fails if UAR, flips or CCC is computed otherwise than scikit-learn or Lin's formula does."""
    truth = random_truth()
    predictions = run_of(truth, wrong=WRONG)
    table = compare(truth, predictions, VARIANTS, resamples=0, seed=0)
    clean = predictions["clean", None]
    for key, found in predictions.items():
        expected = recall_score(truth.labels, found.labels, average="macro")
        assert rows_of(table, "uar")[key]["figure"] == pytest.approx(expected)
        assert rows_of(table, "uar")[key]["loss"] == pytest.approx(
            rows_of(table, "uar")["clean", None]["figure"] - expected
        )
        flips = np.mean([a != b for a, b in zip(clean.labels, found.labels, strict=True)])
        assert rows_of(table, "flips")[key]["figure"] == rows_of(table, "flips")[key]["loss"] == pytest.approx(flips)
        x, y = truth.dimensions["arousal"], found.dimensions["arousal"]
        lin = 2 * np.cov(x, y, ddof=0)[0, 1] / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)
        assert rows_of(table, "ccc_arousal")[key]["figure"] == pytest.approx(lin)


def test_no_clip_is_dropped_silently():
    """Fails if a rejected clip or one without a prediction counts as a flip, or is in no count."""
    truth = random_truth()
    key = ("white_noise", 0.0)
    predictions = run_of(truth, wrong=WRONG, reject={(key, 0), (key, 1)}, silent={(key, 2)})
    table = compare(truth, predictions, VARIANTS, resamples=0, seed=0)
    row = rows_of(table, "uar")[key]
    assert (row["clips"], row["rejected"], row["no_prediction"]) == (57, 2, 1)
    clean = predictions["clean", None]
    assert row["clean"] == pytest.approx(recall_score(truth.labels[3:], clean.labels[3:], average="macro"))
    listed = (
        predictions_table(truth, predictions, VARIANTS)
        .filter(pa.compute.field("condition") == "white_noise")
        .to_pylist()
    )
    assert len(listed) == 120
    assert [r["reject_reason"] for r in listed if r["level"] == 0][:3] == ["DAMAGED", "DAMAGED", None]
    assert [r["flipped"] for r in listed if r["level"] == 0][:3] == [None, None, None]


def test_intervals_draw_speakers_and_pair_the_runs():
    """Fails if clips are drawn instead of speakers, the runs are drawn apart, or the interval is not the percentile one."""
    truth = random_truth()
    predictions = run_of(truth, wrong=WRONG)
    row = rows_of(compare(truth, predictions, VARIANTS, resamples=400, seed=3), "uar")["white_noise", 0.0]
    random, differences = np.random.default_rng(3), []
    labels = [
        np.array(each)
        for each in (truth.labels, predictions["clean", None].labels, predictions["white_noise", 0.0].labels)
    ]
    for _ in range(400):
        drawn = np.concatenate([np.flatnonzero(truth.groups == group) for group in random.integers(0, 6, 6)])
        true, before, after = (each[drawn] for each in labels)
        differences.append(recall_score(true, before, average="macro") - recall_score(true, after, average="macro"))
    assert [row["low"], row["high"]] == pytest.approx(np.quantile(differences, [0.025, 0.975]).tolist())
    assert row["low"] > 0.2 and row["low"] < row["loss"] < row["high"]


def test_the_clean_run_is_compared_with_chance():
    """Fails if the UAR of the clean run is another figure than in the table, or its interval does not contain it."""
    truth = random_truth()
    predictions = run_of(truth, wrong=WRONG)
    clean = clean_uar(truth, predictions, resamples=200, seed=0)
    table = compare(truth, predictions, VARIANTS, resamples=0, seed=0)
    assert clean["value"] == rows_of(table, "uar")["clean", None]["figure"] and clean["chance"] == pytest.approx(1 / 3)
    assert clean["chance"] < clean["low"] < clean["value"] < clean["high"] <= 1


def test_one_speaker_has_no_interval():
    """Fails if an interval of no width is given where there is nothing to draw."""
    bootstrap = Bootstrap(np.zeros(3, np.int64), 100, 0)
    found = figure(
        uar(("joy", "joy", "fear"), ("joy", "fear", "fear")),
        uar(("joy",) * 3, ("joy",) * 3),
        np.ones(3, bool),
        bootstrap,
    )
    assert found["clean"] == 0.75 and found["loss"] == -0.25 and found["low"] is None


def test_constant_dimensions_have_no_ccc():
    """Fails if a division by zero gives NaN or an infinity in the results."""
    constant = ccc(np.full(4, 0.5), np.full(4, 0.5))
    found = figure(constant, constant, np.ones(4, bool), Bootstrap(np.arange(4), 10, 0))
    assert found == dict.fromkeys(("clean", "figure", "loss", "low", "high"))


def test_labels_that_no_model_knows_count_in_no_recall():
    """Fails if a corpus' own label lowers the recall of every condition, or leaves without being counted."""
    truth = random_truth()
    strange = Truth(truth.ids, ("calm", *truth.labels[1:]), truth.groups, {})
    known, counts = without_strangers(strange, run_of(truth, wrong=WRONG))
    assert counts == {"calm": 1} and known.labels == (None, *truth.labels[1:])


def outcome(truth, predictions):
    table = compare(truth, predictions, VARIANTS, resamples=50, seed=0)
    document = {
        "folder": "out?", "labels": "label<b>", "mode": "audio", "models": ["m"], "clips": len(truth.ids), "groups": 6, "seed": 0,
        "resamples": 50, "resample_by": "speaker", "interval": 0.95, "version": "0",
        "clean_uar": clean_uar(truth, predictions, resamples=50, seed=0),
        "warnings": ["2 < 3"],
        "results": table.to_pylist(),
    }  # fmt: skip
    return Outcome(document, table, predictions_table(truth, predictions, VARIANTS))


def test_page_is_one_file_with_every_condition():
    """Fails if the page loads anything, does not escape, or lacks a condition, its definition or its figures."""
    truth = random_truth()
    html = render(stress_page(outcome(truth, run_of(truth, wrong=WRONG)))).decode()
    assert html.count("<script") == 1 and "http" not in html.replace("http-equiv", "") and "src=" not in html
    assert "2 &lt; 3" in html and "label&lt;b&gt;" in html
    for name, meaning in (("white_noise", "White Gaussian noise"), ("opus", "Opus for speech")):
        assert f'<section id="{name}"' in html and meaning in html and f'aria-label="{name.replace("_", " ")}:' in html
    assert html.count("<svg") == 2 and "20 dB SNR" in html and "largest loss: white_noise 0 dB SNR" in html


def test_each_bar_lists_its_clips():
    """Fails if a bar lists the clips of another condition or level, leaves out a rejected one, or is no link."""
    truth, key = random_truth(), ("white_noise", 0.0)
    found = outcome(truth, run_of(truth, wrong=WRONG, reject={(key, 0)}))
    html = render(stress_page(found)).decode()
    listed, leads, table = members(html, "clips"), links(html), Read(html).tables["white_noise"]
    expected = {
        (row["level"], row["recording_id"], str(row["label"] or "\N{EN DASH}"), row["reject_reason"] or "\N{EN DASH}")
        for row in found.predictions.to_pylist() if row["condition"] == "white_noise"
    }  # fmt: skip
    drawn = [place for place, row in enumerate(table) if row[2] == "uar"]
    assert {
        (table[place][0], row[0], row[5], row[7]) for place in drawn for row in listed[f"white_noise-r{place}"]
    } == expected
    assert totals(html) == dict.fromkeys([*(f"white_noise-r{place}" for place in drawn), "opus-r2"], 60)
    assert set(leads) == set(totals(html)) and leads["opus-r2"].startswith("6 kbit/s: ")


def test_lines_tell_every_condition():
    """Fails if the terminal lacks a condition, an interval or a warning."""
    truth = random_truth()
    lines = list(lines_of(outcome(truth, run_of(truth, wrong=WRONG)).document))
    (row,) = [line for line in lines if line.startswith("white_noise") and " 0 dB SNR" in line]
    assert row.count("[") == 3 and "warning: 2 < 3" in lines
    assert sum(line.startswith(("clean", "white_noise", "opus")) for line in lines) == 4


@pytest.fixture
def corpus(tmp_path):
    """Three clips of the demo, one missing file and one line that is no JSON."""
    names = ["ada-prizes.wav", "ada-goodbye.flac", "ben-ticket.mp3"]
    rows = [{"id": n, "audio": str(ROOT / "demo/corpus/audio" / n), "label": "joy", "text": "hello"} for n in names]
    rows.append({"id": "gone", "audio": "gone.wav", "label": "joy"})
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{no json\n", encoding="utf-8")
    return manifest


def prepared(manifest, folder, *, seed=0, with_texts=True, variants=VARIANTS, progress=lambda _: None):
    flags = {"manifest": (str(manifest),), "output": str(folder), "emotion_model": {"en": "x"}}
    rows = read_rows(load_config(None, flags), str(folder), with_texts=with_texts)
    prepare(
        open_store(str(folder)),
        rows,
        variants,
        seed=seed,
        limits=DEFAULT_LIMITS,
        check=check_content,
        progress=progress,
    )
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("clips/**/*.wav")}


def test_clips_are_the_rows_and_the_rest_is_rejected(corpus, tmp_path):
    """Fails if a row has neither clips nor a reject, or the clean clip is not bit for bit what the job decodes."""
    files = prepared(corpus, tmp_path / "out")
    clips = pq.read_table(tmp_path / "out" / CLIPS).to_pylist()
    assert len(clips) == len(files) == 3 * 4
    assert {row["reason"] for row in pq.read_table(tmp_path / "out" / REJECTS).to_pylist()} == {
        "NOT_FOUND",
        "MALFORMED",
    }
    for row in clips:
        if row[CONDITION] == "clean":
            original = decode((ROOT / "demo/corpus/audio" / row[RECORDING]).read_bytes())
            assert np.array_equal(decode(files[row["audio"]]), original)
        assert row["text"] == "hello"


def test_preparation_depends_on_the_seed_and_not_on_the_order(corpus, tmp_path):
    """Fails if a clip's noise depends on the clips before it, or the seed on nothing."""
    first = prepared(corpus, tmp_path / "a")
    turned = tmp_path / "turned.jsonl"
    turned.write_text("\n".join(reversed(corpus.read_text(encoding="utf-8").splitlines())), encoding="utf-8")
    assert prepared(turned, tmp_path / "b") == first
    other = prepared(corpus, tmp_path / "c", seed=1)
    assert {name for name in first if first[name] != other[name]} == {name for name in first if "white_noise" in name}


def test_a_killed_preparation_continues(corpus, tmp_path):
    """Fails if a killed preparation starts again, leaves a clip out, or is taken for a whole one."""
    whole = prepared(corpus, tmp_path / "whole")

    def kill(_done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepared(corpus, tmp_path / "out", progress=kill)
    assert not (tmp_path / "out" / CLIPS).exists()
    (written, *_) = (tmp_path / "out").rglob("*.wav")
    before = written.stat().st_mtime_ns
    assert prepared(corpus, tmp_path / "out") == whole
    assert written.stat().st_mtime_ns == before
    assert pq.read_table(tmp_path / "out" / CLIPS) == pq.read_table(tmp_path / "whole" / CLIPS)


def test_texts_can_be_left_out(corpus, tmp_path):
    """Fails if --transcribe keeps the texts, so that the words never change."""
    prepared(corpus, tmp_path / "out", with_texts=False, variants=())
    assert pq.read_table(tmp_path / "out" / CLIPS)["text"].null_count == 3


def test_another_test_in_the_same_folder_is_refused(tmp_path):
    """Fails if the results of one model or seed could be reported as those of another."""
    store = open_store(str(tmp_path))
    claim(store, {"seed": 0, "mode": "mean"})
    claim(store, {"seed": 0, "mode": "mean", "later_option": {}})
    with pytest.raises(ConfigError, match="another value of seed: None, not 1"):
        claim(store, {"seed": 1, "mode": "mean"})
