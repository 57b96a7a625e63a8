"""The long tier: jobs killed, paused, doubled and starved of their store, again and again, each then audited.

usage: python -m tests.long.chaos [--minutes M] [--role ROLE ...] [--seed N]      (or `make chaos`)
       python -m tests.long.chaos --report                                        only write docs/reliability.md anew

Trials go one after the other, roles in turn, and each is a line of `build/chaos.jsonl` the moment it is over: a run that is
interrupted goes on, and the report counts all lines. A trial's seed repeats its choices, not its timing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.long.chaos_report import write_report
from tests.long.chaos_roles import ROLES, Broken, Stage
from tests.support.corpus import ROOT
from tests.support.s3_server import s3_server

TRIALS = ROOT / "build" / "chaos.jsonl"
_TURNS = ("kill_at_a_write", "store_that_fails", "paused_writer", "two_jobs") * 5 + (
    "driver_kill",
    "worker_kill",
    "head_loss",
    "node_loss",
)
"""Trials without models take seconds, those with Ray most of a minute."""


def play(stage: Stage, role: str, seed: int) -> dict[str, object]:
    """One trial, as a line of the log."""
    begun = time.monotonic()
    violation = ""
    try:
        said = ROLES[role](stage, random.Random(seed))
    except Broken as broken:
        said, violation = "", str(broken)
    except Exception:  # noqa: BLE001 - a trial that cannot be played is a finding too
        said, violation = "", traceback.format_exc()[-800:]
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {"role": role, "seed": seed, "seconds": round(time.monotonic() - begun, 2), "said": said,
            "violation": violation, "commit": commit.stdout.strip()}  # fmt: skip


def main() -> int:
    """Play trials until time is up, then write the report; 1 when a promise was broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.long.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--role", nargs="+", choices=list(ROLES), default=None)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="write docs/reliability.md from the trials there are")
    asked = parser.parse_args()
    broken = 0
    if not asked.report:
        TRIALS.parent.mkdir(exist_ok=True)
        rng, ends = random.Random(asked.seed), time.monotonic() + 60 * asked.minutes
        turns = [role for role in _TURNS if asked.role is None or role in asked.role]
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder, s3_server(Path(folder)) as server:
            os.environ.update(server.environment)
            stage = Stage(Path(folder) / "trials", server)
            for number in range(10**9):
                if time.monotonic() > ends:
                    break
                line = play(stage, turns[number % len(turns)], rng.randrange(2**31))
                broken += bool(line["violation"])
                with TRIALS.open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
                print(f"{line['role']:16} {line['seconds']:6.1f} s  {line['violation'] or line['said']}", flush=True)
    write_report(TRIALS, {name: (role.__doc__ or "") for name, role in ROLES.items()})
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
