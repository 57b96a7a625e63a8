"""Datasets of an earlier schema version beside new ones: neither gets the other's columns."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.config import load_config
from pipeline.dataset.compatibility import claim_dataset, dataset_settings
from pipeline.engine.run import Driver
from pipeline.errors import ConfigError
from pipeline.schema import passthrough_name, utterance_schema
from pipeline.storage.store import LocalStore
from tests.support.detecting import foreign, shown
from tests.support.manifests import jsonl
from tests.support.shards import parts

OLD = utterance_schema({}, "float32", version=1)
SECOND = utterance_schema({}, "float32", version=2)
NEW = utterance_schema({}, "float32", version=3)


def test_new_columns_come_in_new_datasets_alone():
    """Fails if the columns of 7d25560 or of version 2 change, or a new one is not where the documentation has it."""
    assert [name for name in SECOND.names if name not in OLD.names] == ["language_prob", "emotion_null_reason"]
    added = [name for name in NEW.names if name not in SECOND.names]
    quality = ["loudness_dbfs", "clipped_share", "snr_db", "bandwidth_hz", "speech_share"]
    assert added == [*quality, "asr_flag", "label_scores", "labels", "arousal", "valence", "dominance"]
    assert [field for field in NEW if field.name not in added] == list(SECOND)
    assert [name for name in NEW.names if name in OLD.names] == OLD.names
    required = ["utterance_id", "recording_id", "segment_index", "truncated", "language", "text_source", "label", "abstained",
                "confidence", "margin", "scores", "model", "run_id"]  # fmt: skip
    assert [field.name for field in OLD if not field.nullable] == required
    assert NEW.field("language_prob").type == "float"


@pytest.fixture
def old_dataset(monkeypatch) -> None:
    """Settings as 7d25560 wrote them."""
    real = load_config(None, {"manifest": ["m"], "output": "o"}).__class__.settings
    monkeypatch.setattr(
        "pipeline.config.JobConfig.settings", lambda self, **known: real(self, **{**known, "version": 1})
    )


def test_an_old_dataset_is_decided_likewise_without_new_columns(tmp_path, checkpoints, old_dataset):
    """Fails if a dataset of 7d25560 gets a column it does not have, a null it does not allow, or loses the recording."""
    work = foreign(tmp_path, checkpoints)
    assert "schema_version" not in work.plan.settings.document()
    assert shown(work, "language", "text", "label") == [("en", "en words", True)] * 3
    (part,) = Path(work.output).glob("utterances/*.parquet")
    widths = dict.fromkeys(work.plan.embedding_widths, 1)
    expected = utterance_schema(widths, "float32", work.plan.extra, version=1)
    found = pq.read_schema(part)
    assert found.names == expected.names
    assert [field.nullable for field in found] == [field.nullable for field in expected]
    both = foreign(tmp_path / "both", checkpoints, ("en", "es"))
    assert [row["model"][:8] for row in parts(both).to_pylist()] == ["mean-en:", "mean-es:", "mean-en:"]


@pytest.mark.parametrize("old", [True, False])
def test_a_dataset_keeps_its_version(tmp_path, old):
    """Fails if an old dataset is refused for a setting it could not name, takes new columns, or renames a manifest's."""
    manifest = jsonl(tmp_path / "m.jsonl", {"id": "r", "audio": "a.wav", "Language_Prob": 0.5, "label": "joy"})
    (tmp_path / "a.wav").write_bytes(b"")
    config = load_config(None, {"manifest": [str(manifest)], "output": str(tmp_path / "out")})
    if old:
        settings = config.settings(precision="fp32", asr_compute_type="float32", version=1)
        claim_dataset(LocalStore(tmp_path / "out"), settings)
    driver = Driver(config, io.StringIO())
    assert driver._settings("cpu").schema_version == (1 if old else 3)
    names = driver.read(tmp_path / "staging").staging.extra.names
    assert names == ["Language_Prob" if old else "manifest_Language_Prob", "manifest_label"]


def test_a_dataset_of_a_later_version_is_refused(tmp_path):
    """Fails if a program that does not know a dataset's columns adds rows to it."""
    config = load_config(None, {"manifest": ["m"], "output": str(tmp_path)})
    settings = config.settings(precision="fp32", asr_compute_type="float32", version=1)
    document = {"format": 1, "settings": settings.document(), "token": "t"}
    for version in (4, "2", None, 0):
        document["settings"]["schema_version"] = version
        (tmp_path / "_dataset.json").write_text(json.dumps(document))
        with pytest.raises(ConfigError, match="schema_version"):
            dataset_settings(LocalStore(tmp_path))


def test_two_columns_that_would_be_one_are_refused(tmp_path):
    """Fails if one of two manifest columns is lost where a new column takes the name of the first."""
    record = {"id": "r", "audio": "a.wav", "language_prob": 0.5, "manifest_language_prob": 1}
    manifest = jsonl(tmp_path / "m.jsonl", record)
    driver = Driver(load_config(None, {"manifest": [str(manifest)], "output": str(tmp_path / "out")}), io.StringIO())
    with pytest.raises(ConfigError, match="'language_prob' and 'manifest_language_prob'"):
        driver.read(tmp_path / "staging")
    assert passthrough_name("language_prob") == "language_prob"
