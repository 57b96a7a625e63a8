"""The real driver, `prepare`, `finish` and `publish` in this process, with models that do nothing and without Ray."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import pipeline.engine.run as driver_module
from pipeline.config import load_config
from pipeline.engine.run import Driver
from pipeline.models import roles
from pipeline.shard.commit import MAX_DENIED, Finished, finish
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from tests.support.golden import PARITY
from tests.support.noop_job import no_cluster
from tests.support.noop_models import NoOpRecogniser
from tests.support.outputs import MODELS
from tests.support.pins import by_role

CLIP = PARITY / "audio" / "en_16k_pcm16.wav"


class Killed(BaseException):
    """An exception that ends a job as a kill would."""


class NoOpDriver:
    """Jobs on `folder/out`.

    Attributes:
        kill_after: number of shards after which the next job dies.
        before: called with each shard before it is prepared; an exception from it stops the run.
        printed: the output of the last driver.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out"
        self.kill_after: int | None = None
        self.before: Callable[[Any], None] = lambda _: None
        self.printed = ""
        self.driver: Driver | None = None

    def run_shards(self, work: Any, shards: Iterable[Any], _pools: Any, config: Any, on_finished: Any) -> None:
        lenient = config.max_reject_rate == 1
        for number, shard in enumerate(shards):
            if number == self.kill_after:
                raise Killed
            self.before(shard)
            table = prepare(work, shard, **({"unreachable": None} if lenient else {}))
            table = recognise(work, shard, table, lambda _: NoOpRecogniser())
            finished: Finished = finish(work, shard, table, {}, max_denied=1.0 if lenient else MAX_DENIED)
            on_finished(finished)

    def job(self, manifest: Path, **options: Any) -> list[tuple[str, int, dict[str, int]]]:
        """Run one job. Returns: for each finished run its number, recordings annotated, and rejects by reason."""
        out = io.StringIO()
        flags = {"mode": "audio", "embeddings": "audio", "shard_rows": 8, **options}
        self.driver = Driver(load_config(None, {"manifest": [str(manifest)], "output": str(self.output), **flags}), out)
        try:
            reports = self.driver.run()
        finally:
            self.printed = out.getvalue()
        return [(r["run_id"], r["recordings_annotated"], r["rejects_by_reason"]) for r in reports]

    def manifest(self, name: str, rows: Iterable[dict[str, object]]) -> Path:
        path = self.folder / name
        path.write_text("".join(json.dumps({"text": "t", **row}) + "\n" for row in rows))
        return path

    def clips(self, folder: str, count: int) -> list[dict[str, object]]:
        """Copy a clip `count` times to `folder`. Returns: a row for each copy."""
        (self.folder / folder).mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, object]] = []
        for number in range(count):
            path = self.folder / folder / f"{number}.wav"
            shutil.copy(CLIP, path)
            rows.append({"id": f"{folder}{number}", "audio": str(path)})
        return rows

    def utterances(self) -> pa.Table:
        return ds.dataset(str(self.output / "utterances"), partitioning="hive").to_table()


def without_ray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> NoOpDriver:
    """Return a driver of jobs below `folder`; it works until `monkeypatch` ends."""
    monkeypatch.setenv("NOOP_DEVICE_S_PER_AUDIO_S", "0")
    monkeypatch.setenv("NOOP_EMBEDDING_WIDTHS", '{"audio_embedding": 4}')
    made = NoOpDriver(folder)
    monkeypatch.setattr(driver_module, "cluster", no_cluster)
    monkeypatch.setattr(driver_module, "run_shards", made.run_shards)
    monkeypatch.setattr(roles, "choose", lambda *_, **__: by_role({"fusion/en": "m"}))
    pinned = SimpleNamespace(warnings=(), result=lambda: (MODELS, {"audio_embedding": 4}))
    monkeypatch.setattr(driver_module, "Pinning", lambda *_: nullcontext(pinned))
    return made
