"""Run benchmarks and write their results into docs/performance.md.

usage: python -m benchmarks [NAME ...] [--quick]      all of them, in about three hours; --quick: small sizes, nothing written
"""

from __future__ import annotations

import argparse
import importlib
import signal
import sys
import time

from benchmarks.harness import publish

NAMES = (
    "reference",
    "transcription",
    "asr_window",
    "precision",
    "engines",
    "efficiency",
    "startup",
    "levers",
    "scale",
    "nodes",
    "nights",
    "sharing",
    "publishing",
    "executions",
    "planning",
    "search",
)


def main() -> None:
    """Run the named benchmarks, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes, to test that it runs; writes nothing")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that `finally` ends the processes it started
    for name in arguments.names or NAMES:
        if name not in NAMES:
            parser.error(f"unknown benchmark {name!r}; choose from {', '.join(NAMES)}")
        started = time.perf_counter()
        result = importlib.import_module(f"benchmarks.{name}").run(quick=arguments.quick)
        print(
            f"\n{result.title}\n"
            + "\n".join("  ".join(row) for row in [result.columns, *result.rows, *([note] for note in result.notes)])
        )
        if not arguments.quick:
            publish(name, result, took_s=time.perf_counter() - started)


if __name__ == "__main__":
    main()
