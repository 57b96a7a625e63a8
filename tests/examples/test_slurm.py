"""The Slurm script, run with a stand-in for srun."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.corpus import ONE_ACTOR, ROOT, model_options, rows, utterances, write_manifest
from tests.support.processes import started

BIN = Path(sys.executable).parent


def test_the_slurm_script_has_no_lint():
    """Fails if shellcheck finds an error in the script."""
    script = ROOT / "examples" / "annotate.sbatch"
    done = subprocess.run([BIN / "shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


_SRUN = """#!/bin/bash
# runs on this machine what srun would run on a node, and logs its arguments
echo "$@" >> "$SRUN_LOG"
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""


@pytest.mark.usefixtures("own_ray")
def test_the_slurm_script_runs_the_job_and_ends_with_its_status(tmp_path, checkpoints, asr):
    """Fails if the script cannot start Ray, does not find its own Ray, or ends with another status than the job."""
    (tmp_path / "srun").write_text(_SRUN)
    (tmp_path / "srun").chmod(0o755)
    manifest = write_manifest(tmp_path / "m.jsonl", rows(2))
    slurm = {"SLURM_JOB_ID": str(os.getpid()), "SLURMD_NODENAME": "n1", "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURM_CPUS_ON_NODE": "2", "SLURM_SUBMIT_DIR": str(ROOT), "SRUN_LOG": str(tmp_path / "log")}
    slurm |= {"SPEECH_EMOTION_BIN": str(BIN), "SPEECH_EMOTION_ADDRESS": "127.0.0.1", "TMPDIR": "/tmp"}
    options = ["--manifest", str(manifest), "--output", str(tmp_path / "out"), *model_options(checkpoints, asr)]
    options += ONE_ACTOR
    environment = {**os.environ, **slurm, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "examples" / "annotate.sbatch"), *options]
    with started(command, tmp_path / "job.log", environment) as process:
        assert process.wait(200) == 0, (tmp_path / "job.log").read_text()
    assert utterances(tmp_path / "out").num_rows == 2
    assert "--nodelist=n1" in (tmp_path / "log").read_text()
