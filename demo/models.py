"""Untrained checkpoints for the demo: the published architectures, small, with random weights. They know nothing.

Written once into `build/demo-models`, 70 MB, some 15 s (mostly the import of torch, twice). The fusion models and
sentence encoders are those of the parity tests, the speech recogniser that of `tools/untrained_asr.py`; both run as
commands, so that this process stays small while the job runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MODELS = Path("build/demo-models")
"""Relative to `ROOT`, where the job is started, so that the printed command is short."""

_PARITY = ROOT / "tests" / "parity"
_ASR_TOOL = ROOT / "tools" / "untrained_asr.py"
_CHECKPOINTS = ("mean-en", "mean-es", "bert-en", "bert-es")
_MARKER = "COMPLETE"


def options() -> list[str]:
    """The job's model options that name these checkpoints; without them it takes the published ones."""
    return [
        *("--fusion-model", f"en={MODELS}/mean-en", f"es={MODELS}/mean-es"),
        *("--sentence-encoder", f"en={MODELS}/bert-en", f"es={MODELS}/bert-es"),
        *("--asr-model", f"{MODELS}/asr"),
    ]


def complete() -> bool:
    """Whether the checkpoints are there, whole and made from the sources as they are now."""
    marker = ROOT / MODELS / _MARKER
    return marker.is_file() and marker.read_text(encoding="utf-8") == _digest()


def write() -> None:
    """Write the checkpoints, in place of any that are there.

    Raises: subprocess.CalledProcessError when a writer fails, with what it said in `stderr`.
    """
    target = ROOT / MODELS
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".demo-models-") as folder:
        fresh, sources = Path(folder) / "models", Path(folder) / "sources"
        fresh.mkdir()
        sources.mkdir()
        for name in _CHECKPOINTS:
            (sources / name).symlink_to(_PARITY / "checkpoints" / name, target_is_directory=True)
        _python(_PARITY / "materialize.py", fresh, "--checkpoints", sources)
        _python(_ASR_TOOL, fresh / "asr")
        (fresh / _MARKER).write_text(_digest(), encoding="utf-8")
        shutil.rmtree(target, ignore_errors=True)
        fresh.rename(target)


def _python(script: Path, *arguments: object) -> None:
    """Run a script of this checkout; its progress bars are not for the demo's reader."""
    subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def _digest() -> str:
    """Of everything the checkpoints are a function of."""
    digest = hashlib.sha256()
    configs = [file for name in _CHECKPOINTS for file in sorted((_PARITY / "checkpoints" / name).iterdir())]
    for path in [_PARITY / "materialize.py", _PARITY / "weights.py", _ASR_TOOL, *configs]:
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()
