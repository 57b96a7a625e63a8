"""Shared fixtures: checkpoints made once a machine, an S3 server made once a session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from demo.models import MODELS
from tests.support.checkpoints import materialize
from tests.support.corpus import ROOT
from tests.support.s3_server import S3Server, s3_server

os.environ["HF_HUB_OFFLINE"] = "1"
_LONGEST = ("test_kills", "test_annotate_job", "test_crashes", "test_listening", "test_secrets", "test_faults", "test_nightly",
            "test_airgapped", "test_orchestrators", "test_watchdog", "test_nodes", "test_cluster")  # fmt: skip
"""Files of minutes rather than seconds, each started first: one begun last would keep one process busy and the others idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the random order, but for the longest files; `--no-loadscope-reorder` lets it stand where tests run in parallel."""
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


@pytest.fixture(scope="session")
def checkpoints() -> Path:
    """The parity checkpoints as Hugging Face directories."""
    return materialize()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server; its credentials are in the environment while it runs."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def asr() -> Path:
    """The small Whisper of the demo, in CTranslate2 form."""
    return ROOT / MODELS / "whisper"


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch on one thread, as an actor runs it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
