"""Process that resolves, hashes and checks a run's models while the driver starts Ray.

This takes 4 s of a core, nearly all of them imports, and 350 MB that the driver never has to hold.

usage: python -P -m pipeline.models.checkpoints.pinning < REQUEST, a JSON object {chosen, mode, prepared, rules}
       answers one of {pinned, widths, warnings}, {refused} or {failed}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any, TextIO, cast

from pipeline.config.labels import LabelRules
from pipeline.errors import ConfigError, JobError
from pipeline.models import roles
from pipeline.models.checkpoints.lock import Lock, Prepared
from pipeline.pins import ModelPin, Role, pins_document, pins_of
from pipeline.processes import Fork, interrupts_blocked, search_path

_spare: list[subprocess.Popen[str] | Fork] = []
"""A process that `prestarted` has started, and no `Pinning` uses yet."""


def _started() -> subprocess.Popen[str] | Fork:
    with suppress(OSError):
        return Fork(__name__)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search_path()},
        text=True,
    )


@contextmanager
def prestarted() -> Iterator[None]:
    """Start the process of the next `Pinning` now, so that its imports run beside the driver's; kill it if none used it."""
    with interrupts_blocked():
        _spare.append(_started())
    try:
        yield
    finally:
        while _spare:
            process = _spare.pop()
            process.kill()
            cast(TextIO, process.stdin).close()
            cast(TextIO, process.stdout).close()
            process.wait()


class Pinning:
    """A running `roles.pin`, started at once and queried when the result is needed. A context manager.

    Attributes:
        warnings: sentences about models, after `result`.
    """

    warnings: Sequence[str] = ()

    def __init__(
        self,
        chosen: Mapping[Role, str],
        mode: str,
        prepared: Prepared | None = None,
        rules: LabelRules | None = None,
    ) -> None:
        with interrupts_blocked():
            self._process = _spare.pop() if _spare else _started()
        with cast(TextIO, self._process.stdin) as request:
            there = None if prepared is None else [prepared.uri, prepared.number, prepared.lock.model_dump(mode="json")]
            named = {str(role): spec for role, spec in chosen.items()}
            ruled = None if rules is None else asdict(rules)
            json.dump({"chosen": named, "mode": mode, "prepared": there, "rules": ruled}, request)

    def __enter__(self) -> Pinning:
        return self

    def __exit__(self, *_: object) -> None:
        """Kill and reap the process, with or without a result."""
        self._process.kill()
        cast(TextIO, self._process.stdout).close()
        self._process.wait()

    def result(self) -> tuple[dict[Role, ModelPin], dict[str, int]]:
        """Wait for the result of `roles.pin`.

        Raises: ConfigError and JobError as it does; JobError also when the process ended without an answer.
        """
        said = cast(TextIO, self._process.stdout).read()
        if status := self._process.wait():
            raise JobError(f"the process that checks the models exited with status {status}; its output is above")
        answer = json.loads(said)
        if "refused" in answer:
            raise ConfigError(answer["refused"])
        if "failed" in answer:
            raise JobError(answer["failed"])
        self.warnings = answer["warnings"]
        return pins_of(answer["pinned"]), answer["widths"]


@contextmanager
def refusal_first(pinned: Callable[[], object]) -> Iterator[None]:
    """When the block fails, raise a model's rejection instead: a retry may fix the block, but not that model.

    Args:
        pinned: waits for the models; raises ConfigError when one of them is rejected.
    """
    try:
        yield
    except (ConfigError, JobError, OSError):
        with suppress(JobError, OSError):  # of two failures, the block's own is reported
            pinned()
        raise


def main() -> None:
    """Answer the request on standard input."""
    from pipeline.models.checkpoints import modes, weights  # noqa: F401 - most of the time, spent before the request comes

    content = sys.stdin.read()
    if not content:  # the driver ended before it needed models
        return
    request = json.loads(content)
    try:
        find = None
        if request["prepared"]:
            uri, number, lock = request["prepared"]
            find = Prepared(uri, number, Lock.model_validate(lock)).checkpoint
        chosen = {Role.parse(role): spec for role, spec in request["chosen"].items()}
        rules = request["rules"] and LabelRules(**request["rules"])
        warnings: list[str] = []
        pinned, widths = roles.pin(chosen, request["mode"], find, rules=rules, warn=warnings.append)
        answer: dict[str, Any] = {"pinned": pins_document(pinned), "widths": widths, "warnings": warnings}
    except ConfigError as error:
        answer = {"refused": str(error)}
    except JobError as error:
        answer = {"failed": str(error)}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
