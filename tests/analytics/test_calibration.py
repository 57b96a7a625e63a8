"""Temperatures and abstention: fitted from labelled rows, applied by the job, part of its settings, and audited."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from jobs.evaluate import NOT_FITTED, main
from pipeline.analytics.evaluate.calibration import (
    NoTemperatureError,
    expected_error,
    fit,
    fit_temperature,
    log_loss,
    reliability,
    tempered,
)
from pipeline.config import load_config
from pipeline.dataset.plan import load_plans, read_shard
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.rows import RowFaults
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.schema import EMOTIONS
from pipeline.storage.store import open_store
from tests.support import outputs
from tests.support.pins import pins
from tests.support.shards import CLIP, by_hand, models_of, parts, work_of

FITTED = "mean-en:abababababab@fp32"
"""The fingerprint of the model in tests/support/outputs.py."""


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
    assert [(each.rows, each.accuracy) for each in found] == [(1, 0.0), (3, pytest.approx(2 / 3))]
    assert expected_error(found) == pytest.approx((0.30 + abs(2.92 - 2)) / 4)


def test_a_fit_says_what_it_gives_on_rows_it_has_not_seen():
    """Fails if cross-validation lets a row see its own temperature's rows, or overconfidence is not taken away."""
    scores, truth = sample(1000, 3.0)
    found = fit(scores, truth, scores.argmax(axis=1), np.arange(1000), output="out")
    assert found.cross_validated.log_loss == pytest.approx(found.after.log_loss, abs=0.01)
    assert found.cross_validated.log_loss > found.after.log_loss
    assert found.after.log_loss < found.before.log_loss - 0.3
    assert found.cross_validated.expected_error < 0.06 < found.before.expected_error


@pytest.mark.parametrize(
    ("rows", "right", "sentence"),
    [(20, False, "needs 50 labelled rows; the output has 20"), (60, True, "no temperature")],
)
def test_too_little_to_fit(rows, right, sentence):
    """Fails if a temperature comes of a handful of rows, or of rows that are all right, which would make all scores 1."""
    scores, truth = sample(rows, 1.0)
    with pytest.raises(ConfigError, match=sentence):
        fit_temperature(scores, scores.argmax(axis=1) if right else truth)


def wrong_way_round(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores that are highest for the class that is least likely."""
    scores, truth = sample(rows, 1.0, seed)
    turned = 1 / scores
    return turned / turned.sum(axis=1, keepdims=True), truth


def always_wrong(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of exactly 0 for every true class, though the model knows all seven."""
    truth = np.arange(rows) % 7
    return np.eye(7)[(truth + 1) % 7], truth


def seven_of_which_one_is_unknown(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores worse than chance of a model that does not know the last class."""
    scores, truth = wrong_way_round(rows)
    scores[:, 6] = 0.0
    return scores / scores.sum(axis=1, keepdims=True), truth


@pytest.mark.parametrize("made", [wrong_way_round, always_wrong, seven_of_which_one_is_unknown])
@pytest.mark.parametrize("rows", [80, 4000])
def test_scores_worse_than_chance_are_not_blamed_on_the_number_of_rows(made, rows):
    """Fails if a temperature that diverges is put down to too few rows, of which there may be thousands."""
    with pytest.raises(NoTemperatureError) as error:
        fit_temperature(*made(rows))
    assert "worse than chance" in str(error.value) and "More rows would not help" in str(error.value)
    assert "too few" not in str(error.value) and "needs" not in str(error.value)


@pytest.mark.parametrize(
    ("temperature", "sentence"), [(60.0, "far above the accuracy"), (0.01, "far below the accuracy")]
)
def test_a_temperature_outside_the_bounds_is_told_from_scores_worse_than_chance(temperature, sentence):
    """Fails if good scores that are far too sure, or far too unsure, are called worse than chance or too few."""
    with pytest.raises(NoTemperatureError, match=sentence) as error:
        fit_temperature(*sample(3000, temperature))
    assert "chance" not in str(error.value) and "too few" not in str(error.value)


def test_scores_barely_better_than_chance_are_fitted():
    """Fails if the limit between worse than chance and a high temperature is drawn elsewhere than at no information."""
    scores, truth = sample(20_000, 1.0)
    chance = np.random.default_rng(1).permutation(truth)
    mixed = np.where(np.arange(len(truth)) % 4 == 0, truth, chance)  # every fourth row tells something
    assert 2.0 < fit_temperature(scores, mixed) < 20.0


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
    assert "no emotion without a reason" in " ".join(sentence for _, sentence in faults.sentences())


def labelled_output(folder: Path, *, right: float = 0.5, count: int = 80) -> str:
    """An output whose scores are chance, with the best score moved to the true class in a share of the rows, and to another in
    the rest where that share is 0."""
    records = [
        {"id": f"r{n}", "audio": f"/a/{n}.wav", "text": "x", "label": EMOTIONS[n % 7], "speaker": "a"}
        for n in range(count)
    ]
    output = str(folder / "out")
    store = open_store(output)
    plan = outputs.plan_rows(store, folder, records, shard_rows=count)
    work = outputs.Work(output, plan, outputs.AudioRoots.parse(("/a",), []))
    (shard,) = plan.shards()
    table = outputs.recognised(read_shard(store, shard), 0)
    scores = np.array([list(row.values()) for row in table["scores"].to_pylist()])
    ids = [read_shard(store, shard)["manifest_label"][row].as_py() for row in table["row"].to_pylist()]
    random = np.random.default_rng(0)
    for line, label in enumerate(ids):  # the true class changes places with the best one, or with the worst
        true = EMOTIONS.index(label)
        other = int(scores[line].argmax() if right else scores[line].argmin())
        if not right or random.random() < right:
            scores[line, [true, other]] = scores[line, [other, true]]
    columns = [pa.array(column.astype(np.float32)) for column in scores.T]
    labels = [EMOTIONS[best] for best in scores.argmax(axis=1)]
    labels = [None if old is None else new for old, new in zip(table["label"].to_pylist(), labels, strict=True)]
    by_label = [dict(zip(EMOTIONS, line, strict=True)) for line in scores.astype(np.float32).tolist()]
    for name, column in {
        "scores": pa.StructArray.from_arrays(columns, names=list(EMOTIONS)),
        "label_scores": pa.array([list(each.items()) for each in by_label], table.schema.field("label_scores").type),
        "label": pa.array(labels),
        "emotion": pa.array(labels),
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
        f"0.5: {100 * at_bound['share']:.2f} % remain, {100 * at_bound['accuracy']:.2f} % correct"
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
    document = json.loads(open_store(place).read("calibration.json"))
    assert set(document) == {"format", "method", "made_at", "models"}
    fitted = document["models"]
    assert set(fitted[FITTED]) == {"temperature", "rows", "before", "after", "cross_validated", "output"}
    assert set(fitted[FITTED]["before"]) == {"log_loss", "expected_error"}
    assert list(fitted) == [FITTED] and f"{FITTED}: temperature" in capsys.readouterr().out
    assert main(again) == 2 and "calibration.json already exists" in capsys.readouterr().err
    assert main([*again, "--overwrite"]) == 0
    open_store(place).put_if_absent("job.yaml", f"calibration: {file}\n".encode())
    config = load_config(f"{place}/job.yaml", {"manifest": ["m"], "output": "o"})
    settings = config.settings(precision="fp32", asr_compute_type="float32")
    assert settings.calibration == {FITTED: fitted[FITTED]["temperature"]}
    assert roles.temperature(outputs.MODELS, settings, "en") == fitted[FITTED]["temperature"] != 1.0
    roles.require_calibration(outputs.MODELS, settings)
    with pytest.raises(ConfigError, match=r"--calibration: .*/gone\.json cannot be read"):
        load_config(None, {"manifest": ["m"], "output": "o", "calibration": f"{place}/gone.json"})
    with pytest.raises(ConfigError, match=r"--config: .*/gone\.yaml cannot be read"):
        load_config(f"{place}/gone.yaml", {})
    with pytest.raises(ConfigError, match=r"no temperature for mean-en:abababababab@bf16, only for mean-en"):
        roles.require_calibration(outputs.MODELS, replace(settings, precision="bf16"))


def test_calibrated_scores_are_not_fitted_again(tmp_path, monkeypatch, capsys):
    """Fails if a second temperature is fitted on top of the first, and then replaces it."""
    monkeypatch.setitem(outputs.FLAGS, "calibration", {FITTED: 2.0})
    output = labelled_output(tmp_path)
    assert main([output, "--labels", "label", "--resamples", "0", "--fit-calibration", str(tmp_path / "c.json")]) == 2
    told = capsys.readouterr()
    assert "are calibrated already" in told.err and not (tmp_path / "c.json").exists()
    assert "expected error" in told.out  # the evaluation


@pytest.mark.parametrize(
    ("made", "cause"),
    [
        ({"right": 0.0}, "worse than chance"),
        ({"right": 1.0}, "labels are right"),
        ({"count": 30}, "needs 50 labelled rows; the output has 30"),
    ],
)
def test_a_calibration_that_cannot_be_fitted_discards_no_evaluation(tmp_path, capsys, made, cause):
    """Fails if the figures are neither printed nor written because no temperature fits, or the status says that all is well."""
    output = labelled_output(tmp_path, **made)
    plain = [output, "--labels", "label", "--resamples", "0", "--json"]
    assert main(plain) == 0
    expected = json.loads(capsys.readouterr().out)
    written, calibration = tmp_path / "written", tmp_path / "c.json"
    assert main([*plain, "--write", str(written), "--fit-calibration", str(calibration)]) == NOT_FITTED == 3
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert found["outputs"] == expected["outputs"] and found["fitted_calibration"] is None
    assert json.loads((written / "metrics.json").read_text(encoding="utf-8")) == found
    assert (written / "predictions.parquet").exists() and not calibration.exists()
    assert f"{output}, {FITTED}: " in told.err and cause in told.err and cause in found["calibration_failure"]
    assert ("50" in told.err) == ("count" in made)
    assert main([*plain[:-1], "--fit-calibration", str(calibration)]) == NOT_FITTED
    assert "expected error" in capsys.readouterr().out


def test_every_model_that_cannot_be_fitted_is_named(tmp_path, monkeypatch, capsys):
    """Fails if one of several failures is reported alone, or one model's temperature is written as if all had one."""
    made = {"poor": {"right": 0.0}, "good": {}, "few": {"count": 20}}
    found = {}
    for number, (name, options) in enumerate(made.items()):
        models = pins(fusion_en=f"{number}c" * 32)
        monkeypatch.setattr(outputs, "MODELS", models)
        found[name] = labelled_output(tmp_path / name, **options)
    calibration = tmp_path / "c.json"
    arguments = ["--labels", "label", "--resamples", "0", "--fit-calibration", str(calibration)]
    assert main([*found.values(), *arguments]) == NOT_FITTED
    said = capsys.readouterr().err
    assert f"{found['poor']}, mean-en:0c0c0c0c0c0c@fp32: no temperature" in said
    assert f"{found['few']}, mean-en:2c2c2c2c2c2c@fp32: a temperature needs 50" in said
    assert found["good"] not in said and not calibration.exists()


def test_settings_without_either_are_what_they_were():
    """Fails if a dataset of before these options were is refused, or its hash changes, though nobody asked for them."""
    settings = load_config(None, {"manifest": ["m"], "output": "o"}).settings(
        precision="fp32", asr_compute_type="float32"
    )
    assert not {"calibration", "min_confidence"} & set(settings.document())
    bounded = load_config(None, {"manifest": ["m"], "output": "o", "min_confidence": 0.0})
    assert bounded.settings(precision="fp32", asr_compute_type="float32").document()["min_confidence"] == 0.0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("[]", "is not a calibration file"),
        ('{"format": 2, "method": "temperature", "models": {}}', "holds format 2"),
        ('{"format": 1, "method": "temperature", "models": {}}', "must be a number above 0"),
        ('{"format": 1, "method": "temperature", "models": {"m": {"temperature": 0}}}', "a number above 0"),
        ('{"format": 1, "method": "temperature", "models": {"m": {"temperature": "NaN"}}}', "a number above 0"),
        ('{"format": 1, "method": "temperature", "models": {"m": 2}}', "is not a calibration file"),
    ],
)
def test_a_file_that_is_no_calibration(tmp_path, text, sentence):
    """Fails if a wrong file is taken for one without temperatures, or ends in a stack trace."""
    if text is not None:
        (tmp_path / "c.json").write_text(text)
    with pytest.raises(ConfigError, match=sentence) as error:
        load_config(None, {"manifest": ["m"], "output": "o", "calibration": str(tmp_path / "c.json")})
    assert str(error.value).startswith("--calibration: ")
