"""Shards whose audio is inside containers: the same results and rejects as from files, and the same promises."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from pipeline.dataset.plan import load_plans
from pipeline.dataset.verify.audit import audit
from pipeline.shard.missing_audio import _missing
from pipeline.shard.prepare import prepare
from pipeline.storage.store import open_store
from tests.support.containers import addresses, hub_parquet, tar_file
from tests.support.golden import PARITY
from tests.support.manifests import read
from tests.support.nights import driver_of, night, quick
from tests.support.shards import causes, work_of

__all__ = ["quick"]

CLIPS = sorted((PARITY / "audio").iterdir())[:6]
MEMBERS = {f"c/{clip.name}": clip.read_bytes() for clip in CLIPS}


def prepared(folder: Path, records: list[dict[str, object]]):
    work = work_of(folder, records, {}, "audio")
    return prepare(work, next(work.plan.shards()))


@pytest.mark.parametrize("ending", ["tar", "tar.gz", "parquet"])
def test_waveforms_are_those_of_the_files(tmp_path, ending):
    """Fails if a member of a tar is decoded to other samples than its file, or its offset, channel or checksum does not count."""
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        hub_parquet(path, list(MEMBERS.values()))
        found = dict(zip(["r0", "r1", "row 2 of row group 0"], read(path)[0]["audio"].to_pylist(), strict=False))
        found |= dict(enumerate(read(path)[0]["audio"].to_pylist()[3:]))
    else:
        found = addresses(tar_file(path, MEMBERS))
    more: list[dict[str, object]] = [{} for _ in CLIPS]
    more[0] = {"offset": 0.25, "duration": 0.5}
    more[1] = {"channel": 0, "sha256": hashlib.sha256(CLIPS[1].read_bytes()).hexdigest()}
    more[2] = {"sha256": "0" * 64}
    tables = []
    for name, audio in {"files": list(map(str, CLIPS)), "items": list(found.values())}.items():
        records = [
            {"id": f"r{n}", "audio": uri, "text": "t", "language": "en", **more[n]} for n, uri in enumerate(audio)
        ]
        tables.append(prepared(tmp_path / name, records))
    files, items = tables
    assert causes(files) == causes(items) == [None, None, "CHECKSUM", None, None, None]
    assert items.drop_columns(["reject"]).equals(files.drop_columns(["reject"]))
    assert len(np.frombuffer(items["waveform"][0].as_py(), np.int16)) in (8000, 16000)
    assert f"{list(found)[2]} in {tmp_path}/a.{ending} has sha256" in items["reject"][2].as_py()["detail"]


def test_tars_are_annotated_once_each_night(quick, tmp_path):
    """Fails if rows of a tar are annotated again when it is moved or grows, or an output of them is not sound."""
    path = tar_file(tmp_path / "in/a.tar", MEMBERS)
    out, options = tmp_path / "out", {"audio_root": str(tmp_path)}
    night(out, tmp_path / "in", **options)
    assert driver_of(out, tmp_path / "in", **options).run() == []
    assert pq.ParquetFile(next((out / "_runs").rglob("*.parquet"))).schema_arrow.names[1] == "audio"
    (plan,) = load_plans(open_store(str(out)))
    assert plan.rows + plan.rejects == len(MEMBERS) and plan.manifests == (str(path),)
    grown = {"0.wav": next(iter(MEMBERS.values())), **dict(reversed(MEMBERS.items()))}
    tar_file(path, grown)
    night(out, tmp_path / "in", **options)
    assert ds.dataset(out / "utterances").to_table().num_rows == len(MEMBERS) + 1
    assert audit(open_store(str(out)), deep=True).status == "sound"


def test_missing_audio_is_looked_for_in_its_container(tmp_path):
    """Fails if every item of a tar that exists counts as missing, or of one that is gone as present."""
    address = next(iter(addresses(tar_file(tmp_path / "a.tar", MEMBERS)).values()))
    assert _missing(address) is None
    (tmp_path / "a.tar").unlink()
    assert _missing(address) is not None
