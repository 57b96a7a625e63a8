"""Flags, config files and what a dataset remembers of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.annotate import command_line
from pipeline.config import JobConfig, load_config, primary_language
from pipeline.config.settings import Settings, canonical_hash
from pipeline.errors import ConfigError
from pipeline.schema import EMBEDDINGS, utterance_schema
from tests.support.cases import case

NEEDED = {"manifest": ["m.jsonl"], "output": "out"}


def config(**flags: object) -> JobConfig:
    return load_config(None, {**NEEDED, **flags})


def from_file(tmp_path: Path, text: str, name: str = "job.yaml", **flags: object) -> JobConfig:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_config(str(path), {**NEEDED, **flags})


def refusal(**flags: object) -> str:
    with pytest.raises(ConfigError) as caught:
        config(**flags)
    return str(caught.value)


# -- the file


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("flat.yaml", "asr_model: A\nasr_gpus: 0.25\nembedding_dtype: float16\n"),
        ("hyphens.yaml", "asr-model: A\nasr-gpus: 0.25\nembedding-dtype: float16\n"),
        ("nested.yml", "asr: {model: A, gpus: 0.25}\nembedding: {dtype: float16}\n"),
        ("flat.toml", 'asr_model = "A"\nasr-gpus = 0.25\nembedding_dtype = "float16"\n'),
        ("nested.TOML", '[asr]\nmodel = "A"\ngpus = 0.25\n[embedding]\ndtype = "float16"\n'),
    ],
)
def test_flat_and_nested_files_say_the_same(tmp_path, name, text):
    """Fails if a spelling of a key, a nesting or one of the two formats is read as something else, or not at all."""
    found = from_file(tmp_path, text, name)
    assert found.asr_model == {"*": "A"}
    assert (found.asr_gpus, found.embedding_dtype) == (0.25, "float16")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "emotion_model: {en: E, es: S}\n"),
        ("b.yaml", "fusion: {model: {en: E, es: S}}\n"),
        ("c.yaml", "emotion-model: [en=E, es=S]\n"),
        ("d.toml", '[fusion.model]\nen = "E"\nes = "S"\n'),
    ],
)
def test_models_by_language_in_a_file(tmp_path, name, text):
    """Fails if a mapping of languages below a model key is flattened into unknown keys."""
    assert from_file(tmp_path, text, name).emotion_model == {"en": "E", "es": "S"}


def test_flags_win(tmp_path):
    """Fails if a file overrides the command line, or a flag drops what only the file says."""
    found = from_file(tmp_path, "mode: audio\nbeam_size: 5\nmanifest: other.jsonl\n", mode="text")
    assert (found.mode, found.beam_size, found.manifest) == ("text", 5, ("m.jsonl",))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("moed: text\n", ["'moed'", "'mode'"]),
        ("asr: {modle: X}\n", ["'asr_modle'", "'asr_model'"]),
        ("asr: {model: X, zebra: 1}\n", ["asr_zebra"]),
        ("config: other.yaml\n", ["'config'"]),
        ("mode: {audio: yes}\n", ["--mode"]),
    ],
)
def test_unknown_keys_are_named_with_the_nearest(tmp_path, text, named):
    """Fails if a mistyped key is ignored, or the message does not help."""
    with pytest.raises(ConfigError) as caught:
        from_file(tmp_path, text)
    assert all(word in str(caught.value) for word in named), str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.yaml", b"- mode\n"),
        ("text.yaml", b"mode\n"),
        ("empty.yaml", b""),
        ("bad.yaml", b"mode: [\n"),
        ("bad.toml", b"mode = \n"),
        ("latin.yaml", b"output: \xff\xfe\n"),
        ("latin.toml", b'output = "\xff"\n'),
    ],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, name, content):
    """Fails if a broken config file ends in a traceback, or the message does not name the file."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=name):
        load_config(str(tmp_path / name), NEEDED)


def test_a_file_that_is_not_there():
    """Fails if a missing config file is a traceback, or is taken for an empty one."""
    with pytest.raises(ConfigError, match=r"gone\.yaml"):
        load_config("gone.yaml", NEEDED)


def test_yaml_words_that_are_no_text_are_refused(tmp_path):
    """Fails if YAML's Norway (`no` is False) or a number becomes a language or a model."""
    for text in ("language: no\n", "asr_model: 3\n", "emotion_model: [1, 2]\n", "embeddings: 7\n"):
        with pytest.raises(ConfigError):
            from_file(tmp_path, text)


# -- values


def test_everything_missing_is_named_at_once():
    """Fails if only the first missing option is reported, or as a traceback."""
    with pytest.raises(ConfigError) as caught:
        load_config(None, {})
    assert str(caught.value).splitlines() == ["--manifest is required", "--output is required"]


IMPOSSIBLE = [
    ("mode", "meen", "--mode"),
    ("beam_size", 0, "--beam-size"),
    ("shard_rows", 0, "--shard-rows"),
    ("max_bytes", -1, "--max-bytes"),
    ("asr_gpus", 0.0, "--asr-gpus"),
    ("language", "e n", "--language"),
    ("language", "", "--language"),
    ("output", "", "--output"),
    ("precision", "fp8", "--precision"),
    ("manifest", [], "--manifest"),
]


def test_impossible_values_name_their_option():
    """Fails if a value that cannot work is taken, or the message leaves the option to be guessed."""
    for flag, value, named in IMPOSSIBLE:
        with case(flag, value, named):
            assert refusal(**{flag: value}).startswith(f"{named}: ")


def test_the_configuration_cannot_be_changed():
    """Fails if a stage could change what the receipts say."""
    with pytest.raises(ValueError, match="frozen"):
        config().mode = "audio"


COLUMNS_OF_MODELS = sorted(
    set(utterance_schema(dict.fromkeys(EMBEDDINGS, 1), "float32", version=1).names) - {"language"}
)


def test_a_models_output_is_no_partition():
    """Fails if files can be laid out by what a model says, or the refusal gives no reason."""
    for column in COLUMNS_OF_MODELS:
        with case(column):
            message = refusal(partition_by=f"speaker,{column}")
            assert repr(column) in message and "two partitions" in message and "statistics" in message


def test_partition_columns():
    """Fails if a comma list, a list of lists, spaces or `language` are not taken; or a column twice is."""
    assert config(partition_by="speaker, language").partition_by == ("speaker", "language")
    assert config(partition_by=["speaker,language", "day"]).partition_by == ("speaker", "language", "day")
    assert config(partition_by="").partition_by == ()
    assert "twice" in refusal(partition_by="speaker,speaker")


@pytest.mark.parametrize("column", ["_speaker", ".speaker"])
def test_partitions_that_readers_would_not_see_are_refused(column):
    """Fails if files can lie in folders that begin with `_` or `.`: pyarrow and pandas find such a dataset empty."""
    assert repr(column) in refusal(partition_by=column)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("all", EMBEDDINGS),
        ("none", ()),
        ("fused,audio", ("audio_embedding", "fused_embedding")),
        (" text_embedding , audio ", ("audio_embedding", "text_embedding")),
        (["text"], ("text_embedding",)),
        ([], ()),
    ],
)
def test_embeddings(given, expected):
    """Fails if all, none or a list is misread, or the columns do not come in the order of the schema."""
    assert config(embeddings=given).embeddings == expected


def test_unknown_embeddings_name_the_nearest():
    """Fails if a mistyped embedding is silently left out."""
    message = refusal(embeddings="audio,fuesd")
    assert "'fuesd_embedding'" in message and "did you mean 'fused_embedding'" in message
    assert "none_embedding" in refusal(embeddings="audio,none")


# -- models


def test_a_model_alone_is_for_the_language_of_the_job():
    """Fails if `X` alone is used for the other language, or `lang=X` does not win over it."""
    found = config(emotion_model=["X", "es=S"], sentence_encoder="B", asr_model="W")
    assert [found.model_for("emotion_model", code) for code in ("en", "es", "fr")] == ["X", "S", None]
    assert [found.model_for("sentence_encoder", code) for code in ("en", "es")] == ["B", None]
    assert [found.model_for("asr_model", code) for code in ("en", "es")] == ["W", "W"]
    spanish = config(emotion_model=["X"], asr_model=["W", "en=V"], language="es-MX")
    assert [spanish.model_for("emotion_model", code) for code in ("en", "es")] == [None, "X"]
    assert [spanish.model_for("asr_model", code) for code in ("en", "es")] == ["V", "W"]


@pytest.mark.parametrize(
    "path",
    [
        "/data/run=1/model", "./run=1/model", "s3://bucket/date=2024-01-01/model", "org/model@a=b", "/m=en",
    ],
)  # fmt: skip
def test_paths_with_an_equals_sign(path):
    """Fails if the first half of a path is taken for a language."""
    assert config(emotion_model=path).emotion_model == {"*": path}
    assert config(emotion_model=f"es={path}").emotion_model == {"es": path}


def test_a_language_is_a_language_however_it_is_written(tmp_path):
    """Fails if capitals or spaces around a language make another one, from flags or from a file."""
    assert config(emotion_model="ES=S").model_for("emotion_model", "es") == "S"
    assert from_file(tmp_path, "emotion_model: {ES: S}\n").model_for("emotion_model", "es") == "S"


def test_two_models_for_one_language_are_refused():
    """Fails if the later of two models wins without a word."""
    assert "two models for en" in refusal(emotion_model=["en=A", "EN=B"])
    assert "every language" in refusal(asr_model=["A", "B"])


def test_a_language_without_a_model_is_refused():
    """Fails if `en=` is taken for the default model."""
    assert "--emotion-model" in refusal(emotion_model="en=")


# -- settings


def test_settings_are_what_decides_rows():
    """Fails if something that changes rows is left out of the settings, or something that does not is in."""
    settings = config(partition_by="a,b").settings(precision="fp32", asr_compute_type="int8")
    assert settings.document() == {
        "mode": "mean", "language": None, "segmentation": "auto", "partition_by": ["a", "b"],
        "embeddings": list(EMBEDDINGS), "embedding_dtype": "float32", "beam_size": 1, "max_duration_s": 14400.0,
        "max_bytes": 2**31, "precision": "fp32", "asr_compute_type": "int8", "schema_version": 3,
    }  # fmt: skip


def test_the_window_of_the_transcription_is_settled_once():
    """Fails if an earlier output or another device changes the window, or --segmentation none has a short one."""
    old = Settings.of(config().settings(precision="fp32", asr_compute_type="float32").document())
    assert old.asr_window == "full" and "asr_window" not in old.document()
    new = {device: config().resolved(device) for device in ("cpu", "cuda")}
    assert {device: settings.asr_window for device, settings in new.items()} == {"cpu": "short", "cuda": "full"}
    assert Settings.of(new["cpu"].document()).asr_window == new["cpu"].document()["asr_window"] == "short"
    for dataset in (old, *new.values()):
        assert {config().resolved(device, dataset).asr_window for device in new} == {dataset.asr_window}
    assert {device: settings.asr_compute_type for device, settings in new.items()} == {"cpu": "int8", "cuda": "float16"}
    assert {config().resolved(device, old).asr_compute_type for device in new} == {"float32"}
    assert config(asr_window="short").resolved("cuda", old).asr_window == "short", "to be refused by the comparison"
    assert config(segmentation="none").resolved("cpu").asr_window == "full"
    assert "--segmentation none" in refusal(segmentation="none", asr_window="short")


def test_cuts_are_settings_that_exclude_each_other():
    """Fails if a way to cut is not part of the settings, changes earlier ones, or two ways are mixed in silence."""
    chosen = config(window_s=4, hop_s=2).resolved("cpu")
    assert (chosen.window_s, chosen.hop_s) == (4.0, 2.0) and Settings.of(chosen.document()) == chosen
    usual = config().resolved("cpu").document()
    assert not {"window_s", "hop_s", "max_segment_s", "min_segment_s"} & usual.keys()
    assert config(max_segment_s=10, min_segment_s=1).resolved("cpu").document()["max_segment_s"] == 10.0
    assert "choose how to cut" in refusal(window_s=4, segmentation="vad")
    assert "choose how to cut" in refusal(window_s=4, max_segment_s=10)
    assert "choose how to cut" in refusal(segmentation="none", min_segment_s=1)
    assert "audio between windows" in refusal(window_s=2, hop_s=3) and "needs --window-s" in refusal(hop_s=3)
    assert "exceeds" in refusal(min_segment_s=5, max_segment_s=4) and "30" in refusal(max_segment_s=31)


def test_the_hash_is_stable():
    """Fails if the canonical form changes: every resumed dataset would look like one of other settings."""
    settings = config().settings(precision="fp32", asr_compute_type="float32")
    document = settings.document()
    assert canonical_hash(document) == canonical_hash(dict(reversed(document.items())))
    assert canonical_hash({"b": [1, 2.5, None], "a": "é"}) == canonical_hash({"a": "é", "b": [1, 2.5, None]})
    assert canonical_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
    changes = ({}, {"mode": "text"}, {"beam_size": 2}, {"embeddings": "none"}, {"language": "en"})
    documents = [
        config(**change).settings(precision="fp32", asr_compute_type="float32").document() for change in changes
    ]
    assert len(set(map(canonical_hash, documents))) == len(changes)


def test_primary_language():
    """Fails if a region or capitals pick another model."""
    assert [primary_language(tag) for tag in ("en-GB", "ES", "zh-Hant-TW")] == ["en", "es", "zh"]


# -- the command line


def test_every_option_of_the_configuration_has_a_flag():
    """Fails if a field is added to the configuration and cannot be given, or a flag leads nowhere."""
    flags = {action.dest for action in command_line()._actions}
    assert flags - {"help", "version", "config", "json"} == set(JobConfig.model_fields)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--emotion-modle", "x"], "did you mean '--emotion-model'"),
        (["--manifset=m"], "did you mean '--manifest'"),
        (["--mod", "text"], "unknown option '--mod'"),
        (["--xyzzy"], "unknown option '--xyzzy'"),
        (["m.jsonl"], "what is 'm.jsonl'?"),
        (["--beam-size", "many"], "--beam-size"),
        (["--mode", "meen"], "--mode"),
        (["--output"], "--output"),
    ],
)
def test_unknown_options_name_the_nearest(capsys, words, named):
    """Fails if a mistyped option is shortened, ignored or taken for another."""
    with pytest.raises(SystemExit) as ended:
        command_line().parse_all(words)
    assert ended.value.code == 2
    assert named in capsys.readouterr().err


def test_options_that_repeat_add_up():
    """Fails if the second `--manifest` or `--emotion-model` replaces the first."""
    given = [
        "--manifest",
        "a",
        "b",
        "--manifest",
        "c",
        "--emotion-model",
        "en=E",
        "--emotion-model",
        "es=S",
        "--output",
        "o",
    ]
    found = load_config(None, vars(command_line().parse_all(given)))
    assert found.manifest == ("a", "b", "c") and found.emotion_model == {"en": "E", "es": "S"}
    assert found == load_config(None, {"manifest": ["a", "b", "c"], "output": "o", "emotion_model": ["en=E", "es=S"]})


@pytest.mark.parametrize("option", ["emotion_model", "sentence_encoder"])
def test_a_model_for_no_language_under_auto_is_refused(option):
    """Fails if a model named alone belongs to no language and is silently left out."""
    with pytest.raises(ConfigError, match="en=X"):
        load_config(None, {"manifest": ["m"], "output": "o", "language": "auto", option: ["X"]})


def test_a_regional_tag_names_its_language_and_a_longer_word_a_path():
    """Fails if `en-GB=X` is taken for a path, or `english=1/x` for a language."""
    found = load_config(
        None, {"manifest": ["m"], "output": "o", "emotion_model": ["en-GB=X", "english=1/x"]}
    ).emotion_model
    assert found == {"en": "X", "*": "english=1/x"}


def test_eight_bits_are_refused_at_once_where_there_are_none():
    """Fails if a run of a mode or device without int8 starts, or a dry run of it says that all is well."""
    assert config(precision="int8").precision == "int8"
    for change in ({"mode": "text"}, {"device": "cuda"}):
        with pytest.raises(ConfigError, match="int8 is for the audio encoder on CPU"):
            config(precision="int8", **change)
