"""A real S3 server on loopback for tests: SeaweedFS, which honours conditional writes."""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import botocore.exceptions
import s3fs

from tests.support.corpus import require_servers

_PORTS = ("master", "volume", "filer", "s3")
_START_DEADLINE_S = 60.0


@dataclass(frozen=True)
class S3Server:
    endpoint: str
    bucket: str
    environment: dict[str, str]

    def filesystem(self) -> s3fs.S3FileSystem:
        return s3fs.S3FileSystem(
            key=self.environment["AWS_ACCESS_KEY_ID"],
            secret=self.environment["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.endpoint,
            use_listings_cache=False,
            skip_instance_cache=True,
        )


def _free_ports(count: int) -> list[int]:
    """Return free ports below 20000 whose gRPC port, 10000 higher, is free as well."""
    ports: list[int] = []
    # two test processes at once must not pick the same: pytest-randomly gives all of them one seed
    candidate = random.SystemRandom().randrange(10_000, 19_000)
    while len(ports) < count:
        candidate += 1
        if all(_is_free(port) for port in (candidate, candidate + 10_000)):
            ports.append(candidate)
    return ports


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start the server on data below `folder`, make a bucket, and stop the server at the end."""
    require_servers()
    ports = dict(zip(_PORTS, _free_ports(4), strict=True))
    identity = {"accessKey": "test-access", "secretKey": "test-secret"}
    config = folder / "s3.json"
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    config.write_text(json.dumps({"identities": [{"name": "test", "credentials": [identity], "actions": actions}]}))
    weed = shutil.which("weed") or str(Path(sys.executable).parent / "weed")
    command = [weed, "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3",
               f"-s3.port={ports['s3']}", f"-master.port={ports['master']}", f"-volume.port={ports['volume']}",
               f"-filer.port={ports['filer']}", f"-s3.config={config}", "-volume.max=50",
               "-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]  # fmt: skip
    with (folder / "weed.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    endpoint = f"http://127.0.0.1:{ports['s3']}"
    environment = {
        "AWS_ACCESS_KEY_ID": identity["accessKey"],
        "AWS_SECRET_ACCESS_KEY": identity["secretKey"],
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server = S3Server(endpoint, "corpus", environment)
    try:
        _make_bucket(server, process)
        yield server
    finally:
        process.kill()  # a graceful stop takes 25 s and keeps nothing we want
        process.wait(30)


def _make_bucket(server: S3Server, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_DEADLINE_S
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"weed ended with status {process.returncode}")
        try:
            server.filesystem().mkdir(server.bucket)
            # volumes are assigned a little after the gateway answers
            server.filesystem().pipe_file(f"{server.bucket}/ready", b"yes")
            return
        except (OSError, ValueError, botocore.exceptions.BotoCoreError) as error:  # the last: nobody listens yet
            if time.monotonic() > deadline:
                raise RuntimeError("weed did not start") from error
            time.sleep(0.25)
