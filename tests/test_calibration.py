"""Temperatures and abstention: fitted from labelled rows, applied by the job, part of its settings, and audited."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from jobs.evaluate import main
from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.evaluate.calibration import fit, fit_temperature, log_loss, reliability, tempered
from pipeline.models import slots
from pipeline.plan import load_plans, read_shard
from pipeline.schema import EMOTIONS
from pipeline.storage import open_store
from pipeline.verify.audit import audit
from pipeline.verify.rows import RowFaults
from tests import outputs
from tests.shards import CLIP, by_hand, models_of, parts, work_of

FITTED = "mean-en:abababababab@fp32"
"""The fingerprint of the model in tests/outputs.py."""


def sample(rows: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores of a model whose logits are `temperature` times too large, and true classes."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(rows, 7)) * 1.5
    honest = softmax(logits, axis=1)
    truth = np.array([random.choice(7, p=row / row.sum()) for row in honest])
    return softmax(logits * temperature, axis=1), truth


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_is_found(temperature):
    """Fails if the fit divides where it should multiply, or stops before the least loss."""
    scores, truth = sample(4000, temperature)
    found = fit_temperature(scores, truth)
    assert found == pytest.approx(temperature, rel=0.06)
    least = log_loss(tempered(scores, found), truth)
    assert least <= min(log_loss(tempered(scores, found * step), truth) for step in (0.9, 0.99, 1.01, 1.1))


def test_scores_stand_in_for_logits():
    """Fails if scores are scaled otherwise than logits would be, change order, or an unknown class gets a share."""
    logits = np.random.default_rng(0).normal(size=(50, 7)) * 3
    np.testing.assert_allclose(tempered(softmax(logits, axis=1), 2.5), softmax(logits / 2.5, axis=1), rtol=1e-9)
    scores = softmax(logits, axis=1).astype(np.float32).astype(float)
    assert (tempered(scores, 7.0).argsort(axis=1) == scores.argsort(axis=1)).all()
    unknown = np.array([[0.7, 0.3, 0.0]])
    assert tempered(unknown, 10.0)[0, 2] == 0 and tempered(unknown, 10.0).sum() == pytest.approx(1)


def test_reliability_of_four_rows():
    """Fails if a bin's bounds, or the error's weights, are others than those of the definition."""
    found = reliability(np.array([0.95, 0.97, 0.30, 1.0]), np.array([True, False, False, True]))
    assert [(each["rows"], each["accuracy"]) for each in found["bins"]] == [(1, 0.0), (3, pytest.approx(2 / 3))]
    assert found["expected_error"] == pytest.approx((0.30 + abs(2.92 - 2)) / 4) and found["largest_error"] > 0.29


def test_a_fit_says_what_it_gives_on_rows_it_has_not_seen():
    """Fails if cross-validation lets a row see its own temperature's rows, or overconfidence is not taken away."""
    scores, truth = sample(1000, 3.0)
    found = fit(scores, truth, scores.argmax(axis=1), np.arange(1000))
    assert found["cross_validated"]["log_loss"] == pytest.approx(found["after"]["log_loss"], abs=0.01)
    assert found["cross_validated"]["log_loss"] > found["after"]["log_loss"]
    assert found["after"]["log_loss"] < found["before"]["log_loss"] - 0.3
    assert found["cross_validated"]["expected_error"] < 0.06 < found["before"]["expected_error"]


@pytest.mark.parametrize(
    ("rows", "right", "sentence"), [(20, False, "needs 50 labelled rows, 20 are there"), (60, True, "no temperature")]
)
def test_too_little_to_fit(rows, right, sentence):
    """Fails if a temperature comes of a handful of rows, or of rows that are all right, which would make all scores 1."""
    scores, truth = sample(rows, 1.0)
    with pytest.raises(ConfigError, match=sentence):
        fit_temperature(scores, scores.argmax(axis=1) if right else truth)


def test_the_job_applies_what_was_fitted(tmp_path, checkpoints):
    """Fails if a label changes, scores are not softmax(logits / T), confidence is not theirs, or emotions stay that
    are below the bound."""
    rows = [{"id": f"r{n}", "audio": CLIP, "text": text, "language": "en"} for n, text in enumerate(
        ("I am so happy!", "Leave me alone.", "It rains.", "Who is there?", "What a surprise this is"))]  # fmt: skip
    chosen = models_of(checkpoints, "mean", ["en"])
    plain = work_of(tmp_path / "plain", rows, chosen)
    by_hand(plain)
    raw = parts(plain)
    (model,) = set(raw["model"].to_pylist())
    bound = float(np.median(raw["confidence"].to_numpy()))
    calibrated = work_of(tmp_path / "cal", rows, chosen, calibration={model: 0.8}, min_confidence=bound)
    by_hand(calibrated)
    table = parts(calibrated)
    assert table["label"].equals(raw["label"]) and set(table["model"].to_pylist()) == {f"{model}/T=0.8"}
    one, two = (np.array([list(row.values()) for row in each["scores"].to_pylist()]) for each in (raw, table))
    np.testing.assert_allclose(two, tempered(one, 0.8), atol=1e-5)
    assert np.abs(one - two).max() > 1e-3
    np.testing.assert_allclose(table["confidence"].to_numpy(), two.max(axis=1), atol=1e-6)
    low = table["confidence"].to_numpy() < np.float32(bound)
    assert (
        table["abstained"].to_pylist() == low.tolist() == [emotion is None for emotion in table["emotion"].to_pylist()]
    )
    assert raw["abstained"].to_pylist() == [False] * 5 and raw["emotion"].null_count == 0
    assert plain.plan.config_hash != calibrated.plan.config_hash


def test_a_bound_on_confidence_abstains_and_is_audited(tmp_path, monkeypatch):
    """Fails if abstention drops label or scores, is evaluated as an error, or the audit lets a wrong one pass."""
    monkeypatch.setitem(outputs.FLAGS, "min_confidence", 0.4)
    output = str(tmp_path / "out")
    store = outputs.finished_output(output, tmp_path)
    assert audit(store, deep=True, tell=lambda violation: pytest.fail(violation.line())).status == "sound"
    plan = load_plans(store)[0]
    shard = next(iter(plan.shards()))
    (file,) = Path(output, "utterances").rglob(f"{shard.name}.parquet")
    table = pq.ParquetFile(file).read()
    low = pc.less(table["confidence"], pa.scalar(0.4, pa.float32()))
    assert table["abstained"].to_pylist() == low.to_pylist() and table["label"].null_count == 0
    wrong = table.set_column(
        table.schema.get_field_index("abstained"), table.schema.field("abstained"), pc.invert(table["abstained"])
    )
    faults = RowFaults(plan, read_shard(store, shard))
    faults.add(wrong)
    assert "without leave to abstain" in " ".join(sentence for _, sentence in faults.sentences())


def labelled_output(folder: Path) -> str:
    """An output with 60 labelled rows, whose scores are chance, and whose labels come true as often as its scores say."""
    records = [
        {"id": f"r{n}", "audio": f"/a/{n}.wav", "text": "x", "label": EMOTIONS[n % 7], "speaker": "a"}
        for n in range(80)
    ]
    output = str(folder / "out")
    store = open_store(output)
    plan = outputs.plan_rows(store, folder, records, shard_rows=80)
    work = outputs.Work(output, plan, outputs.AudioRoots.parse(("/a",), []))
    (shard,) = plan.shards()
    table = outputs.recognised(read_shard(store, shard), 0)
    scores = np.array([list(row.values()) for row in table["scores"].to_pylist()])
    ids = [read_shard(store, shard)["manifest_label"][row].as_py() for row in table["row"].to_pylist()]
    random = np.random.default_rng(0)
    for line, label in enumerate(ids):  # half of the time the true class changes places with the best one
        if random.random() < 0.5:
            true, best = EMOTIONS.index(label), int(scores[line].argmax())
            scores[line, [true, best]] = scores[line, [best, true]]
    columns = [pa.array(column.astype(np.float32)) for column in scores.T]
    labels = [EMOTIONS[best] for best in scores.argmax(axis=1)]
    for name, column in {
        "scores": pa.StructArray.from_arrays(columns, names=list(EMOTIONS)),
        "label": pa.array(
            [None if old is None else new for old, new in zip(table["label"].to_pylist(), labels, strict=True)]
        ),
    }.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    assert outputs.finish(work, shard, table, {}).won
    outputs.publish_plan(store, plan)
    return output


def test_abstention_is_weighed_not_hidden(tmp_path, monkeypatch, capsys):
    """Fails if rows without an emotion leave the figures, or what abstaining gave is not said."""
    monkeypatch.setitem(outputs.FLAGS, "min_confidence", 0.4)
    output = labelled_output(tmp_path)
    assert main([output, "--labels", "label", "--resamples", "0", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["outputs"]
    (at_bound,) = [row for row in found["abstention"]["thresholds"] if row["min_confidence"] == 0.4]
    assert found["overall"]["rows"] == found["counts"]["utterances"] == 80
    assert 0 < found["abstention"]["kept"]["share"] < 1
    assert found["abstention"]["kept"] == {name: at_bound[name] for name in ("rows", "share", "accuracy")}
    assert main([output, "--labels", "label", "--resamples", "0"]) == 0
    (at_bound,) = [row for row in found["abstention"]["thresholds"] if row["min_confidence"] == 0.5]
    assert 0 < at_bound["rows"] < 80 and (
        f"from 0.5 on {100 * at_bound['share']:.2f} % stay, {100 * at_bound['accuracy']:.2f} % right"
        in capsys.readouterr().out
    )


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder for files of a user's: of this disk, of a bucket."""
    return str(tmp_path) if request.param == "disk" else f"s3://{request.getfixturevalue('s3').bucket}/{tmp_path.name}"


def test_from_labels_to_a_config(place, tmp_path, capsys):
    """Fails if what the evaluation writes is not what the job reads, there where it was written, or a temperature is of
    another model.
    """
    file = f"{place}/calibration.json"
    output = labelled_output(tmp_path)
    again = [output, "--labels", "label", "--resamples", "0", "--fit-calibration", file]
    assert main(again) == 0
    fitted = json.loads(open_store(place).read("calibration.json"))["models"]
    assert list(fitted) == [FITTED] and f"{FITTED}: temperature" in capsys.readouterr().out
    assert main(again) == 2 and "calibration.json is there already" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    open_store(place).put_if_absent("job.yaml", f"calibration: {file}\n".encode())
    config = load_config(f"{place}/job.yaml", {"manifest": ["m"], "output": "o"})
    settings = config.settings(precision="fp32", asr_compute_type="float32")
    assert settings["calibration"] == {FITTED: fitted[FITTED]["temperature"]}
    assert slots.temperature(outputs.MODELS, settings, "en") == fitted[FITTED]["temperature"] != 1.0
    slots.require_calibration(outputs.MODELS, settings)
    with pytest.raises(ConfigError, match=r"--calibration: .*/gone\.json cannot be read"):
        load_config(None, {"manifest": ["m"], "output": "o", "calibration": f"{place}/gone.json"})
    with pytest.raises(ConfigError, match=r"--config: .*/gone\.yaml cannot be read"):
        load_config(f"{place}/gone.yaml", {})
    with pytest.raises(ConfigError, match=r"no temperature for mean-en:abababababab@bf16, only for mean-en"):
        slots.require_calibration(outputs.MODELS, {**settings, "precision": "bf16"})


def test_calibrated_scores_are_not_fitted_again(tmp_path, monkeypatch, capsys):
    """Fails if a second temperature is fitted on top of the first, and then replaces it."""
    monkeypatch.setitem(outputs.FLAGS, "calibration", {FITTED: 2.0})
    output = labelled_output(tmp_path)
    assert main([output, "--labels", "label", "--resamples", "0", "--fit-calibration", str(tmp_path / "c.json")]) == 2
    assert "are calibrated already" in capsys.readouterr().err and not (tmp_path / "c.json").exists()


def test_settings_without_either_are_what_they_were():
    """Fails if a dataset of before these options were is refused, or its hash changes, though nobody asked for them."""
    settings = load_config(None, {"manifest": ["m"], "output": "o"}).settings(
        precision="fp32", asr_compute_type="float32"
    )
    assert not {"calibration", "min_confidence"} & set(settings)
    bounded = load_config(None, {"manifest": ["m"], "output": "o", "min_confidence": 0.0})
    assert bounded.settings(precision="fp32", asr_compute_type="float32")["min_confidence"] == 0.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is no calibration"),
        ('{"format": 2, "method": "temperature", "models": {}}', "holds format 2"),
        ('{"format": 1, "method": "temperature", "models": {}}', "holds no temperatures"),
        ('{"format": 1, "method": "temperature", "models": {"m": {"temperature": 0}}}', "not above 0"),
        ('{"format": 1, "method": "temperature", "models": {"m": {"temperature": "NaN"}}}', "not above 0"),
        ('{"format": 1, "method": "temperature", "models": {"m": 2}}', "is no calibration"),
    ],
)
def test_a_file_that_is_no_calibration(tmp_path, text, sentence):
    """Fails if a wrong file is taken for one without temperatures, or ends in a stack trace."""
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=sentence) as error:
        load_config(None, {"manifest": ["m"], "output": "o", "calibration": str(tmp_path / "c.json")})
    assert str(error.value).startswith("--calibration: ")
