"""The guard: what is a row's fault, and what is not."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import ConfigError, JobError, Reason, RejectedRow, Stage
from pipeline.work import guard


def raising(error: BaseException) -> RejectedRow:
    def work() -> None:
        raise error

    outcome = guard(work, Stage.RECOGNISE)
    assert isinstance(outcome, RejectedRow)
    return outcome


def test_results_pass():
    """Fails if the guard changes what it guards."""
    assert guard(lambda: 7, Stage.DECODE) == 7


def test_a_rejection_passes_as_it_is():
    """Fails if a reason that was found is replaced by another."""
    rejected = RejectedRow(Reason.TRUNCATED, "cut", Stage.DECODE)
    assert raising(rejected) is rejected


def test_what_nobody_foresaw_is_internal():
    """Fails if an exception's type is lost, or it ends the shard."""
    outcome = raising(ZeroDivisionError("by nothing"))
    assert (outcome.reason, outcome.detail) == (Reason.INTERNAL, "ZeroDivisionError: by nothing")
    assert outcome.stage is Stage.RECOGNISE


@pytest.mark.parametrize("error", [
    MemoryError("12 GiB"), torch.OutOfMemoryError("CUDA out of memory"), torch.cuda.OutOfMemoryError("out of memory"),
], ids=["Python", "torch", "torch.cuda"])  # fmt: skip
def test_lack_of_memory_is_known_for_what_it_is(error):
    """Fails if a row too big for the memory or the GPU counts as a bug, of which a few stop the job."""
    assert raising(error).reason is Reason.OUT_OF_MEMORY


@pytest.mark.parametrize("error", [JobError("no credentials"), ConfigError("no such model")])
def test_the_jobs_trouble_is_no_rows(error):
    """Fails if what is wrong with the job or its settings is written down as one row's reject after another."""
    with pytest.raises(type(error)):
        raising(error)
