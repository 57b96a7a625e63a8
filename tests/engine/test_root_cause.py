"""The error that a job ends with when a step or a model failed on a worker."""

from __future__ import annotations

import warnings

import pyarrow as pa
import pytest
import ray
import ray.data
from ray.exceptions import RayError

from pipeline.engine.cluster import _Starting
from pipeline.engine.stages import _Reporting, _root_cause
from pipeline.errors import ConfigError, JobError, StuckPlansError
from pipeline.shard.crashes import CrashTracker

ERRORS: dict[str, tuple[Exception, type[Exception], str]] = {
    "ours": (
        JobError("5 of 9 rows of shard 000001-000000 failed"),
        JobError,
        "5 of 9 rows of shard 000001-000000 failed",
    ),
    "the caller's": (ConfigError("fusion/en: other weights"), ConfigError, "fusion/en: other weights"),
    "with fields": (StuckPlansError("a plan", [{"run_id": "000001"}]), StuckPlansError, "a plan"),
    "a full disk": (
        OSError(28, "No space left on device", "/x"),
        JobError,
        "OSError: [Errno 28] No space left on device: '/x'",
    ),
    "a bug": (KeyError("a"), JobError, "KeyError: 'a'"),
}


class FailingStart:
    """An actor that fails as its models would."""

    def __init__(self, tracker, error) -> None:
        with _Reporting(tracker):
            raise error

    def __call__(self, block: pa.Table) -> pa.Table:
        return block


def failing_step(block: pa.Table, tracker, error) -> pa.Table:
    with _Reporting(tracker):
        raise error


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("place", ["step", "start of an actor"])
def test_the_driver_raises_the_workers_error(name, place):
    """Fails if the driver loses the type, message or fields of the error, or reports Ray Data's advice in its place."""
    error, kind, message = ERRORS[name]
    tracker = ray.remote(CrashTracker).options(num_cpus=0).remote()
    arguments = {"tracker": tracker, "error": error}
    with pytest.raises(RayError) as raised, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of Ray's own code
        rows = ray.data.range(1)
        if place == "step":
            failing = rows.map_batches(failing_step, batch_format="pyarrow", fn_kwargs=arguments)
        else:
            one = ray.data.ActorPoolStrategy(size=1)
            failing = rows.map_batches(
                FailingStart, batch_format="pyarrow", fn_constructor_kwargs=arguments, compute=one
            )
        failing.materialize()
    cause = _root_cause(raised.value, tracker)
    assert type(cause) is kind and str(cause) == message
    assert getattr(cause, "reports", None) == getattr(error, "reports", None)


@pytest.mark.usefixtures("shared_ray")
def test_without_a_reported_error_rays_last_line_is_the_message():
    """Fails if an error of Ray's own is reported as nothing."""
    tracker = ray.remote(CrashTracker).options(num_cpus=0).remote()
    cause = _root_cause(RayError("The node died.\nIts address was 10.0.0.1"), tracker)
    assert type(cause) is JobError and str(cause) == "RayError: Its address was 10.0.0.1"


def test_a_start_that_fails_is_a_sentence() -> None:
    """Fails if Ray's bare exception on a busy machine ends the job with a traceback, or a mistake of ours with a sentence."""
    with (
        pytest.raises(JobError, match="cannot start Ray here: The current node timed out"),
        _Starting("start Ray here"),
    ):
        raise Exception("The current node timed out during startup.")
    with pytest.raises(KeyError), _Starting("start Ray here"):
        raise KeyError("ours")
