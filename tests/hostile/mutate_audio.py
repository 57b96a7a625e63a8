"""Ways to damage an audio file, at random and from a seed: what disks, networks, bad encoders and ill will make of it."""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Callable

from tests.hostile.make_audio import ogg_crc

Mutation = Callable[[bytes, random.Random, list[bytes]], bytes]

_EXTREMES = (0, 1, 2, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
_HUGE = (*_EXTREMES, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_NAMES = re.compile(
    rb"RIFF|WAVE|fmt |data|fact|LIST|ds64|FORM|COMM|SSND|caff|desc|pakt|kuki|fLaC|OggS|OpusHead|OpusTags|vorbis|Xing|Info"
    rb"|moov|trak|mdia|minf|stbl|stsd|stts|stsc|stsz|stco|co64|mdat|mvhd|mdhd|tkhd|elst|esds|alac|ftyp|hdlr|dref"
    rb"|\x1aE\xdf\xa3|\x18S\x80g|\x16T\xaek|\x1fC\xb6u|wvpk|TTA1|strh|strf|movi|idx1|hdrl|sample_|NIST"
)
"""What sizes and counts stand beside."""


def flip(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Single bits, of 0.01 to 5 % of the bytes."""
    out = bytearray(content)
    for _ in range(max(1, round(len(out) * 10 ** rng.uniform(-4, -1.3)))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flip_in_header(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """A few bits of the first 200 bytes."""
    out = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        out[rng.randrange(min(200, len(out)))] ^= 1 << rng.randrange(8)
    return bytes(out)


def cut(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """The end is missing."""
    return content[: rng.randrange(len(content))]


def behead(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """The beginning is missing."""
    return content[rng.randrange(min(len(content), 4096)) :]


def splice(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """The beginning of one file and the end of another."""
    other = rng.choice(others)
    return content[: rng.randrange(len(content))] + other[rng.randrange(len(other)) :]


def insert(content: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """A piece too much: noise, zeros, of the file itself or of another."""
    at, size = rng.randrange(len(content) + 1), 2 ** rng.randint(0, 13)
    source = rng.choice([rng.randbytes(size), bytes(size), content, rng.choice(others)])
    begin = rng.randrange(max(1, len(source) - size + 1))
    return content[:at] + source[begin : begin + size] + content[at:]


def remove(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """A piece too little, mostly a small one."""
    at = rng.randrange(len(content))
    return content[:at] + content[at + 2 ** rng.randint(0, 14) :]


def overwrite(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """A sector of zeros, ones or noise."""
    at, size = rng.randrange(len(content)), 2 ** rng.randint(4, 12)
    size = min(size, len(content) - at)
    return content[:at] + rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)]) + content[at + size :]


def number_in_header(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """An extreme number of 1 to 8 bytes in the first 128, in either byte order."""
    return _put_number(content, rng.randrange(min(128, len(content))), rng)


def number_beside_a_name(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """An extreme size, count, rate or offset near the name of a chunk, box, page or element."""
    places = [found.start() for found in _NAMES.finditer(content)]
    if not places:
        return _put_number(content, rng.randrange(len(content)), rng)
    return _put_number(content, max(0, rng.choice(places) + rng.randint(-8, 40)), rng)


def _put_number(content: bytes, at: int, rng: random.Random) -> bytes:
    width = rng.choice([1, 2, 4, 4, 4, 8])
    value = rng.choice([*_HUGE, rng.getrandbits(8 * width)]) & ((1 << 8 * width) - 1)
    return content[:at] + value.to_bytes(width, rng.choice(["little", "big"])) + content[at + width :]


def only_magic(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """A valid beginning, and then noise."""
    return content[: rng.choice([4, 12, 16, 28, 40, 64, 200])] + rng.randbytes(rng.randrange(4096))


def repeat(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """The file, or a piece of it, many times over."""
    begin = rng.choice([0, rng.randrange(len(content))])
    piece = content[begin : begin + 2 ** rng.randint(2, 12)]
    return content[:begin] + piece * min(rng.randint(2, 2000), (1 << 18) // len(piece)) + content[begin:]


def tag(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """An ID3 tag before it, whose length may be a lie."""
    size = rng.choice([0, 10, 1000, rng.getrandbits(28)])
    there = rng.choice([size, 0, 10]) if size < 1 << 16 else rng.randrange(1000)
    length = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\0" + rng.choice([b"\0", b"\x10"]) + length + rng.randbytes(there) + content


def samples(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Floats no recording has, where samples would be."""
    value = rng.choice([float("nan"), float("inf"), -float("inf"), 1e30, -4.0, 4.0, 3.99, 1e-40])
    at = min(len(content), rng.choice([44, 58, 80, rng.randrange(len(content))]))
    piece = struct.pack("<f", value) * rng.randint(1, 4000)
    return content[:at] + piece + content[at + len(piece) :]


def inside_ogg(content: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Bits within a few Ogg pages, whose checksums are then made to match: damage that only the decoder can notice."""
    out = bytearray(content)
    pages = [found.start() for found in re.finditer(rb"OggS", content)]
    for begin in rng.sample(pages, min(len(pages), rng.randint(1, 3))):
        segments = out[begin + 26] if begin + 27 <= len(out) else 0
        end = begin + 27 + segments + sum(out[begin + 27 : begin + 27 + segments])
        if end > len(out) or end - begin < 40:
            continue
        for _ in range(rng.randint(1, 30)):
            out[rng.randrange(begin + 27 + segments, end)] ^= 1 << rng.randrange(8)
        out[begin + 22 : begin + 26] = bytes(4)
        out[begin + 22 : begin + 26] = struct.pack("<I", ogg_crc(bytes(out[begin:end])))
    return bytes(out)


MUTATIONS: tuple[Mutation, ...] = (
    flip, flip, flip_in_header, flip_in_header, cut, behead, splice, insert, remove, overwrite,
    number_in_header, number_in_header, number_beside_a_name, number_beside_a_name, number_beside_a_name,
    only_magic, repeat, tag, samples, inside_ogg, inside_ogg,
)  # fmt: skip


def mutate(content: bytes, rng: random.Random, others: list[bytes]) -> tuple[bytes, str]:
    """One to three mutations on top of one another. Returns: the mutant, and what was done."""
    done = []
    for mutation in rng.choices(MUTATIONS, k=rng.choice([1, 1, 1, 2, 3])):
        if content:
            content = mutation(content, rng, others)
            done.append(mutation.__name__)
    return content, "+".join(done)
