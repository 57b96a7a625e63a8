"""Which precision is said to be slow on which processor."""

from __future__ import annotations

import io

import pytest

from pipeline.config import load_config
from pipeline.engine.pools import Resources
from pipeline.engine.run import Driver
from pipeline.models import processor
from tests.support.manifests import jsonl

FLAGS = "processor\t: 0\nflags\t\t: fpu avx2 avx512f {}\nbogomips : 1\n"


@pytest.mark.parametrize(
    ("flags", "slow"),
    [("", {"bf16", "fp16"}), ("avx512_bf16", {"fp16"}), ("amx_bf16 amx_tile", {"fp16"}), ("avx512_fp16", {"bf16"})],
)
def test_a_precision_without_instructions_is_said_to_be_slow(tmp_path, monkeypatch, flags, slow):
    """Fails if a processor is warned of that is fast, or one that emulates is not."""
    (tmp_path / "cpuinfo").write_text(FLAGS.format(flags))
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    said = {name: processor.slow_precision(name) for name in ("fp32", "bf16", "fp16", "int8")}
    assert {name for name, sentence in said.items() if sentence} == slow
    assert all(f"--precision {name} is slower than fp32" in str(said[name]) for name in slow)


@pytest.mark.parametrize("content", [None, "processor : 0\nFeatures : fp asimd bf16\n"])
def test_an_unknown_processor_is_not_warned_of(tmp_path, monkeypatch, content):
    """Fails if a system without /proc, or another kind of processor, stops the job or gets advice for x86."""
    if content is not None:
        (tmp_path / "cpuinfo").write_text(content)
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    assert processor.slow_precision("bf16") is None


def test_a_job_says_so(tmp_path, monkeypatch):
    """Fails if a job in bf16 on such a processor starts without a word, or one on GPUs or in fp32 is warned."""
    (tmp_path / "cpuinfo").write_text(FLAGS.format(""))
    monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")
    manifest = jsonl(tmp_path / "m.jsonl", {"id": "r", "audio": "a.wav"})
    said = []
    for precision, gpus in (("bf16", 0), ("bf16", 1), ("fp32", 0)):
        options = {"manifest": [str(manifest)], "output": str(tmp_path / "out"), "precision": precision}
        driver = Driver(load_config(None, options), io.StringIO())
        said.append(driver._warnings(Resources(cpus=2, gpus=gpus, memory_bytes=1e9, nodes=1, node_cpus=2)))
    assert [len(warnings) for warnings in said] == [1, 0, 0] and "bf16 is slower" in said[0][0]
