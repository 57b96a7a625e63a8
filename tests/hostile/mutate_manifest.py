"""Ways to damage one line of a manifest, at random and from a seed; none makes two lines of it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

KNOWN = ("id", "audio", "audio_filepath", "path", "uri", "text", "language", "offset", "duration", "channel")
_VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1.5, 2**31, 2**53 + 1, 2**63, 10**400, -0.0, 1e308, "", " ", "x", "0", "1e3", "NaN", "null",
    "../../etc/passwd", "file:///etc/passwd", "http://169.254.169.254/", "s3://other/x.wav", "\u202e", "\ufeff", "\0", "\x1b",
    "\x85\u2028", "é" * 300, "x" * 5000, "=1+1", "😀", [], [1, "a", None], [[]], {}, {"a": {"b": [1]}}, {"": 1}, {"A": 1, "a": 2},
)  # fmt: skip
_TOKENS = (
    b"NaN", b"-Infinity", b"1e999", b"9" * 5000, b"01", b"+1", b"'x'", b'"\\ud83d"', b'"\\udc00\\ud800"', b"\xed\xa0\x80",
    b"\xff", b"\xc0\x80", b"\xef\xbb\xbf", b"\0", b"\x1b[2J", b"\r", b"\x0b", b"\x85", b"[" * 40 + b"]" * 40, b"[" * 100_000,
    b'{"a":' * 5000, b"true", b"nul", b"//", b"/* */", b",", b",,", b":", b"}", b"{", b"]", b'"', b'\\"', b'\\u0000', b"\\",
)  # fmt: skip


def cut(line: bytes, rng: random.Random) -> bytes:
    return line[: rng.randrange(len(line))]


def behead(line: bytes, rng: random.Random) -> bytes:
    return line[rng.randrange(len(line)) :]


def noise(line: bytes, rng: random.Random) -> bytes:
    out = bytearray(line)
    for _ in range(rng.randint(1, 6)):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def token(line: bytes, rng: random.Random) -> bytes:
    """Something of JSON, or of no JSON, anywhere."""
    at = rng.randrange(len(line) + 1)
    return line[:at] + rng.choice(_TOKENS) + line[at:]


def bom(line: bytes, _: random.Random) -> bytes:
    return b"\xef\xbb\xbf" + line


def latin(line: bytes, rng: random.Random) -> bytes:
    return (
        line.decode("utf-8", "replace")
        .replace("í", "é")
        .encode(rng.choice(["latin-1", "cp437", "utf-16-le"]), "replace")
    )


def doubled(line: bytes, rng: random.Random) -> bytes:
    return line + rng.choice([b"", b" ", b",", b"\r"]) + line


def erased(line: bytes, rng: random.Random) -> bytes:
    return bytes(rng.choice([1, 80, 4096]))


def blank(_: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b" ", b"\t", b"\r", b" \r", b"\0", b"{}", b"[]", b"null", b'""', b"#", b"---", b",,,,"])


def long(line: bytes, rng: random.Random) -> bytes:
    """1 MB, or more than a line may have."""
    at = rng.randrange(len(line) + 1)
    return line[:at] + b"x" * rng.choice([1 << 20, 1 << 20, 5 << 20]) + line[at:]


BYTES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    cut, behead, noise, noise, token, token, token, bom, latin, doubled, erased, blank,
)  # fmt: skip


def value(row: dict[str, object], rng: random.Random) -> str:
    """Another value, of another type mostly, in a column or two."""
    for _ in range(rng.randint(1, 2)):
        row[rng.choice([*row, *KNOWN])] = rng.choice(_VALUES)
    return json.dumps(row, ensure_ascii=rng.random() < 0.5)


def unknown_column(row: dict[str, object], rng: random.Random) -> str:
    """Columns nobody else has, up to very many, and of any name."""
    names = [
        "",
        " ",
        "label",
        "line",
        "manifest",
        "Manifest_line",
        "manifest_label",
        "run_id",
        "a\tb",
        "x" * 300,
        "é",
        "\u202e",
    ]
    names += [f"column {rng.random()}" for _ in range(rng.choice([1, 1, 1, 40]))]
    for name in rng.sample(names, rng.randint(1, len(names))):
        row[name] = rng.choice(_VALUES)
    return json.dumps(row)


def another_case(row: dict[str, object], rng: random.Random) -> str:
    """A column spelt otherwise."""
    name = rng.choice(list(row))
    row[rng.choice([name.upper(), name.title(), f" {name}", f"manifest_{name}"])] = row.pop(name)
    return json.dumps(row)


def renamed(row: dict[str, object], rng: random.Random) -> str:
    """One column's value under another's name."""
    names = list(row)
    row[rng.choice(KNOWN)] = row.pop(rng.choice(names))
    return json.dumps(row)


def lone_surrogate(row: dict[str, object], rng: random.Random) -> str:
    row[rng.choice(list(row))] = rng.choice(["\ud83d", "x\udc00", "\udc00\ud800"])
    return json.dumps(row)


def same_key(row: dict[str, object], rng: random.Random) -> str:
    name = rng.choice(list(row))
    return json.dumps(row)[:-1] + f", {json.dumps(name)}: {json.dumps(rng.choice(_VALUES))}}}"


ROWS: tuple[Callable[[dict[str, object], random.Random], str], ...] = (
    value, value, value, unknown_column, another_case, renamed, lone_surrogate, same_key,
)  # fmt: skip


def mutate_json(row: dict[str, object], rng: random.Random) -> tuple[bytes, str]:
    """A line that may or may not be a record any more, and what was done."""
    if rng.random() < 0.4:
        change = rng.choice(ROWS)
        line = change(dict(row), rng).encode("utf-8", "surrogatepass")
        return line.replace(b"\n", b" "), change.__name__
    return mutate_bytes(json.dumps(row, ensure_ascii=False).encode(), rng)


def mutate_bytes(line: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The same for a line of any format."""
    change = long if rng.random() < 0.003 else rng.choice(BYTES)
    return change(line, rng).replace(b"\n", b" "), change.__name__
