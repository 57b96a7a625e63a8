"""Options of a first try: the reference toolkit's `model.json`, and the choice of some lines."""

from __future__ import annotations

import json

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError

# -- the reference toolkit's model.json


TOOLKIT = {"es": {"text": "o/es-text", "mean": "o/es-mean"}, "en": {"mean": "o/en-mean", "audio": "o/en-audio"}}


@pytest.mark.parametrize(
    ("flags", "models"),
    [
        ({}, {"es": "o/es-mean", "en": "o/en-mean"}),
        ({"mode": "audio"}, {"en": "o/en-audio"}),
        ({"mode": "text"}, {"es": "o/es-text"}),
        ({"emotion_model": ["en=mine"]}, {"en": "mine"}),
    ],
)
def test_model_json_is_read_by_config(tmp_path, flags, models):
    """Fails if the toolkit's file is refused, models of another mode are taken, or an option does not override it."""
    file = tmp_path / "model.json"
    file.write_text(json.dumps(TOOLKIT))
    config = load_config(str(file), {"manifest": ["m"], "output": "o", **flags})
    assert config.emotion_model == models


def test_model_json_without_the_mode_is_refused(tmp_path):
    """Fails if published models are used silently in place of those that the file was given for."""
    file = tmp_path / "model.json"
    file.write_text(json.dumps(TOOLKIT))
    with pytest.raises(ConfigError, match="no language has a model for mode concat"):
        load_config(str(file), {"manifest": ["m"], "output": "o", "mode": "concat"})


# -- choice of lines


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ({"limit": 1, "sample": 1}, "exclude each other"),
        ({"sample_seed": 1}, "--sample-seed needs --sample"),
        ({"limit": 0}, "--limit"),
        ({"sample": 0}, "--sample"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(flags, sentence):
    """Fails if one of two contradicting options is ignored."""
    with pytest.raises(ConfigError, match=sentence):
        load_config(None, {"manifest": ["m"], "output": "o", **flags})
