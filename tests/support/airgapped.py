"""Prepare models from a stand-in hub, then annotate with nothing but storage.

usage: unshare --net python -m tests.support.airgapped FOLDER

Run it in a network namespace of its own that has only loopback; it fails in any other. The hub is stopped before the job runs;
the models are on a real S3 server. Prints a JSON object with the copies of models that the node made.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def loopback_up() -> None:
    """Bring up the loopback interface, which is down in a new namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = b"lo".ljust(16, b"\0")
        (flags,) = struct.unpack_from("h", fcntl.ioctl(control, _SIOCGIFFLAGS, name + bytes(24)), 16)
        fcntl.ioctl(control, _SIOCSIFFLAGS, name + struct.pack("h", flags | _IFF_UP) + bytes(22))


def require_no_network() -> None:
    """Raise RuntimeError when anything beyond loopback can be reached."""
    with socket.socket() as probe:
        answer = probe.connect_ex(("192.0.2.1", 443))
    if answer != errno.ENETUNREACH or {name for _, name in socket.if_nameindex()} != {"lo"}:
        raise RuntimeError(f"this is no namespace without a network: connect gave {errno.errorcode.get(answer)}")


def run(*arguments: str, **environment: str) -> str:
    """Run one of our jobs to its end and return its standard output."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{arguments} ended with status {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def main(folder: Path) -> None:
    from tests.support import published
    from tests.support.corpus import AUDIO, ONE_ACTOR, write_manifest
    from tests.support.hub_standin import serve
    from tests.support.s3_server import s3_server

    home = {"HF_HOME": str(folder / "hf"), "XDG_CACHE_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "0"}
    told = AUDIO.parents[2] / "demo" / "corpus" / "audio"
    manifest = write_manifest(
        folder / "m.jsonl",
        [
            {"id": "told", "audio": str(told / "ada-prizes.wav"), "text": "We won two prizes in the hotel on Friday!"},
            {"id": "heard", "audio": str(told / "ada-hide.m4a")},
        ],
    )
    (folder / "s3").mkdir()
    with s3_server(folder / "s3") as s3:
        models = f"s3://{s3.bucket}/models"
        with serve(published.hub()) as hub:
            run("jobs.prepare_models", "--output", models, "--language", "en",
                **home, **s3.environment, HF_ENDPOINT=hub.endpoint)  # fmt: skip
        # the job starts with empty caches and a hub that is not there, and is not told to be offline
        home |= {"HF_HOME": str(folder / "hf-of-node"), "XDG_CACHE_HOME": str(folder / "cache-of-node")}
        run("jobs.annotate", "--manifest", str(manifest), "--output", str(folder / "out"), "--models", models,
            "--device", "cpu", *ONE_ACTOR, **home, **s3.environment)  # fmt: skip
    print(json.dumps({"copies": sorted(p.name for p in (folder / "cache-of-node").glob("*/checkpoints/*-*"))}))


if __name__ == "__main__":
    loopback_up()
    require_no_network()
    main(Path(sys.argv[1]))
