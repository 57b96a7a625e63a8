"""What a long recording costs in memory, in proportion: four hours must stay within a gigabyte and a half per process."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest

from pipeline.audio.decode import decode
from pipeline.shard.work_table import pack_waveform, unpack_waveform
from tests.hostile import make_audio as make
from tests.support.corpus import ROOT

MINUTES = 20
SAMPLES = MINUTES * 60 * 16_000
FLOAT_BYTES = 4 * SAMPLES


def peak_bytes(work: Callable[[], object]) -> int:
    """The most that Python and numpy hold at once, beyond what they hold before."""
    tracemalloc.start()
    work()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def measured_mib(script: str, *arguments: str) -> float:
    """What a script prints, run in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


@pytest.mark.parametrize(("rate", "channels"), [(16_000, 1), (44_100, 2)])
def test_a_waveform_is_held_once_while_it_is_decoded(rate, channels):
    """Fails if the pieces are joined to a second copy: 1.8 GB for four hours."""
    content = make.snd(np.tile(make.voice(10, rate, channels), (MINUTES * 6, 1)), rate, "FLAC")
    assert peak_bytes(lambda: decode(content)) < 1.1 * FLOAT_BYTES + (24 << 20)


@pytest.mark.parametrize(("minutes", "rate", "channels"), [(60, 16_000, 1), (20, 44_100, 2)])
def test_the_decoders_process_holds_no_waveform(tmp_path, minutes, rate, channels):
    """Fails if the child collects what it decodes before it answers: 1.8 GB of a four-hour file, and more in stereo."""
    path = tmp_path / "long.flac"
    path.write_bytes(make.snd(np.zeros((minutes * 60 * rate, channels), np.float32), rate, "FLAC"))
    script = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from pipeline.audio.sandbox import Sandbox\n"
        "with Sandbox() as sandbox:\n"
        "    print(len(sandbox.decode(Path(sys.argv[1]).read_bytes())))\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)\n"
    )
    assert measured_mib(script, str(path)) < 130, (
        "libraries, the file, and a few blocks; the waveform alone is 73 to 220"
    )


@pytest.mark.parametrize("scale", [1.0, 0.3], ids=["16 bit", "float"])
def test_packing_a_waveform_takes_half_of_it(scale):
    """Fails if a scaled copy of the whole is made beside its 16-bit form, or the bytes are copied once more."""
    waveform = np.tile((make.voice(1)[:, 0] * 32768).astype(np.int16), MINUTES * 60) / np.float32(32768)
    waveform = (waveform * np.float32(scale)).astype(np.float32)
    packed: list[tuple[memoryview, int]] = []
    assert peak_bytes(lambda: packed.append(pack_waveform(waveform))) < 0.5 * FLOAT_BYTES + (16 << 20)
    content, sample_bytes = packed[0]
    assert sample_bytes == (2 if scale == 1.0 else 4)
    import pyarrow as pa

    found: list[np.ndarray] = []
    assert peak_bytes(lambda: found.append(unpack_waveform(pa.py_buffer(content), sample_bytes))) < 1.05 * FLOAT_BYTES
    np.testing.assert_array_equal(found[0], waveform)


def test_filter_banks_of_a_long_clip_keep_what_is_used():
    """Fails if doubles of all samples and frames are held for the 160 s that the model is given: 6.1 GiB for four hours."""
    script = (
        "from pathlib import Path\n"
        "import numpy as np, torch\n"
        "from transformers import SeamlessM4TFeatureExtractor\n"
        "from pipeline.models.networks.fbank import FilterBanks\n"
        "torch.set_num_threads(1)\n"
        "banks = FilterBanks(SeamlessM4TFeatureExtractor(), max_frames=16_000)\n"
        "waveform = np.tile(np.random.default_rng(7).normal(0, 0.1, 160_000).astype(np.float32), 180)\n"
        "banks([waveform[:1_600_000]])\n"
        # not ru_maxrss, which a process inherits from the one that started it
        "peak_kib = lambda: int(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])\n"
        "before = peak_kib()\n"
        "banks([waveform])\n"
        "print((peak_kib() - before) / 1024)\n"
    )
    assert measured_mib(script) < 150, "of half an hour the frames that are kept are 10 MiB; all of them took 480"
