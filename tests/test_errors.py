"""Exceptions between processes."""

from __future__ import annotations

import inspect
import pickle

import pytest

from pipeline import errors
from pipeline.errors import (
    ConfigError,
    JobError,
    NoWorkersError,
    OutdatedReportError,
    Reason,
    Reject,
    RejectedRow,
    Stage,
    StuckPlansError,
)
from pipeline.storage.retry import GaveUp, Redirected

EXAMPLES = [
    RejectedRow(Reason.FETCH_FAILED, "https://h/a.wav?sig=SECRET failed 3 times", Stage.FETCH, attempts=3),
    ConfigError("--output is missing"),
    JobError("https://h/m?token=SECRET does not answer"),
    NoWorkersError("no recognise actor runs"),
    OutdatedReportError("run 000001 is complete, but its report describes other parts"),
    StuckPlansError("run 000002 cannot be finished", [{"run_id": "000001", "rows": 5}]),
    GaveUp("reading s3://b/k failed 3 times in 60 s, last with TimeoutError", 3),
    Redirected(302, "https://elsewhere/"),
]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)
def test_an_exception_survives_pickling_with_its_fields(error):
    """Fails if an exception reaches the driver as another type, without a field, or not at all."""
    error.args = (f"{error}\nTo change retry attempts, configure `DataContext`",)  # as Ray Data does
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error) and vars(copy) == vars(error)
    assert "To change retry attempts" not in str(copy) and "SECRET" not in str(copy)


def test_every_exception_has_an_example():
    """Fails if a new exception of the module is not in the test above."""
    defined = {
        kind for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, Exception) and kind.__module__ == errors.__name__ and not kind.__name__.startswith("_")
    }  # fmt: skip
    assert defined <= {type(error) for error in EXAMPLES}


@pytest.mark.parametrize("reason", Reason)
def test_a_reject_is_read_as_it_was_written(reason):
    """Fails if the JSON form of receipts and work tables loses a field."""
    reject = Reject(reason, "an é in the detail", Stage.DECODE, attempts=4)
    assert Reject.of(reject.document()) == reject


@pytest.mark.parametrize(
    "changed", [{"reason": "WHATEVER"}, {"stage": "lunch"}, {"detail": 5}, {"attempts": "2"}, {"attempts": None}]
)
def test_a_reject_outside_the_closed_lists_is_refused(changed):
    """Fails if a damaged receipt adds a reason, or a value of another type, to `rejects`."""
    document = Reject(Reason.EMPTY, "zero bytes", Stage.DECODE).document()
    with pytest.raises((ValueError, TypeError)):
        Reject.of({**document, **changed})
