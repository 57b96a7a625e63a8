"""Further models (`--also`): equal to runs of their own, audited, with names that every reader accepts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config import load_config
from pipeline.config.further import FIELDS, further_models
from pipeline.dataset.plan import read_shard
from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.rows import RowFaults
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.pins import ModelPin, Role, Task, further_names, pins_document, pins_of
from tests.support.pins import by_role
from tests.support.shards import annotate_shard, models_of, parts, published, row, work_of
from tests.support.tiny_models import audio_checkpoint, text_checkpoint

DIMENSIONS = ("arousal", "dominance", "valence")
MIN_CONFIDENCE = 0.3


def models(folder: Path) -> dict[str, tuple[str, str]]:
    """Mode and folder of three models of different families and heads."""
    audio_checkpoint(folder / "iemocap", "hubert", feat_extract_norm="layer", names=("ang", "hap", "neu", "sad", "exc"))
    audio_checkpoint(folder / "dims", "wavlm", feat_extract_norm="layer", names=DIMENSIONS, problem_type="regression")
    text_checkpoint(folder / "words", "roberta", problem_type="multi_label_classification")
    modes = {"dims": "audio", "iemocap": "audio", "words": "text"}
    return {name: (mode, str(folder / name)) for name, mode in modes.items()}


def work(folder: Path, records, chosen: dict[str, str], mode: str, **flags: object):
    made = work_of(folder, records, chosen, mode, segmentation="none", min_confidence=MIN_CONFIDENCE, **flags)
    for shard in made.plan.shards():
        annotate_shard(made, shard)
    return made


def records(*, languages=("en",)) -> list[dict[str, object]]:
    rows = [row(number, offset=0.2 * number, duration=0.8 + 0.2 * (number % 3)) for number in range(5)]
    texts = ("so happy", "a sad day", "angry words", "", "neutral")
    rows = [{**each, "text": text} for each, text in zip(rows, texts, strict=True)]
    return [{**each, "language": languages[number % len(languages)]} for number, each in enumerate(rows)]


@pytest.fixture(scope="module")
def together(tmp_path_factory, checkpoints):
    folder = tmp_path_factory.mktemp("also")
    further = models(folder)
    chosen = models_of(checkpoints, "mean", ["en"])
    chosen |= {f"fusion/en/{name}": path for name, (_, path) in further.items()}
    also = [f"{name}={path}" for name, (_, path) in further.items()]
    return folder, further, work(folder / "together", records(), chosen, "mean", also=also)


def test_further_models_equal_runs_of_their_own(together, checkpoints):
    """Fails if a further model gets other audio, texts or neighbours than alone, or moves a value of the main one."""
    folder, further, made = together
    rows = parts(made).to_pylist()
    alone = parts(work(folder / "main", records(), models_of(checkpoints, "mean", ["en"]), "mean")).to_pylist()
    assert [{**each, "by_model": None} for each in rows] == [{**each, "by_model": None} for each in alone]
    for name, (mode, path) in further.items():
        own = parts(work(folder / name / "own", records(), {"fusion/en": path}, mode)).to_pylist()
        assert len(own) == len(rows) == 5
        for mine, theirs in zip(rows, own, strict=True):
            assert mine["utterance_id"] == theirs["utterance_id"]
            assert mine["by_model"][name] == {field.name: theirs[field.name] for field in FIELDS}, name
        assert (
            len({str(each["by_model"][name]["label_scores"] or each["by_model"][name]["arousal"]) for each in rows}) > 1
        )
    assert {each["by_model"]["iemocap"]["emotion_null_reason"] for each in rows} <= {None, "unmapped", "abstained"}
    assert {each["by_model"]["dims"]["emotion_null_reason"] for each in rows} == {"regression"}


def test_an_output_with_further_models_is_sound(together):
    """Fails if the audit accuses further models, or their pins, names or modes are lost on the way through plan.json."""
    _, further, made = together
    found = audit(published(made), deep=True)
    assert (found.status, found.violations) == ("sound", ())
    plan = made.plan
    assert plan.settings.document()["also"] == sorted(further)
    assert further_names(plan.models, "en") == sorted(further) and further_names(plan.models, "es") == []
    assert {role.name: pin.mode for role, pin in plan.models.items() if role.name} == {
        n: m for n, (m, _) in further.items()
    }
    assert pins_of(json.loads(json.dumps(pins_document(plan.models)))) == plan.models


def damaged(name: str, **values: object):
    def change(row: dict) -> dict:
        return {**row, "by_model": {**row["by_model"], name: {**row["by_model"][name], **values}}}

    return change


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (damaged("iemocap", confidence=0.99), "CONFIDENCE"),
        (damaged("iemocap", margin=None), "CONFIDENCE"),
        (damaged("iemocap", scores=None), "SCORES"),
        (damaged("iemocap", label_scores=[("ang", 0.5), ("sad", 0.5)]), "SCORES"),
        (damaged("iemocap", label="calm"), "LABEL"),
        (damaged("iemocap", emotion="disgust"), "LABEL"),
        (damaged("iemocap", abstained=True), "LABEL"),
        (damaged("words", labels=["sad", "angry", "happy", "neutral", "other"]), "LABEL"),
        (damaged("dims", arousal=float("inf")), "SCORES"),
        (damaged("dims", emotion_null_reason=None), "LABEL"),
        (damaged("dims", emotion_null_reason="language"), "LANGUAGE"),
        (damaged("words", model=None), "LANGUAGE"),
    ],
)
def test_a_damaged_value_of_a_further_model_is_noticed(together, change, code):
    """Fails if only the main model's columns are audited."""
    made = together[2]
    table = parts(made)
    (shard,) = made.plan.shards()
    faults = RowFaults(made.plan, read_shard(made.store, shard))
    rows = table.to_pylist()
    faults.add(type(table).from_pylist([change(rows[0]), *rows[1:]], schema=table.schema))
    assert code in {str(invariant) for invariant, _ in faults.sentences()}


def test_a_language_without_the_further_model(tmp_path, checkpoints):
    """Fails if a model of one language labels rows of another, or its absence costs the main model's results."""
    _, path = models(tmp_path)["iemocap"]
    chosen = {**models_of(checkpoints, "audio", ["en", "es"]), "fusion/en/iemocap": path}
    made = work(tmp_path / "w", records(languages=("en", "es")), chosen, "audio", also=[f"iemocap:en={path}"])
    assert audit(published(made), deep=True).violations == ()
    for each in parts(made).to_pylist():
        struct = each["by_model"]["iemocap"]
        assert each["label"] is not None and (struct["label"] is None) == (each["language"] == "es")
        assert (struct["emotion_null_reason"] == "language") == (each["language"] == "es")


def test_the_models_of_a_job_include_further_ones():
    """Fails if a further model is chosen for a language that it is not for, or for every language when it names one."""
    config = load_config(
        None, {"manifest": ["m"], "output": "o", "mode": "audio", "also": ["a:en-GB=A", "b=B", "b:es=C"]}
    )
    chosen = roles.choose(config, ["en", "es"], needs_asr=False)
    assert {str(role): spec for role, spec in chosen.items() if role.name} == {
        "fusion/en/a": "A",
        "fusion/en/b": "B",
        "fusion/es/b": "C",
    }
    assert config.settings(precision="fp32", asr_compute_type="int8").also == ("a", "b")
    assert Role.parse("fusion/en/b") == Role(Task.EMOTION, "en", "b")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["x"], "is not NAME=X"),
        (["1x=M"], "is not a name"),
        (["a-b=M"], "is not a name"),
        (["a="], "names no model"),
        (["a=M", "a=N"], "two models for a"),
        (["a=M", "A=N"], "case alone"),
        ({"a": 5}, "names no model"),
    ],
)
def test_names_that_no_column_could_have_are_refused(given, message):
    """Fails if a name breaks a reader, or a second model of a name replaces the first unnoticed."""
    with pytest.raises(ConfigError, match=f"--also: .*{message}"):
        load_config(None, {"manifest": ["m"], "output": "o", "also": given})
    assert further_models({"a": "M", "b": {"en": "N"}}) == {"a": {"*": "M"}, "b": {"en": "N"}}


def test_a_model_that_needs_what_the_dataset_has_not_is_refused(tmp_path):
    """Fails if a model of words is taken into a dataset without texts, to label empty ones."""
    _, path = models(tmp_path)["words"]
    chosen = by_role({"fusion/en/words": path})
    with pytest.raises(ConfigError, match=r"--also words:en=.*mode audio"):
        roles.pin(chosen, "audio")
    assert roles.pin(chosen, "text")[0][Role(Task.EMOTION, "en", "words")].mode == "text"


def test_old_pins_read_as_before():
    """Fails if the pins of plans without further models change their form, which the plan's hash covers."""
    pin = ModelPin("X", None, "ab" * 32, 5)
    assert pins_document({Role(Task.ASR, "en"): pin}) == {
        "asr/en": {"spec": "X", "revision": None, "sha256": "ab" * 32, "bytes": 5}
    }
    with pytest.raises(ValueError, match="not a role"):
        Role.parse("fusion/en/")
