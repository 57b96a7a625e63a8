"""Precisions that a model does not have are refused from its config alone, before Ray starts or weights are loaded."""

from __future__ import annotations

import io

import pytest

from pipeline.config import load_config
from pipeline.config.labels import LabelRules
from pipeline.engine.run import Driver
from pipeline.errors import ConfigError
from pipeline.models import roles
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.families.choice import family_of
from tests.support.corpus import rows, write_manifest
from tests.support.pins import by_role
from tests.support.shards import models_of
from tests.support.tiny_models import audio_checkpoint

INT8 = LabelRules(3, precision="int8")
MESSAGE = r"precision int8: int8 is for UMUTeam's speech models; give --precision fp32 or bf16 or fp16"


@pytest.fixture(scope="module")
def hubert(tmp_path_factory):
    _, _, checkpoint = audio_checkpoint(tmp_path_factory.mktemp("m"), "hubert", feat_extract_norm="layer")
    return checkpoint


def test_models_without_int8_are_refused_by_their_declaration(hubert, checkpoints):
    """Fails if int8 is refused where it exists, or taken for a model without it, the main one or a further one."""
    umuteam, folder = models_of(checkpoints, "audio", ["en"]), str(hubert.directory)
    pinned, _ = roles.pin(by_role(umuteam), "audio", rules=INT8)
    assert len(pinned) == 1
    with pytest.raises(ConfigError, match=rf"^--emotion-model en={folder}: model .* has no {MESSAGE}"):
        roles.pin(by_role({"fusion/en": folder}), "audio", rules=INT8)
    with pytest.raises(ConfigError, match=rf"^--also x:en={folder}: model .* has no {MESSAGE}"):
        roles.pin(by_role({**umuteam, "fusion/en/x": folder}), "audio", rules=INT8)
    with pytest.raises(ConfigError, match=MESSAGE):
        EmotionRecogniser("audio", hubert, precision="int8")
    assert family_of("audio", hubert).declaration.precisions == ("fp32", "bf16", "fp16")


def test_the_driver_refuses_before_ray_starts(hubert, tmp_path, monkeypatch):
    """Fails if a cluster is started, or a file written, for a job whose model has no int8."""

    def started(*_: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("pipeline.engine.run.cluster", started)
    manifest = write_manifest(tmp_path / "m.jsonl", [{**row, "language": "en"} for row in rows(2)])
    options = {"manifest": [str(manifest)], "output": str(tmp_path / "out"), "mode": "audio", "precision": "int8"}
    config = load_config(None, {**options, "device": "cpu", "emotion_model": f"en={hubert.directory}"})
    with pytest.raises(ConfigError, match=MESSAGE):
        Driver(config, io.StringIO()).run()
    assert not (tmp_path / "out").exists()
