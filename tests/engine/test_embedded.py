"""A job that starts Ray itself: nobody but this job can reach it."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.support.corpus import ROOT, command, rows, utterances, write_manifest
from tests.support.processes import descendants, started

pytestmark = pytest.mark.usefixtures("own_ray")
_LOOK_EVERY_S = 0.2
STRANGER = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None))
"""


def listening(root: int) -> dict[tuple[str, int], str]:
    """Address -> process name, of every TCP socket that a process or one below it listens on."""
    found = {}
    for pid in [root, *descendants(root)]:
        try:
            process = psutil.Process(pid)
            for each in process.net_connections(kind="tcp"):
                if each.status == psutil.CONN_LISTEN:
                    found[each.laddr.ip.removeprefix("::ffff:"), each.laddr.port] = process.name()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended meanwhile
    return found


def ask(address: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What Ray's head answers to a process outside the job."""
    return subprocess.run(
        [sys.executable, "-c", STRANGER, address], env={**os.environ, "RAY_AUTH_MODE": "token", **environment},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_ray_of_its_own_is_out_of_reach(tmp_path: Path) -> None:
    """Fails if a socket of the job's is open to the network at any time, its head answers to a process that has no token, or
    the token is left in a file.
    """
    manifest = write_manifest(tmp_path / "m.jsonl", [row for row in rows(30) if row["language"] == "en"])
    job = command(manifest, tmp_path / "out", "--mode", "text", "--emotion-model", str(ROOT / "demo/models/text-en"),
                  "--language", "en", "--shard-rows", "2", "--device", "cpu")  # fmt: skip
    log, seen, answers = tmp_path / "log", {}, {}
    clean = {"HOME": str(tmp_path), "RAY_ADDRESS": "", "RAY_TMPDIR": "/tmp"}
    with started(job, log, clean) as process:
        while process.poll() is None:
            time.sleep(_LOOK_EVERY_S)
            seen |= listening(process.pid)
            heads = [where for where, name in seen.items() if name == "gcs_server"]
            if heads and not answers and "raylet" in seen.values():
                address = "{}:{}".format(*heads[0])
                (head,) = (p for p in map(psutil.Process, descendants(process.pid)) if p.name() == "gcs_server")
                answers["theirs"] = ask(address, **clean, RAY_AUTH_TOKEN=head.environ().get("RAY_AUTH_TOKEN", ""))
                answers["stranger's"] = ask(address, **clean, RAY_AUTH_TOKEN="0" * 64)
        assert process.returncode == 0, log.read_text()
    assert utterances(tmp_path / "out").num_rows == 25
    names = set(seen.values())
    assert {"gcs_server", "raylet"} <= names and any(name.startswith("ray::") for name in names), names
    assert [where for where in seen if not ipaddress.ip_address(where[0]).is_loopback] == []
    assert answers["theirs"].returncode == 0, answers["theirs"].stderr
    assert answers["stranger's"].returncode != 0 and "InvalidAuthToken" in answers["stranger's"].stderr
    assert not (tmp_path / ".ray").exists()
