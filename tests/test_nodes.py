"""A cluster of several nodes that share nothing but an object store: it starts without a GPU, two join, one is lost."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from demo.models import MODELS
from tests import logical_gpus
from tests.corpus import AUDIO, ROOT, command, rows, utterances, write_manifest
from tests.processes import kill_hard, started, victims, wait_until
from tests.s3_server import s3_server
from tests.test_cluster import _BIN, Head, free_port, head

_ROWS = 120
_PAUSE_S = 1.0
"""A shard. Ray Data learns of a node within 20 s; the second node must find work left."""


@contextmanager
def node(cluster: Head, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker node with a GPU that is none and a cache of its own, on this machine; the code is in its image."""
    command = [
        str(_BIN / "ray"), "start", "--block", f"--address={cluster.environment['RAY_ADDRESS']}",
        "--node-ip-address=127.0.0.1", "--num-cpus=2", "--num-gpus=1", f"--dashboard-agent-listen-port={free_port()}",
        "--disable-usage-stats",
    ]  # fmt: skip
    own = {
        **cluster.environment,
        "PATH": f"{_BIN}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / name),
    }
    log = folder / f"{name}.log"
    with started(command, log, own) as process:
        wait_until(lambda: "Ray runtime started" in log.read_text(), process, log)
        yield process


def test_pools_follow_the_nodes(tmp_path: Path, checkpoints: Path, monkeypatch) -> None:
    """Fails if a job is refused or hangs while there is no GPU, if its pools do not spread to a node that joins, if a row is
    lost or doubled with a node, or if a node needs another's disk."""
    with s3_server(tmp_path) as s3, ExitStack() as nodes:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        store, bucket = s3.filesystem(), f"s3://{s3.bucket}"
        for folder in (AUDIO, checkpoints / "mean-en", checkpoints / "bert-en", ROOT / MODELS / "whisper"):
            store.put(str(folder), f"{s3.bucket}/{folder.name}", recursive=True)
        records = [
            {**row, "audio": f"{bucket}/{AUDIO.name}/{Path(str(row['audio'])).name}", "language": "en"}
            for row in [*rows(_ROWS - 20), *rows(20, with_text=False, prefix="heard")]
        ]
        store.put(str(write_manifest(tmp_path / "m.jsonl", records)), f"{s3.bucket}/m.jsonl")
        job = [
            *command(f"{bucket}/m.jsonl", f"{bucket}/out", "--device", "cuda", "--shard-rows", "2"),
            "--fusion-model", f"en={bucket}/mean-en", "--sentence-encoder", f"en={bucket}/bert-en",
            "--asr-model", f"{bucket}/whisper", "--asr-compute-type", "float32",
        ]  # fmt: skip

        cluster = nodes.enter_context(head(tmp_path, 0, environment={"PYTHONPATH": str(ROOT)}))
        log = tmp_path / "job.log"
        armed = {**cluster.environment, **logical_gpus.environment(_PAUSE_S)}
        with started(job, log, armed) as process:

            def parts() -> int:
                return len(store.glob(f"{s3.bucket}/out/utterances/*.parquet"))

            wait_until(lambda: "on cuda" in log.read_text(), process, log)
            one = nodes.enter_context(node(cluster, tmp_path, "one"))
            wait_until(lambda: parts() >= 2, process, log, timeout_s=200)
            two = nodes.enter_context(node(cluster, tmp_path, "two"))
            # transcription, which most rows do without, may well do with one actor
            wait_until(lambda: bool(victims(two.pid, "Recognise")), process, log, 200)
            assert victims(one.pid, "Recognise"), "the pool was to grow, not to move"
            wait_until(lambda: bool(list((tmp_path / "two").rglob("model.safetensors"))), process, log)
            done = parts()
            kill_hard(one)
            # what was on the lost node starts again where there is room; on the one card that is left both pools may not have it
            nodes.enter_context(node(cluster, tmp_path, "three"))
            assert process.wait(200) == 0, log.read_text()
        assert done < _ROWS // 2 - 3, f"{done} shards were done before the node was lost: nothing was shown"
        found = utterances(f"{s3.bucket}/out", store)
        assert sorted(found["recording_id"].to_pylist()) == sorted(str(row["id"]) for row in records)
        assert set(found["text_source"].to_pylist()) == {"manifest", "asr"}
        audit = subprocess.run(
            [sys.executable, "-m", "jobs.verify", f"{bucket}/out", "--deep"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert audit.returncode == 0, audit.stdout + audit.stderr
