"""A cluster of several nodes that share nothing but an object store: one is lost in the middle of a job, another joins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.corpus import AUDIO, ROOT, rows, utterances, write_manifest
from tests.processes import kill_hard, started, wait_until
from tests.s3_server import s3_server
from tests.test_cluster import _BIN, Head, free_port, head

_ROWS = 60
_NODE_CPUS = 2


@contextmanager
def node(cluster: Head, folder: Path, name: str) -> Iterator[subprocess.Popen[bytes]]:
    """A worker node with a cache of its own, on the same machine.

    The code is in its image, so to speak: sent along, all nodes would unpack it into the one folder that Ray has on a machine.
    """
    command = [
        str(_BIN / "ray"), "start", "--block", f"--address={cluster.environment['RAY_ADDRESS']}",
        "--node-ip-address=127.0.0.1", f"--num-cpus={_NODE_CPUS}", "--num-gpus=0", f"--dashboard-agent-listen-port={free_port()}",
        "--disable-usage-stats",
    ]  # fmt: skip
    own = {
        **cluster.environment,
        "PATH": f"{_BIN}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / name),
    }
    with started(command, folder / f"{name}.log", own) as process:
        wait_until(
            lambda: "Ray runtime started" in (folder / f"{name}.log").read_text(), process, folder / f"{name}.log"
        )
        yield process


def test_a_node_is_lost_and_another_joins(tmp_path: Path, checkpoints: Path, monkeypatch) -> None:
    """Fails if a row is lost or doubled with a node, if finished shards wait for all others, or a node needs another's disk."""
    with s3_server(tmp_path) as s3, ExitStack() as nodes:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        store, bucket = s3.filesystem(), f"s3://{s3.bucket}"
        store.put(str(AUDIO), f"{s3.bucket}/audio", recursive=True)
        store.put(str(checkpoints / "audio-en"), f"{s3.bucket}/model", recursive=True)
        records = [
            {**row, "audio": f"{bucket}/audio/{Path(str(row['audio'])).name}", "language": "en"} for row in rows(_ROWS)
        ]
        store.put(str(write_manifest(tmp_path / "m.jsonl", records)), f"{s3.bucket}/m.jsonl")

        cluster = nodes.enter_context(head(tmp_path, 0, environment={"PYTHONPATH": str(ROOT)}))
        lost, _ = (nodes.enter_context(node(cluster, tmp_path, name)) for name in ("one", "two"))
        job = [
            sys.executable, "-m", "jobs.submit", "--address", cluster.dashboard, "--run-id", "nodes", "--",
            "--manifest", f"{bucket}/m.jsonl", "--output", f"{bucket}/out", "--mode", "audio", "--shard-rows", "2",
            "--fusion-model", f"en={bucket}/model",
        ]  # fmt: skip
        log = tmp_path / "job.log"
        with started(job, log, cluster.environment) as process:

            def parts() -> int:
                return len(store.glob(f"{s3.bucket}/out/utterances/*.parquet"))

            wait_until(lambda: parts() >= 3, process, log, timeout_s=200)
            done = parts()
            kill_hard(lost)
            nodes.enter_context(node(cluster, tmp_path, "three"))
            assert process.wait(200) == 0, log.read_text()
        assert done < _ROWS // 2 - 5, f"{done} shards were done before the node was lost: nothing was shown"
        found = utterances(f"{s3.bucket}/out", store)
        assert found["recording_id"].to_pylist() == [row["id"] for row in records]
        audit = subprocess.run(
            [sys.executable, "-m", "jobs.verify", f"{bucket}/out", "--deep"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert audit.returncode == 0, audit.stdout + audit.stderr
        fetched = [name for name in ("one", "two", "three") if list((tmp_path / name).rglob("model.safetensors"))]
        assert {"one", "two"} <= set(fetched), "each node was to fetch the model for itself"
