"""docs/reliability.md from the trials of the long tier."""

from __future__ import annotations

import json
import os
import platform
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from statistics import median

from tests.long.chaos_roles import MISSED
from tests.support.corpus import ROOT

DOCUMENT = ROOT / "docs" / "reliability.md"
_BEGIN, _END = "<!-- trials: written by `make chaos` -->\n", "<!-- end of trials -->\n"


def write_report(trials: Path, promises: Mapping[str, str]) -> None:
    """Put the table of trials into the document, between its marks; the rest of it stays."""
    lines = [json.loads(line) for line in trials.read_text(encoding="utf-8").splitlines()] if trials.exists() else []
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    DOCUMENT.write_text(before + _BEGIN + table(lines, promises) + _END + after, encoding="utf-8")


def table(lines: list[dict[str, object]], promises: Mapping[str, str]) -> str:
    """Trials and violations by role. Of N trials without one, the rate is below 3/N with 95 % confidence.

    Trials that were over before their disturbance came are not counted.
    """
    by_role: dict[str, list[dict[str, object]]] = defaultdict(list)
    for line in lines:
        by_role[str(line["role"])].append(line)
    rows = ["| trial | N | violations | rate below (95 %) | seconds, median and longest |", "|---|---|---|---|---|"]
    for role, promise in promises.items():
        played = [line for line in by_role.get(role, []) if not str(line["said"]).startswith(MISSED)]
        broken = sum(bool(line["violation"]) for line in played)
        bound = "" if broken or not played else f"{min(3 / len(played), 1):.1%}"
        took = sorted(float(str(line["seconds"])) for line in played)
        seconds = f"{median(took):.1f}, {took[-1]:.1f}" if took else ""
        rows.append(f"| {promise} | {len(played)} | {broken} | {bound} | {seconds} |")
    hours = sum(float(str(line["seconds"])) for line in lines) / 3600
    commits = ", ".join(dict.fromkeys(str(line["commit"]) for line in lines))
    where = f"{os.cpu_count()} cores of {platform.machine()}, no GPU, {platform.system()}"
    return "\n".join([*rows, "", f"{len(lines)} trials in {hours:.1f} h on {where}; commits {commits or 'none'}.", ""])
