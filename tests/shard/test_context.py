"""The guard: what is a row's fault, and what is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch

from pipeline.audio.decode import decode
from pipeline.errors import ConfigError, JobError, Reason, Reject, RejectedRow, Stage
from pipeline.shard.isolation import guard
from pipeline.shard.work_table import pack_waveform, unpack_waveform
from tests.support.corpus import AUDIO


def raising(error: BaseException) -> Reject:
    def work() -> None:
        raise error

    outcome = guard(work, Stage.RECOGNISE)
    assert isinstance(outcome, Reject)
    return outcome


def test_results_pass():
    """Fails if the guard changes what it guards."""
    assert guard(lambda: 7, Stage.DECODE) == 7


def test_a_rejection_passes_as_it_is():
    """Fails if a reason that was found is replaced by another."""
    error = RejectedRow(Reason.TRUNCATED, "cut", Stage.DECODE, attempts=2)
    assert raising(error) is error.reject


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


@pytest.mark.parametrize(
    ("values", "sample_bytes"),
    [
        ([0.0, -1.0, 32767 / 32768, 1 / 32768], 2),
        ([], 2),
        ([0.0, 1.0], 4),
        ([0.5, 1 / 65536], 4),
        ([1e-30, 0.0], 4),
        ([1.5, -3.0], 4),
        ([np.nan], 4),
    ],
)
def test_a_packed_waveform_comes_out_bit_for_bit(values, sample_bytes):
    """Fails if 16 bits are taken for enough where they are not, at full scale, below one step, or beyond both."""
    waveform = np.array(values, np.float32)
    content, found = pack_waveform(waveform)
    assert found == sample_bytes and len(content) == sample_bytes * len(waveform)
    assert unpack_waveform(pa.py_buffer(content), found).tobytes() == waveform.tobytes()


@pytest.mark.parametrize(("name", "sample_bytes"), [("en_16k_pcm16.wav", 2), ("en_48k.opus", 4), ("en_22k05.mp3", 4)])
def test_what_16_bits_hold(name, sample_bytes):
    """Fails if recordings at 16 kHz and 16 bit cross the object store at twice their size."""
    waveform = decode((AUDIO / name).read_bytes())
    content, found = pack_waveform(waveform)
    assert found == sample_bytes
    np.testing.assert_array_equal(unpack_waveform(pa.py_buffer(content), found), waveform)
