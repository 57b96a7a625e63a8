"""A cluster of several nodes that share nothing but an object store: it starts without a GPU, two join, one is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from demo.models import MODELS
from tests.support import logical_gpus
from tests.support.corpus import AUDIO, ROOT, command, rows, utterances, write_manifest
from tests.support.noop_models import environment, models_of
from tests.support.processes import kill_hard, started, victims, wait_until
from tests.support.ray_head import BIN, Head, free_port, head
from tests.support.s3_server import s3_server

pytestmark = pytest.mark.usefixtures("own_ray")

_ROWS = 120
_PAUSE_S = 2.0
"""A shard. Ray Data learns of a node within 20 s; the second node must find work left."""


@contextmanager
def node(cluster: Head, folder: Path, name: str, *, gpus: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A worker node with GPUs that are none and a cache of its own, on this machine; the code is in its image."""
    command = [
        str(BIN / "ray"), "start", "--block", f"--address={cluster.environment['RAY_ADDRESS']}",
        "--node-ip-address=127.0.0.1", "--num-cpus=2", f"--num-gpus={gpus}", f"--dashboard-agent-listen-port={free_port()}",
        "--disable-usage-stats",
    ]  # fmt: skip
    own = {
        **cluster.environment,
        "PATH": f"{BIN}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(folder / name),
    }
    log = folder / f"{name}.log"
    with started(command, log, own) as process:
        wait_until(lambda: "Ray runtime started" in log.read_text(), process, log)
        yield process


@pytest.mark.timeout(600)
def test_pools_follow_the_nodes(tmp_path: Path, checkpoints: Path, monkeypatch) -> None:
    """Fails if Ray Data refuses the pipeline where there are GPUs (it wanted a batch size then), if a job is refused or hangs
    while there is none, if its pools do not spread to a node that joins, if a row is lost or doubled with a node, or if a
    node needs another's disk."""
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
        options = [
            "--device", "cuda", "--shard-rows", "2", "--emotion-model", f"en={bucket}/mean-en",
            "--sentence-encoder", f"en={bucket}/bert-en", "--asr-model", f"{bucket}/whisper", "--asr-compute-type", "float32",
        ]  # fmt: skip
        armed = json.dumps(logical_gpus.runtime_env(_PAUSE_S))
        cluster = nodes.enter_context(head(tmp_path, 0, environment={"PYTHONPATH": str(ROOT)}))
        submit = [str(BIN / "ray"), "job", "submit", "--address", cluster.dashboard, "--runtime-env-json", armed, "--"]
        job = [*submit, *command(f"{bucket}/m.jsonl", f"{bucket}/out", *options)]
        log = tmp_path / "job.log"
        with started(job, log, {**cluster.environment, "RAY_ADDRESS": ""}) as process:

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
            # where none comes, the job starts over after two minutes: the test below
            nodes.enter_context(node(cluster, tmp_path, "three"))
            assert process.wait(300) == 0, log.read_text()
        assert done < _ROWS // 2 - 3, f"{done} shards were done before the node was lost: nothing was shown"
        found = utterances(f"{s3.bucket}/out", store)
        assert sorted(found["recording_id"].to_pylist()) == sorted(str(row["id"]) for row in records)
        assert set(found["text_source"].to_pylist()) == {"manifest", "asr"}
        pools = json.loads(store.cat(f"{s3.bucket}/out/_runs/000001/report.json"))["pools"]
        assert pools["device"] == "cuda"
        assert [(pool["stage"], pool["gpus"]) for pool in pools["pools"]] == [("transcribe", 0.5), ("recognise", 0.5)]
        audit = subprocess.run(
            [sys.executable, "-m", "jobs.verify", f"{bucket}/out", "--deep"],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert audit.returncode == 0, audit.stdout + audit.stderr


@pytest.mark.timeout(600)
def test_a_lost_node_that_nothing_replaces_costs_nothing(tmp_path: Path) -> None:
    """Fails if the actors of a lost node, started again on the one that is left, keep its CPUs from the tasks that feed them.

    Two actors of 0.6 CPUs run on each node. A third leaves too little of the other node's two for any task; it finds its place
    because shards take seconds to recognise, and tasks mostly wait. The task that spreads the shards may be on the lost node.
    """
    records = rows(48)
    manifest = write_manifest(tmp_path / "m.jsonl", records)
    models, widths = models_of("mean")
    out, log = tmp_path / "out", tmp_path / "job.log"
    hurried = (
        "import sys\nfrom pipeline.engine import source, watchdog\nfrom jobs.annotate import main\n"
        "watchdog._WARN_AFTER_S, source.SHARDS_PER_BLOCK = 5.0, 4\nsys.exit(main())"
    )
    arguments = command(str(manifest), out, *models, "--language", "en", "--shard-rows", "2")[3:]
    with head(tmp_path, 0, environment={"PYTHONPATH": str(ROOT)}) as cluster, ExitStack() as nodes:
        lost, _ = (nodes.enter_context(node(cluster, tmp_path, name, gpus=0)) for name in ("one", "two"))
        armed = {**cluster.environment, **environment(widths, device_s_per_audio_s=1.0)}
        with started([sys.executable, "-c", hurried, *arguments], log, armed) as process:
            wait_until(lambda: len(list(out.glob("utterances/*.parquet"))) >= 4, process, log)
            kill_hard(lost)
            done = len(list(out.glob("utterances/*.parquet")))
            assert process.wait(300) == 0, log.read_text()
    assert done < len(records) // 2 - 8, f"{done} shards were done before the node was lost: nothing was shown"
    assert "no stage is processing a shard" in log.read_text() and "A node was lost" in log.read_text()
    assert sorted(utterances(out)["recording_id"].to_pylist()) == sorted(str(row["id"]) for row in records)
