"""Ogg page checks: completeness, and granule positions that agree with the lengths of the packets.

Most writers set the end-of-stream bit on the last page; Android's MediaMuxer and Telegram do not, and a capture of a
running stream cannot. Without the bit a file counts as complete unless it looks cut: `_Link.looks_cut` states what
that detects and what it cannot. Granule positions that jump (lost or muted packets, a muxer's clock) are rewritten
from the lengths of the packets, so that libsndfile returns the samples in the file without silence between them, and
the stated length can still be compared with the decoded one.

Costs: 0.1 s for an hour of Opus. Sources: RFC 3533 (pages), RFC 7845 and 6716 (Opus), the Vorbis I specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from pipeline.audio.content import Content

_GRANULE, _SERIAL, _NUMBER, _CHECKSUM, _SEGMENTS = 6, 14, 18, 22, 26
"""Offsets of these fields in a page."""
_HEADER_BYTES = 27
_CONTINUED, _FIRST, _LAST = 1, 2, 4
"""Bits of a page's header type."""

_TOLERATED_SAMPLES = 2_400
"""Total difference between granule positions and packet lengths that is left unchanged: 50 ms."""

_LIBOGG_FILL_BYTES = 4_096
"""Payload above which libogg ends a page (framing.c, `ogg_stream_pageout`)."""

_EVEN = 0.05
"""Largest relative difference in size between pages that are filled by the same rule."""

_LONG_PAGE_S = 0.9
_LONG_PAGE_PACKETS = 45
"""Packets of a page filled by time: its writer ends it after a second (see `_LONG_PAGE_S`), which is 50 packets of
speech."""

_SETUP_TAIL_BYTES = 400
"""Size of the end of a Vorbis setup header that contains its 64 modes of 41 bits."""

_VORBIS_HEAD_BYTES = 30
"""Size of the identification header: the sampling rate is at 12, the two block sizes at 28."""

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


@dataclass(frozen=True, slots=True)
class OggStructure:
    """Results of a walk over the pages.

    Attributes:
        alone: True for a single Vorbis or Opus stream, which libsndfile reads; FFmpeg decodes everything else.
        missing: a description when the file is cut, else None.
        holes: a description when pages are lost or damaged, else None.
        rewritten: the file with corrected granule positions and end-of-stream bit; None when both are correct.
        clock_s: seconds from the first granule position to the last, gaps included; 0 when their rate is unknown.
    """

    alone: bool
    missing: str | None
    holes: str | None
    rewritten: bytes | None
    clock_s: float


@dataclass(frozen=True, slots=True)
class _Page:
    """A page on which an audio packet ends. `samples` counts those packets; 0 for an unknown codec."""

    position: int
    end: int
    granule: int
    packets: int
    samples: int
    payload_bytes: int

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Measures by which a writer may decide that a page is full: packets, samples, bytes."""
        return self.packets, self.samples, self.payload_bytes

    @property
    def filled_by_libogg(self) -> bool:
        """Return whether the last packet is the one that exceeded libogg's bound, to about a tenth."""
        without_last = self.payload_bytes * (self.packets - 1) / max(1, self.packets)
        return self.payload_bytes > _LIBOGG_FILL_BYTES and without_last <= 1.1 * _LIBOGG_FILL_BYTES


def walk_ogg(content: Content, start: int) -> OggStructure:
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
            missing = "the last Ogg page is full and not an end-of-stream page, so another should follow"
    alone = len(links) == 1 and links[0].head.startswith((b"\x01vorbis", b"OpusHead"))
    rewritten = links[0].rewritten(content) if alone and not (missing or holes) else None
    return OggStructure(alone, missing, holes, rewritten, sum(link.clock_s for link in links))


def _pages(content: Content, start: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (position, end, header type, serial) of every page; a page that ends past the content is the last."""
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


def _checksum(content: Content, position: int) -> int:
    return int.from_bytes(content[position + _CHECKSUM : position + _CHECKSUM + 4], "little")


def _crc(page: bytes) -> int:
    """Compute the checksum of RFC 3533: zlib's polynomial, reversed bits, initial value 0, checksum field zero."""
    bare = page[:_CHECKSUM] + b"\0\0\0\0" + page[_CHECKSUM + 4 :]
    mirrored = zlib.crc32(bare.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(mirrored.to_bytes(4, "little").translate(_REVERSED), "big")


class _Link:
    """One logical stream, from its first page to its last.

    Attributes:
        head: its first packet, which names the codec.
        ended: True once a page had the end-of-stream bit.
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
        """Return whether a page other than headers was added."""
        return bool(self._pages)

    @property
    def clock_s(self) -> float:
        """Seconds from the first granule position to the last."""
        if not self._lengths.rate or not self._pages:
            return 0.0
        return (self._pages[-1].granule - self._pages[0].granule) / self._lengths.rate

    def add(self, content: Content, position: int, end: int, number: int) -> str | None:
        """Add the next page. Returns: a description when pages before it are lost, else None."""
        lost = None
        if self._number is not None and number > self._number + 1:
            if self._pages:
                lost = f"Ogg pages {self._number + 1} to {number - 1} are missing"
            else:
                self._captured = True  # headers, then the middle of a running stream, as sent by Icecast
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

    def _read_packets(self, content: Content, position: int, *, continued: bool) -> tuple[int, int]:
        """Return (number of packets that end on a page, their samples)."""
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
        """Return whether a stream without an end-of-stream bit probably continues after its last page.

        It does when that page is as full as the pages before it, by the rule its writer uses to fill them: bytes,
        packets or seconds. It does not when the last granule position is below the packets' total, by which encoders
        mark the end of the sound, nor in a capture, which begins and ends anywhere. When each packet has a page to
        itself, a cut cannot be detected, and the stream counts as complete.
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

    def rewritten(self, content: Content) -> bytes | None:
        """Return the file with granule positions computed from its packets and an end; None when both are correct."""
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
        """Return granule positions without gaps: the first as stated, each later one plus its page's samples."""
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
    """Return whether the last page is at least as large as the others, to a tenth of a single other one.

    Returns: None unless three quarters of the others are nearly equal, which shows that this measure decides when a
        page is full.
    """
    *before, last = sizes
    typical = sorted(before)[len(before) // 2]
    equal = [size for size in before if abs(size - typical) <= _EVEN * typical]
    if typical == 0 or 4 * len(equal) < 3 * len(before):
        return None
    return last >= (min(equal) if len(before) > 1 else 0.9 * typical)


class _Lengths:
    """Sample counts of the packets of one stream.

    Attributes:
        rate: granule positions per second; 0 when packets cannot be measured (FLAC, Speex, a Vorbis setup header
            that cannot be parsed).
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
        """Add a page of headers. The modes of a Vorbis stream are the last bits of the last one."""
        if self._is_vorbis:
            self._setup = (self._setup + payload)[-_SETUP_TAIL_BYTES:]
            sizes = (1 << (self._head[28] & 15), 1 << (self._head[28] >> 4))
            self._block_sizes = [sizes[flag] for flag in _block_flags(self._setup)]
            self.rate = int.from_bytes(self._head[12:16], "little") if self._block_sizes else 0

    def of(self, first_bytes: bytes) -> int:
        """Return the samples of the packet that begins with these two bytes."""
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
    """Return the samples of an Opus packet at 48 kHz. Source: RFC 6716, section 3.1."""
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
    """Return, for each mode of a Vorbis setup header, whether its blocks are long; [] when it cannot be parsed.

    The modes end the header: 6 bits for their number, 41 bits each (block flag, 16 + 16 zero bits, mapping), a 1.
    Nothing states where they begin, so they are read from the end, as FFmpeg's vorbis_parser.c does.
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
