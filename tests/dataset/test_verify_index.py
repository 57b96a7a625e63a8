"""The audit of the index of earlier plans; `tests/support/damages.py` has the indexes that must be reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.dataset.verify.audit import audit
from pipeline.dataset.verify.index import KeySum
from pipeline.manifest.hash_buckets import id_keys
from pipeline.storage.store import LocalStore
from tests.support.damages import indexed
from tests.support.outputs import finished_output


def test_an_index_that_agrees_is_sound(tmp_path: Path) -> None:
    """Fails if a deep audit accuses the index of a sound output, or an index that jobs ignore because it is damaged."""
    out = tmp_path / "out"
    finished_output(str(out), tmp_path / "manifests")
    indexed(out)
    assert audit(LocalStore(out), deep=True).status == "sound"
    (path,) = out.glob("_runs/index/*.parquet")
    path.write_bytes(path.read_bytes()[:-10])
    assert audit(LocalStore(out), deep=True).status == "sound"


def test_sums_of_keys_depend_on_every_key_and_not_on_the_order() -> None:
    """Fails if two sets of ids are taken for the same, or the same set in batches of another order for two."""
    keys = id_keys(map(str, range(1000)))
    whole = KeySum().add(keys)
    assert KeySum().add(keys[600:]).add(id_keys([])).add(keys[:600][::-1]) == whole
    assert KeySum().add(np.concatenate([keys[1:], id_keys(["x"])])) != whole
    assert KeySum().add(keys[1:]) != whole
    most = np.frombuffer(b"\xff" * 32, dtype="S16")
    assert KeySum().add(most).total == 2 * (2**128 - 1) % 2**128
