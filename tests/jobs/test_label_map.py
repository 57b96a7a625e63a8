"""`--label-map`: entries, files and languages, what is refused, and its place in the settings of a dataset."""

from __future__ import annotations

import json

import pytest

from pipeline.config import load_config
from pipeline.config.settings import Settings
from pipeline.errors import ConfigError

JOB = {"manifest": ["m"], "output": "o"}


def maps(value: object) -> object:
    return load_config(None, {**JOB, "label_map": value}).label_map


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["hap=joy,neu=neutral,calm="], {"*": {"hap": "joy", "neu": "neutral", "calm": None}}),
        ("Hap = JOY", {"*": {"hap": "joy"}}),
        (["en=hap=joy,exc=joy", "es=hap=fear"], {"en": {"hap": "joy", "exc": "joy"}, "es": {"hap": "fear"}}),
        (["en=hap=joy", "calm="], {"en": {"hap": "joy"}, "*": {"calm": None}}),
        (["en-GB=hap=joy"], {"en": {"hap": "joy"}}),
        (["sad=sadness"], {"*": {"sad": "sadness"}}),
        (["a=b=joy"], {"*": {"a=b": "joy"}}),
        ({"hap": "joy", "calm": None}, {"*": {"hap": "joy", "calm": None}}),
        ({"en": {"hap": "joy"}, "es": {"hap": ""}}, {"en": {"hap": "joy"}, "es": {"hap": None}}),
    ],
)
def test_entries_are_read(given, expected):
    """Fails if a label gets the emotion of another, a language is taken for a label, or a label for a language."""
    assert maps(given) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("map.json", '{"hap": "joy", "calm": null}'),
        ("map.yaml", "hap: joy\ncalm:\n"),
        ("map.toml", 'hap = "joy"\ncalm = ""\n'),
        ("a=b.json", '{"hap": "joy", "calm": ""}'),
    ],
)
def test_files_are_read(tmp_path, name, content):
    """Fails if a file in one of the formats of --config is not read, or its language is lost."""
    (tmp_path / name).write_text(content)
    assert maps([str(tmp_path / name)]) == {"*": {"hap": "joy", "calm": None}}
    assert maps([f"es={tmp_path / name}", "hap=fear"]) == {"es": {"hap": "joy", "calm": None}, "*": {"hap": "fear"}}


def test_a_file_has_maps_by_language(tmp_path):
    """Fails if the languages inside a file are ignored."""
    (tmp_path / "map.json").write_text(json.dumps({"en": {"hap": "joy"}, "es": {"fel": "joy"}}))
    assert maps([str(tmp_path / "map.json")]) == {"en": {"hap": "joy"}, "es": {"fel": "joy"}}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hap=happy"], "'happy' is not an emotion; did you mean 'joy'.*known are anger, disgust"),
        (["hap=jo"], "did you mean 'joy'"),
        (["hap"], "neither label=emotion nor a file"),
        (["hap=joy,hap=fear"], "maps the label 'hap' twice"),
        (["=joy"], "has no label"),
        (["hap=joy", "neu=neutral"], "two maps for every language"),
        (["en=hap=joy", "en=neu=neutral"], "two maps for en"),
        ({"en": {"hap": "joy"}, "hap": "joy"}, "mixes labels and languages"),
        (["missing.json"], "missing.json"),
    ],
)
def test_what_is_not_a_map_is_refused(given, message):
    """Fails if a mistake in a map is taken, or the message does not name it."""
    with pytest.raises(ConfigError, match=f"label.map.*{message}"):
        maps(given)


def test_a_file_of_another_kind_is_refused(tmp_path):
    """Fails if the file of a map is blamed on --config, or a word that YAML takes for false is taken for a label."""
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(ConfigError, match=r"--label-map .*list.json.*labels to emotions, found list"):
        maps([str(tmp_path / "list.json")])
    (tmp_path / "broken.json").write_text('{"hap": {')
    with pytest.raises(ConfigError, match=r"--label-map .*broken.json"):
        maps([str(tmp_path / "broken.json")])
    for content in ("no: neutral", "calm: off"):
        (tmp_path / "m.yaml").write_text(content)
        with pytest.raises(ConfigError, match=r"--label-map .*m.yaml.*truth value, as YAML reads yes and no; put"):
            maps([str(tmp_path / "m.yaml")])


def test_a_map_is_part_of_the_settings():
    """Fails if a dataset may change its map unnoticed, or one without a map records it."""
    without = load_config(None, JOB).settings(precision="fp32", asr_compute_type="int8")
    assert "label_map" not in without.document()
    settings = load_config(None, {**JOB, "label_map": ["hap=joy,calm="]}).settings(
        precision="fp32", asr_compute_type="int8"
    )
    assert settings.document()["label_map"] == {"*": {"hap": "joy", "calm": None}}
    assert Settings.of(json.loads(json.dumps(settings.document()))) == settings != without
