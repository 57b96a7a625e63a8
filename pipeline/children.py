"""What processes that we start are told, so that they are what this one is."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def search_path() -> str:
    """A PYTHONPATH by which a child finds modules where we find them, wherever either was started."""
    root = Path(__file__).parents[1]
    return os.pathsep.join(dict.fromkeys([str(root), *(str(Path(entry).absolute()) for entry in sys.path)]))
