"""Standard output of a command: text for a person, or with `--json` one document for a program."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import Any, TextIO


class Printer:
    """Writer of a command's results.

    Args:
        json: print documents and no lines. Standard output then carries nothing else: what other code prints goes to
            standard error.
    """

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._out: TextIO = sys.stdout

    def redirected(self) -> AbstractContextManager[object]:
        """Return the context in which a command runs."""
        return redirect_stdout(sys.stderr) if self.json else nullcontext()

    def line(self, text: str = "") -> None:
        """Print a line of text, unless a document is wanted."""
        if not self.json:
            print(text, flush=True)

    def document(self, value: Mapping[str, Any], *, indent: int | None = 1) -> None:
        """Print a JSON object, if one is wanted. NaN and infinite numbers become null, unknown types text."""
        if not self.json:
            return
        value = _finite(value)
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False, default=str)
        try:
            text.encode(getattr(self._out, "encoding", None) or "utf-8")
        except UnicodeEncodeError:  # a terminal without these letters, or a file name that is not Unicode
            text = json.dumps(value, indent=indent, allow_nan=False, default=str)
        print(text, file=self._out, flush=True)


def _finite(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [_finite(item) for item in value]
    return value
