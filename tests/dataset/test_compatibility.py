"""What all plans of one output share, and what is said when they would not."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow as pa
import pytest

from pipeline.config import load_config
from pipeline.config.settings import Settings
from pipeline.dataset.compatibility import (
    claim_dataset,
    compare_models,
    compare_settings,
    dataset_settings,
    settle_types,
)
from pipeline.dataset.packing import ShardSize
from pipeline.dataset.plan import Plan, write_plan
from pipeline.errors import ConfigError
from pipeline.pins import ModelPin, Role
from pipeline.storage.store import LocalStore
from tests.support import selections
from tests.support.memory_store import MemoryStore

SETTINGS = load_config(None, {"manifest": ["m"], "output": "o", "partition_by": "speaker"}).settings(
    precision="fp32", asr_compute_type="float32"
)


def pins_of(**models: tuple[str, str]) -> dict[Role, ModelPin]:
    return {
        Role.parse(role.replace("_", "/")): ModelPin(spec, None, sha * 64, 1) for role, (spec, sha) in models.items()
    }


def plan(number: int, **models: tuple[str, str]) -> Plan:
    pinned = {
        Role.parse(role.replace("_", "/")): ModelPin(spec, None, sha * 64, 1) for role, (spec, sha) in models.items()
    }
    return Plan(
        plan=f"{number:06d}", token="t", created_at="", settings=SETTINGS, models=pinned, embedding_widths={}, manifests=(),
        files=(), rows=0, rejects=0, rejects_file=None, rows_without_text=0, audio_s=0.0, extra_schema="",
    )  # fmt: skip


@pytest.mark.parametrize("on_disk", [True, False])
def test_the_first_claim_stands_and_the_same_one_passes(tmp_path, on_disk):
    """Fails if a dataset cannot be gone on with, or a second claim replaces the first."""
    store = LocalStore(tmp_path) if on_disk else MemoryStore()
    assert dataset_settings(store) is None
    claim_dataset(store, SETTINGS)
    first = store.read("_dataset.json")
    claim_dataset(store, SETTINGS)
    assert store.read("_dataset.json") == first
    assert dataset_settings(store) == SETTINGS


def test_another_claim_is_refused_naming_every_difference():
    """Fails if rows of two kinds can get into one dataset, or the person must guess what differs."""
    store = MemoryStore()
    claim_dataset(store, SETTINGS)
    asked = replace(SETTINGS, mode="text", partition_by=(), beam_size=5, min_confidence=0.5)
    with pytest.raises(ConfigError) as caught:
        claim_dataset(store, asked)
    message = str(caught.value)
    lines = message.splitlines()[1:]
    assert [line.split(":")[0].strip() for line in lines] == ["beam_size", "min_confidence", "mode", "partition_by"]
    assert (
        "mode: 'mean' in the output, 'text' requested" in message
        and "partition_by: ['speaker'] in the output, [] requested" in message
    )
    assert "--output" in message
    assert dataset_settings(store) == SETTINGS


def test_a_lost_answer_to_the_claim(tmp_path):
    """Fails if a claim whose answer was lost is refused as somebody else's."""

    class Forgetful(MemoryStore):
        def put_if_absent(self, key: str, content: bytes) -> bool:
            super().put_if_absent(key, content)
            return False

    store = Forgetful()
    claim_dataset(store, SETTINGS)
    assert dataset_settings(store) == SETTINGS


def test_two_claims_at_once_agree_or_one_is_refused():
    """Fails if the loser of the race goes on under settings that are not the dataset's."""

    class Raced(MemoryStore):
        def put_if_absent(self, key: str, content: bytes) -> bool:
            if not self.objects:
                claim_dataset(MemoryStoreView(self), replace(SETTINGS, mode="audio"))
            return super().put_if_absent(key, content)

    class MemoryStoreView:
        def __init__(self, store: MemoryStore) -> None:
            self.store = store

        def put_if_absent(self, key: str, content: bytes) -> bool:
            return MemoryStore.put_if_absent(self.store, key, content)

        def read(self, key: str) -> bytes:
            return self.store.read(key)

    store = Raced()
    with pytest.raises(ConfigError, match="mode"):
        claim_dataset(store, SETTINGS)
    assert dataset_settings(store).mode == "audio"


def test_settings_survive_json():
    """Fails if settings hold something that JSON gives back as another value: the next run would be refused."""
    assert Settings.of(json.loads(json.dumps(SETTINGS.document()))) == SETTINGS
    compare_settings(Settings.of(json.loads(json.dumps(SETTINGS.document()))), SETTINGS)


@pytest.mark.parametrize("content", [b"", b"{}", b'{"format": 99, "settings": {}}', b"[]"])
def test_a_dataset_file_that_cannot_be_read_is_refused_by_name(content):
    """Fails if a damaged or newer `_dataset.json` ends in a traceback, or is taken for one of ours."""
    with pytest.raises(ConfigError, match=r"_dataset\.json"):
        dataset_settings(MemoryStore({"_dataset.json": content}))


def test_other_weights_for_the_same_task_are_refused_by_name():
    """Fails if a changed checkpoint goes unnoticed, or the message does not name slot, spec and hash of both."""
    earlier = [plan(1, fusion_en=("old", "a"), asr_en=("w", "c")), plan(2, fusion_es=("es", "d"))]
    asked = pins_of(fusion_en=("new", "b"), asr_en=("w", "c"))
    with pytest.raises(ConfigError) as caught:
        compare_models(earlier, asked)
    message = str(caught.value)
    assert f"fusion/en: 'old sha256 {'a' * 12}' in the output, 'new sha256 {'b' * 12}' requested" in message
    assert "asr/en" not in message and "other models" in message


def test_the_same_weights_under_another_name_pass():
    """Fails if a moved folder, or a language or task that earlier plans did not have, is refused."""
    earlier = [plan(1, fusion_en=("/old/place", "a"))]
    compare_models(earlier, pins_of(fusion_en=("/new/place", "a")))
    compare_models(earlier, pins_of(fusion_es=("x", "b")))
    compare_models([], pins_of(fusion_es=("x", "b")))


def test_a_column_has_one_type_in_all_plans_of_a_dataset(tmp_path):
    """Fails if a grown manifest changes a column's type, or a column without values gets Arrow's null type."""
    store = MemoryStore()
    plan = write_plan(
        store, 1, selections.selection_of(["a"], tmp_path, take=[1.5]), settings=replace(SETTINGS, partition_by=()), models={},
        embedding_widths={}, manifests=["m"], size=ShardSize(8, 1e9), needs_text=True,
    )  # fmt: skip
    now = pa.schema([pa.field("take", pa.int64()), pa.field("note", pa.null()), pa.field("fresh", pa.int64())])
    settled = settle_types(now, [plan])
    assert [field.type for field in settled] == [pa.float64(), pa.string(), pa.int64()]
