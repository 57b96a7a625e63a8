"""The notebook: its code cells, run in order in a process of their own, with Ray on this machine."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.corpus import ROOT

NOTEBOOK = ROOT / "examples" / "notebook.ipynb"
RESULTS = """
print(json.dumps({
    "single": [utterance.emotion, utterance.text_source],
    "list": [sorted(clip.emotion for clip in clips), [reject.reason for reject in clips.rejects]],
    "report": [report["rows"], report["utterances"], report["rejected"]],
    "counted": int(emotions["utterances"].sum()),
    "nearest": nearest[0].recording_id,
    "status": audit.status,
}))
"""


@pytest.mark.usefixtures("own_ray")
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    """Fails if a cell raises, labels the demo's clips with another emotion, loses a row, or if outputs are saved in the file."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    script = tmp_path / "cells.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells) + RESULTS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script], cwd=NOTEBOOK.parent, capture_output=True, text=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "single": ["fear", "asr"],
        "list": [["anger", "joy", "surprise"], ["NOT_AUDIO"]],
        "report": [10, 10, 0],
        "counted": 10,
        "nearest": "ada-prizes",
        "status": "sound",
    }
