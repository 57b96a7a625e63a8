"""Walk the pages of an Ogg file: is all of it there, and do its granule positions agree with what its packets hold?

Most writers set the end-of-stream bit on the last page; Android's MediaMuxer and Telegram do not, and a capture of a
running stream cannot. Without the bit a file is complete unless it looks cut: see `_Link.looks_cut` for what that
detects and what it cannot. Granule positions that jump (lost or muted packets, a muxer's clock) are rewritten from the
lengths of the packets, so that libsndfile gives the samples that are there, with no silence between them, and the
stated length can still be compared with the decoded one.

Costs: 0.1 s for an hour of Opus. Sources: RFC 3533 (pages), RFC 7845 and 6716 (Opus), the Vorbis I specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

_GRANULE, _SERIAL, _NUMBER, _CHECKSUM, _SEGMENTS = 6, 14, 18, 22, 26
"""Where these fields of a page begin."""
_HEADER_BYTES = 27
_CONTINUED, _FIRST, _LAST = 1, 2, 4
"""Bits of a page's header type."""

_TOLERATED_SAMPLES = 2_400
"""Granule positions may differ from the packets' lengths by 50 ms in all: they are then left as they are."""

_LIBOGG_FILL_BYTES = 4_096
"""libogg ends a page once it holds more than this (framing.c, `ogg_stream_pageout`)."""

_EVEN = 0.05
"""Pages whose sizes differ by no more than this share are filled by one rule."""

_LONG_PAGE_S = 0.9
_LONG_PAGE_PACKETS = 45
"""Writers that fill pages by time end them after a second, which is 50 packets of speech."""

_SETUP_TAIL_BYTES = 400
"""Holds the 64 modes of 41 bits that end a Vorbis setup header."""

_VORBIS_HEAD_BYTES = 30
"""Of the identification header: the sampling rate is at 12, the two block sizes at 28."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class OggStructure:
    """What the pages say.

    Attributes:
        alone: a single Vorbis or Opus stream, which libsndfile reads; everything else is for FFmpeg.
        missing: a sentence when the file is cut, else None.
        holes: a sentence when pages are lost or damaged.
        rewritten: the file with granule positions and end-of-stream bit as its packets have them, where they differ.
        clock_s: seconds from the first granule position to the last, gaps included; 0 where their rate is not known.
    """

    alone: bool
    missing: str | None
    holes: str | None
    rewritten: bytes | None
    clock_s: float


@dataclass(frozen=True, slots=True)
class _Page:
    """A page on which a packet of audio ends. `samples`: of those packets, 0 where the codec is not known."""

    position: int
    end: int
    granule: int
    packets: int
    samples: int
    payload_bytes: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """By which a writer may decide that a page is full."""
        return self.packets, self.samples, self.payload_bytes

    @property
    def filled_by_libogg(self) -> bool:
        """Whether the packet that took the page past libogg's bound is the last on it, to about a tenth."""
        without_last = self.payload_bytes * (self.packets - 1) / max(1, self.packets)
        return self.payload_bytes > _LIBOGG_FILL_BYTES and without_last <= 1.1 * _LIBOGG_FILL_BYTES


def walk_ogg(content: bytes, start: int) -> OggStructure:
    """Walk all pages from `start`. Chained and multiplexed streams are checked one by one."""
    links: list[_Link] = []
    current: dict[int, _Link] = {}
    end, holes, multiplexed = start, None, False
    for position, end, kind, serial in _pages(content, start):
        number = int.from_bytes(content[position + _NUMBER : position + _NUMBER + 4], "little")
        if kind & _FIRST or serial not in current:
            multiplexed = multiplexed or bool(links and not links[-1].has_audio)
            current[serial] = _Link(content[position + _HEADER_BYTES + content[position + _SEGMENTS] : end])
            links.append(current[serial])
        if lost := current[serial].add(content, position, end, number):
            holes = lost
        if end <= len(content) and _crc(content[position:end]) != _checksum(content, position):
            holes = f"Ogg page {number} does not match its checksum"
    missing = None
    if end > len(content):
        missing = f"the last Ogg page ends {end - len(content):,} bytes past the end of the file"
    elif unended := [link for link in links if not link.ended]:
        if end < len(content) or multiplexed:
            missing = "the last Ogg page is not an end-of-stream page"
        elif any(link.looks_cut() for link in unended):
            missing = "the last Ogg page is not an end-of-stream page, and full, as if another followed"
    alone = len(links) == 1 and links[0].head.startswith((b"\x01vorbis", b"OpusHead"))
    rewritten = links[0].rewritten(content) if alone and not (missing or holes) else None
    return OggStructure(alone, missing, holes, rewritten, sum(link.clock_s for link in links))


def _pages(content: bytes, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (position, end, header type, serial) of every page; a page whose end is past the content is the last."""
    position = start
    while 0 <= position <= len(content) - _HEADER_BYTES <= len(content):
        if content[position : position + 4] != b"OggS":
            position = content.find(b"OggS", position)
            continue
        segments = content[position + _SEGMENTS]
        lacing = content[position + _HEADER_BYTES : position + _HEADER_BYTES + segments]
        end = position + _HEADER_BYTES + segments + sum(lacing)
        yield (
            position,
            end,
            content[position + 5],
            int.from_bytes(content[position + _SERIAL : position + 18], "little"),
        )
        position = end


def _checksum(content: bytes, position: int) -> int:
    return int.from_bytes(content[position + _CHECKSUM : position + _CHECKSUM + 4], "little")


def _crc(page: bytes) -> int:
    """The checksum of RFC 3533: zlib's polynomial, bits in the other order, from 0, with 0 in its own place."""
    bare = page[:_CHECKSUM] + b"\0\0\0\0" + page[_CHECKSUM + 4 :]
    mirrored = zlib.crc32(bare.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")


class _Link:
    """One logical stream, from its first page to its last.

    Attributes:
        head: its first packet, which names the codec.
        ended: a page had the end-of-stream bit.
    """

    def __init__(self, head: bytes) -> None:
        self.head = head
        self.ended = False
        self._lengths = _Lengths(head)
        self._number: int | None = None
        self._captured = False
        self._pages: list[_Page] = []
        self._open_packet: int | None = None

    @property
    def has_audio(self) -> bool:
        """Whether more than its headers have come."""
        return bool(self._pages)

    @property
    def clock_s(self) -> float:
        """Seconds from its first granule position to its last."""
        if not self._lengths.rate or not self._pages:
            return 0.0
        return (self._pages[-1].granule - self._pages[0].granule) / self._lengths.rate

    def add(self, content: bytes, position: int, end: int, number: int) -> str | None:
        """Take the next page. Returns: a sentence when pages between the last one and this are lost."""
        lost = None
        if self._number is not None and number > self._number + 1:
            if self._pages:
                lost = f"Ogg pages {self._number + 1} to {number - 1} are lost"
            else:
                self._captured = True  # headers, then the middle of a running stream, as Icecast sends it
        self._number = number
        kind = content[position + 5]
        self.ended = self.ended or bool(kind & _LAST)
        (granule,) = struct.unpack_from("<q", content, position + _GRANULE)
        if granule == 0 and not self._pages:
            self._lengths.add_header(content[position + _HEADER_BYTES + content[position + _SEGMENTS] : end])
            return lost
        packets, samples = self._read_packets(content, position, continued=bool(kind & _CONTINUED))
        if granule > 0:
            payload = end - position - _HEADER_BYTES - content[position + _SEGMENTS]
            self._pages.append(_Page(position, end, granule, packets, samples, payload))
        return lost

    def _read_packets(self, content: bytes, position: int, *, continued: bool) -> tuple[int, int]:
        """(packets that end on a page, their samples)."""
        segments = content[position + _SEGMENTS]
        at = position + _HEADER_BYTES + segments
        begins, packets, samples = not continued, 0, 0
        for length in content[position + _HEADER_BYTES : at]:
            if begins:
                self._open_packet = self._lengths.of(content[at : at + min(2, length)])
            at += length
            begins = length < 255
            if begins:
                packets, samples = packets + 1, samples + (self._open_packet or 0)
                self._open_packet = None
        return packets, samples

    def looks_cut(self) -> bool:
        """Whether a stream without an end-of-stream bit goes on after its last page.

        It does if that page is as full as the pages before it, by whichever rule its writer fills them: bytes, packets
        or seconds. It does not if the last granule position is below what the packets hold, which is how encoders mark
        the end of the sound, nor in a capture, which begins and ends anywhere. Where each packet has a page to itself
        nothing can be told, and the stream counts as complete.
        """
        if self._captured or not self._pages:
            return False
        *before, last = self._pages
        if last.samples > last.granule - (before[-1].granule if before else 0):
            return False
        if not before:
            long = bool(self._lengths.rate) and last.samples >= _LONG_PAGE_S * self._lengths.rate
            return last.packets > 1 and (
                long or last.packets >= _LONG_PAGE_PACKETS or last.payload_bytes > _LIBOGG_FILL_BYTES
            )
        if sorted(page.packets for page in before)[len(before) // 2] <= 1:
            return False
        if all(page.filled_by_libogg for page in before):
            return last.payload_bytes > _LIBOGG_FILL_BYTES
        *by_time, by_bytes = (_is_full(sizes) for sizes in zip(*(page.sizes for page in self._pages), strict=True))
        ruled = [full for full in by_time if full is not None] or [bool(by_bytes)]
        return all(ruled)

    def rewritten(self, content: bytes) -> bytes | None:
        """The file with granule positions that its packets' lengths add up to, and an end; None if it has both."""
        granules = self._granules()
        if self.ended and granules == [page.granule for page in self._pages]:
            return None
        out = bytearray(content)
        for page, granule in zip(self._pages, granules, strict=True):
            struct.pack_into("<q", out, page.position + _GRANULE, granule)
            if page is self._pages[-1]:
                out[page.position + 5] |= _LAST
            struct.pack_into("<I", out, page.position + _CHECKSUM, _crc(bytes(out[page.position : page.end])))
        return bytes(out)

    def _granules(self) -> list[int]:
        """The granule positions without gaps: each the one before plus the samples of its page; the first one stays."""
        stated = [page.granule for page in self._pages]
        if not self._lengths.rate or not stated:
            return stated
        closed, off = stated[:1], 0
        for number, page in enumerate(self._pages[1:], 1):
            step = stated[number] - stated[number - 1]
            is_trimmed = page is self._pages[-1] and 0 <= step < page.samples
            closed.append(closed[-1] + (step if is_trimmed else page.samples))
            off += 0 if is_trimmed else abs(step - page.samples)
        return closed if off > _TOLERATED_SAMPLES else stated


def _is_full(sizes: tuple[int, ...]) -> bool | None:
    """Whether the last page is no smaller than the others, to a tenth of a single other one.

    Returns: None unless three quarters of the others are nearly equal, so that this measure is what fills them.
    """
    *before, last = sizes
    typical = sorted(before)[len(before) // 2]
    equal = [size for size in before if abs(size - typical) <= _EVEN * typical]
    if typical == 0 or 4 * len(equal) < 3 * len(before):
        return None
    return last >= (min(equal) if len(before) > 1 else 0.9 * typical)


class _Lengths:
    """How many samples each packet of a stream adds.

    Attributes:
        rate: samples a second of its granule positions; 0 where packets cannot be measured (FLAC, Speex, a Vorbis setup
            header that cannot be parsed).
    """

    def __init__(self, head: bytes) -> None:
        self.rate = 0
        self._is_opus = head.startswith(b"OpusHead")
        self._is_vorbis = head.startswith(b"\x01vorbis") and len(head) >= _VORBIS_HEAD_BYTES
        self._head, self._setup = head, b""
        self._block_sizes: list[int] = []
        self._last_block = 0
        if self._is_opus:
            self.rate = 48_000

    def add_header(self, payload: bytes) -> None:
        """Take a page of headers; the modes of a Vorbis stream are the last bits of the last one."""
        if self._is_vorbis:
            self._setup = (self._setup + payload)[-_SETUP_TAIL_BYTES:]
            sizes = (1 << (self._head[28] & 15), 1 << (self._head[28] >> 4))
            self._block_sizes = [sizes[flag] for flag in _block_flags(self._setup)]
            self.rate = int.from_bytes(self._head[12:16], "little") if self._block_sizes else 0

    def of(self, first_bytes: bytes) -> int:
        """Samples of the packet that begins with these two bytes."""
        if not self.rate or not first_bytes:
            return 0
        if self._is_opus:
            return _opus_samples(first_bytes)
        if first_bytes[0] & 1:
            return 0  # a header
        mode = first_bytes[0] >> 1 & ((1 << (len(self._block_sizes) - 1).bit_length()) - 1)
        block = self._block_sizes[min(mode, len(self._block_sizes) - 1)]
        samples = (self._last_block + block) // 4 if self._last_block else 0
        self._last_block = block
        return samples


def _opus_samples(packet: bytes) -> int:
    """At 48 kHz. Source: RFC 6716, section 3.1."""
    config, code = packet[0] >> 3, packet[0] & 3
    if config < 12:
        frame = (480, 960, 1_920, 2_880)[config & 3]
    elif config < 16:
        frame = (480, 960)[config & 1]
    else:
        frame = (120, 240, 480, 960)[config & 3]
    frames = (1, 2, 2, packet[1] & 63 if len(packet) > 1 else 0)[code]
    return frame * frames


def _block_flags(setup: bytes) -> list[int]:
    """For each mode of a Vorbis setup header whether its blocks are long; [] where that cannot be parsed.

    The modes end the header: 6 bits for their number, 41 bits each (block flag, 16 + 16 zero bits, mapping), a 1. Nothing
    states where they begin, so they are read from the end, as FFmpeg's vorbis_parser.c does.
    """
    bits = int.from_bytes(setup, "little")
    at = bits.bit_length() - 1
    backwards: list[int] = []
    found: list[int] = []
    while at >= 47 and len(backwards) < 64 and (bits >> (at - 8)) & 0xFF < 64 and not (bits >> (at - 40)) & 0xFFFFFFFF:
        at -= 41
        backwards.append(bits >> at & 1)
        if (bits >> (at - 6) & 63) + 1 == len(backwards):
            found = backwards[::-1]
    return found
