"""What a person reads when a task or an actor of the job failed."""

from __future__ import annotations

import pytest
from ray.exceptions import RayError

from pipeline.engine.cluster import _Starting
from pipeline.engine.stages import _root_cause
from pipeline.errors import JobError

TASK = """\x1b[36mray::MapBatches(commit_shard)()\x1b[39m (pid=1, ip=10.0.0.1)
  File "pipeline/storage/store.py", line 7, in put_if_absent
    file.write(content)
{cause}

The above exception was the direct cause of the following exception:

\x1b[36mray::MapBatches(commit_shard)()\x1b[39m (pid=1, ip=10.0.0.1)
ray.exceptions.UserCodeException: UDF failed to process a data block.
Failed to apply UDF transform after 1/1 attempts (total backoff 0.0s).
To change retry attempts, backoff, or which errors are retried, configure `DataContext` (`retried_io_errors` for I/O)"""


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("OSError: [Errno 28] No space left on device: '/x'", "OSError: [Errno 28] No space left on device: '/x'"),
        ("pipeline.errors.JobError: 5 of 9 rows", "5 of 9 rows"),
        ("KeyError: 'a'\n\nDuring handling of it:\n\nlib.OddError: b", "lib.OddError: b"),
        ("ValueError: two\nlines", "ValueError: two"),
    ],
)
def test_the_cause_is_said_and_not_rays_advice(cause, said):
    """Fails if a full disk is reported as `To change retry attempts ...`, as it was."""
    assert _root_cause(RayError(TASK.format(cause=cause))) == said


def test_without_a_known_cause_the_last_line_is_said():
    """Fails if an error of Ray's own is reported as nothing."""
    assert _root_cause(RayError("The node died.\nIts address was 10.0.0.1")) == "RayError: Its address was 10.0.0.1"


def test_a_start_that_fails_is_a_sentence() -> None:
    """Fails if Ray's bare exception on a busy machine ends the job with a traceback, or a mistake of ours with a sentence."""
    with (
        pytest.raises(JobError, match="cannot start Ray here: The current node timed out"),
        _Starting("start Ray here"),
    ):
        raise Exception("The current node timed out during startup.")
    with pytest.raises(KeyError), _Starting("start Ray here"):
        raise KeyError("ours")
