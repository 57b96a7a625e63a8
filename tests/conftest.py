"""Shared fixtures: checkpoints made once a machine, an S3 server and a Ray once a test process; and the option `--quick`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from demo.models import MODELS
from tests.support.checkpoints import materialize
from tests.support.corpus import NO_SERVERS, ROOT
from tests.support.s3_server import S3Server, s3_server
from tests.support.shared_ray import SharedRay, started_ray

os.environ["HF_HUB_OFFLINE"] = "1"
_LONGEST = ("test_kills", "test_annotate_job", "test_crashes", "test_listening", "test_secrets", "test_faults", "test_nightly",
            "test_airgapped", "test_old_outputs", "test_orchestrators", "test_watchdog", "test_nodes", "test_cluster",
            "test_notebook")  # fmt: skip
"""Files of minutes rather than seconds, each started first: one begun last would keep one process busy and the others idle."""


_SERVERS = {"shared_ray", "own_ray", "s3"}
"""Fixtures that start Ray or an S3 server, or permit a test to; a test that gets one by name has the name as a parameter."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="leave out the tests that start Ray or an S3 server")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("quick"):
        os.environ[NO_SERVERS] = "1"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Drop what `--quick` leaves out, by the fixtures of each test, and put the longest files first in the random order.

    `--no-loadscope-reorder` keeps that order where tests run in parallel.
    """
    if config.getoption("quick"):
        config.hook.pytest_deselected(items=[item for item in items if _needs_servers(item)])
        items[:] = [item for item in items if not _needs_servers(item)]
    items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


def _needs_servers(item: pytest.Item) -> bool:
    assert isinstance(item, pytest.Function)
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return not _SERVERS.isdisjoint([*item.fixturenames, *(value for value in parameters if isinstance(value, str))])


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
def shared_ray(s3: S3Server) -> Iterator[SharedRay]:
    """The one Ray of this process, for jobs whose start and end are not the subject; each has an output of its own."""
    with started_ray(s3.endpoint) as ray:
        yield ray


@pytest.fixture(scope="session")
def own_ray() -> None:
    """The right to start Ray in other processes, for tests of how jobs start, end, die or join a cluster."""


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
