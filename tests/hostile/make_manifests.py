"""Makes manifests in which some lines are malformed, each in a known way at a known line.

    python tests/hostile/make_manifests.py FOLDER [ROWS]

writes `bad.jsonl` and `bad.csv` with the lines that must be rejected beside them, one number a line.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

LONG_LINE_BYTES = 10 << 20


def good(i: int) -> dict[str, object]:
    """A plain row."""
    return {"id": f"utt-{i:06d}", "audio": f"clips/{i}.wav", "text": f"línea {i}", "duration": 1.5, "take": i % 3}


def _json(row: dict[str, object]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


def _with(i: int, value: bytes) -> bytes:
    return _json(good(i))[:-1] + b', "extra": ' + value + b"}"


BAD_JSON: dict[str, Callable[[int], bytes]] = {
    "cut": lambda i: _json(good(i))[:-9],
    "cut at the start": lambda i: _json(good(i))[5:],
    "NUL": lambda i: _json(good(i)).replace(b"clips", b"cl\0ps"),
    "BOM mid-file": lambda i: b"\xef\xbb\xbf" + _json(good(i)),
    "lone surrogate": lambda i: _with(i, b'"\\ud83d x"'),
    "lone surrogate in a key": lambda i: _json(good(i))[:-1] + b', "\\udc00": 1}',
    "Latin-1": lambda i: _json(good(i)).replace("í".encode(), b"\xed"),
    "key twice": lambda i: _with(i, b'1, "id": "other"'),
    "key twice inside": lambda i: _with(i, b'{"a": 1, "a": 2}'),
    "nested too deep": lambda i: _with(i, b"[" * 100_000),
    "nested, but whole": lambda i: _with(i, b"[" * 200 + b"]" * 200),
    "trailing comma": lambda i: _json(good(i))[:-1] + b",}",
    "NaN": lambda i: _with(i, b"NaN"),
    "-Infinity": lambda i: _with(i, b"[-Infinity]"),
    "beyond float64": lambda i: _with(i, b"1e999"),
    "huge integer": lambda i: _with(i, b"9" * 5000),
    "a list": lambda i: b'["clips/1.wav"]',
    "a string": lambda i: b'"clips/1.wav"',
    "two objects": lambda i: _json(good(i)) + _json(good(i)),
    "NULs of a crashed disk": lambda i: b"\0" * 4096,
}
HARMLESS_JSON: dict[str, Callable[[int], bytes]] = {
    "blank": lambda i: b"",
    "spaces": lambda i: b" \t ",
    "CRLF": lambda i: _json(good(i)) + b"\r",
    "spaces around": lambda i: b"  " + _json(good(i)) + b" ",
    "escaped NUL in the text": lambda i: _json(good(i) | {"text": "a\0b"}),
    "a surrogate pair": lambda i: _json(good(i))[:-1] + b', "emoji": "\\ud83d\\ude00"}',
}
BAD_CSV: dict[str, Callable[[int], bytes]] = {
    "too few cells": lambda i: b"clips/x.wav,text",
    "too many cells": lambda i: b"a,b,c,d,e,f,g",
    "open quote": lambda i: f'utt-{i},clips/{i}.wav,"open,1.5,0'.encode(),
    "open quote at the start": lambda i: f'"utt-{i},clips/{i}.wav,open,1.5,0'.encode(),
    "text after a quote": lambda i: f'utt-{i},clips/{i}.wav,"say" so,1.5,0'.encode(),
    "Latin-1": lambda i: f"utt-{i},clips/{i}.wav,".encode() + b"l\xednea,1.5,0",
    "half a character": lambda i: f"utt-{i},clips/{i}.wav,".encode() + b"l\xc3,1.5,0",
    "a bare carriage return": lambda i: f"utt-{i},clips/{i}.wav,a\rb,1.5,0".encode(),
    "NULs of a crashed disk": lambda i: b"\0" * 4096,
    "NaN": lambda i: f"utt-{i},clips/{i}.wav,text,NaN,0".encode(),
}


def jsonl(rows: int, *, share: float = 0.01, seed: int = 7) -> Iterator[tuple[bytes, bool]]:
    """Lines without newline, each with whether it must be rejected. One line in the middle is 10 MB long."""
    rng = random.Random(seed)
    ways = [*((way, True) for way in BAD_JSON.values()), *((way, False) for way in HARMLESS_JSON.values())]
    for i in range(rows):
        if i == rows // 2:
            yield _with(i, b'"' + b"x" * LONG_LINE_BYTES + b'"'), True
        elif rng.random() < share:
            make, bad = ways[rng.randrange(len(ways))]
            yield make(i), bad
        else:
            yield _json(good(i)), False


def csv_lines(rows: int, *, share: float = 0.01, seed: int = 7) -> Iterator[tuple[bytes, bool]]:
    """As `jsonl`, with a header; some good rows hold quotes, and none a newline."""
    rng = random.Random(seed)
    ways = list(BAD_CSV.values())
    yield b"id,audio,text,duration,take", False
    for i in range(rows):
        if rng.random() < share:
            yield ways[rng.randrange(len(ways))](i), True
        elif i % 5 == 0:
            yield f'utt-{i:06d},clips/{i}.wav,"línea, {i}",1.5,{i % 3}'.encode(), False
        else:
            yield f"utt-{i:06d},clips/{i}.wav,línea {i},1.5,{i % 3}".encode(), False


def write(path: Path, lines: Iterator[tuple[bytes, bool]]) -> list[int]:
    """Write the lines; the numbers of those that must be rejected."""
    bad = []
    with path.open("wb") as file:
        for number, (line, is_bad) in enumerate(lines, 1):
            file.write(line + b"\n")
            if is_bad:
                bad.append(number)
    return bad


if __name__ == "__main__":
    folder, rows = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    for name, lines in (("bad.jsonl", jsonl(rows)), ("bad.csv", csv_lines(rows))):
        expected = write(folder / name, lines)
        (folder / f"{name}.rejects").write_text("".join(f"{number}\n" for number in expected))
