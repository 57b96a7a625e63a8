"""Whole recordings that other software writes in ways that look like damage, made in memory."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Iterator

import av
import numpy as np

from tests.hostile.make_audio import ffmpeg, ogg_crc

Page = bytearray


def pages_of(content: bytes) -> list[Page]:
    """The pages of an Ogg file."""
    pages, position = [], 0
    while position < len(content):
        segments = content[position + 26]
        end = position + 27 + segments + sum(content[position + 27 : position + 27 + segments])
        pages.append(bytearray(content[position:end]))
        position = end
    return pages


def granule(page: Page) -> int:
    """The granule position of a page; 0 for headers."""
    return int(struct.unpack_from("<q", page, 6)[0])


def join(pages: list[Page]) -> bytes:
    """An Ogg file of these pages, with checksums that match."""
    for page in pages:
        page[22:26] = bytes(4)
        page[22:26] = struct.pack("<I", ogg_crc(bytes(page)))
    return b"".join(pages)


def without_end(ogg: bytes) -> bytes:
    """Without the end-of-stream bit, as Telegram on Android and Android's MediaMuxer write it."""
    pages = pages_of(ogg)
    for page in pages:
        page[5] &= ~4
    return join(pages)


def one_packet_pages(ogg: bytes) -> bytes:
    """The same Opus stream with each packet on a page of its own, for packets of 20 ms."""
    pages = pages_of(ogg)
    out, last, number = pages[:2], granule(pages[-1]), 2
    packets: list[bytes] = []
    for page in pages[2:]:
        at, packet = 27 + page[26], b""
        for length in page[27 : 27 + page[26]]:
            packet, at = packet + bytes(page[at : at + length]), at + length
            if length < 255:
                packets.append(packet)
                packet = b""
    for packet in packets:
        lacing = bytes([255] * (len(packet) // 255) + [len(packet) % 255])
        head = b"OggS\0\0" + struct.pack("<q", min(960 * (number - 1), last)) + bytes(pages[0][14:18])
        out.append(bytearray(head + struct.pack("<II", number, 0) + bytes([len(lacing)]) + lacing + packet))
        number += 1
    out[-1][5] |= 4
    return join(out)


def with_jump(ogg: bytes, samples: int, *, share: float) -> bytes:
    """Granule positions that jump after a share of the audio's pages, as after lost or muted packets."""
    pages = pages_of(ogg)
    audio = [page for page in pages if granule(page) > 0]
    for page in audio[round(share * len(audio)) :]:
        struct.pack_into("<q", page, 6, granule(page) + samples)
    return join(pages)


def captured(ogg: bytes, *, dropped: int, number: int, later: int = 0) -> bytes:
    """Headers, then a running stream from some page on, as Icecast sends it; it ends without an end-of-stream bit."""
    headers = [page for page in pages_of(ogg) if granule(page) == 0]
    audio = [page for page in pages_of(ogg) if granule(page) > 0][dropped:]
    for count, page in enumerate(audio):
        page[5] &= ~4
        struct.pack_into("<q", page, 6, granule(page) + later)
        struct.pack_into("<I", page, 18, number + count)
    return join(headers + audio)


def remuxed(content: bytes, muxer: str, moved: Callable[[float], float]) -> bytes:
    """The same packets in another container, each at the time that `moved` gives for its own."""
    out = io.BytesIO()
    with av.open(io.BytesIO(content)) as source, av.open(out, "w", format=muxer) as target:
        stream = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                by = round(
                    (moved(float(packet.pts * packet.time_base)) - packet.pts * packet.time_base) / packet.time_base
                )
                packet.pts, packet.dts, packet.stream = packet.pts + by, packet.dts + by, stream
                target.mux(packet)
    return out.getvalue()


def with_mdhd(m4a: bytes, factor: float) -> bytes:
    """An M4A whose media header states another length than its samples have."""
    out = bytearray(m4a)
    at = out.index(b"mdhd") + 4
    at += 24 if out[at] == 1 else 16
    struct.pack_into(">I", out, at, int(struct.unpack_from(">I", out, at)[0] * factor))
    return bytes(out)


def tags() -> Iterator[tuple[str, bytes]]:
    """Tags that stand between the parts of concatenated MP3 and AAC files."""
    item = b"\x08\0\0\0\0\0\0\0Title\0two words"
    size = len(item) + 32
    ape = lambda version, flags: b"APETAGEX" + struct.pack("<IIII", version, size, 1, flags) + bytes(8)  # noqa: E731
    id3v1, id3v2 = b"TAG" + b"x" * 125, b"ID3\x04\0\0\0\0\x01\0" + bytes(128)
    yield "ID3v2", id3v2
    yield "ID3v1", id3v1
    yield "ID3v1 extended", b"TAG+" + b"y" * 223 + id3v1
    yield "APEv2", ape(2000, 0xA0000000) + item + ape(2000, 0x80000000)
    yield "APEv1", item + ape(1000, 0)
    yield "Lyrics3", b"LYRICSBEGININD0000300" + b"la " * 20 + b"000081LYRICS200" + id3v1
    yield "all", ape(2000, 0xA0000000) + item + ape(2000, 0x80000000) + id3v1 + bytes(300) + id3v2


def amr(wave: np.ndarray, muxer: str) -> bytes:
    """AMR at 8 kHz whose silences are comfort noise (DTX)."""
    out = io.BytesIO()
    with av.open(out, "w", format=muxer) as container:
        stream = container.add_stream("libopencore_amrnb", rate=8_000, layout="mono", options={"dtx": "1"})
        stream.codec_context.open()
        frame = av.AudioFrame.from_ndarray((wave[:, 0] * 32767).astype(np.int16)[None], format="s16", layout="mono")
        frame.sample_rate = 8_000
        fitted = av.AudioResampler(stream.codec_context.format.name, "mono", 8_000, frame_size=160)
        for piece in [*fitted.resample(frame), *fitted.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return out.getvalue()


def amr_wb_with_noise(frames: int) -> bytes:
    """AMR-WB of comfort noise and gaps alone, which needs no encoder. Source: RFC 4867, 5.3."""
    return b"#!AMR-WB\n" + b"".join(b"\x4c\x33\x1e\x55\x70\x40" if n % 8 == 0 else b"\x7c" for n in range(frames))


def unknown_first_track(muxer: str) -> bytes:
    """Two tracks, of which no decoder knows the first one's codec; the second is half as loud."""
    from tests.hostile.make_audio import voice

    content = ffmpeg(voice(), muxer, "aac" if muxer == "mp4" else "libopus", tracks=2)
    if muxer == "mp4":
        return content.replace(b"mp4a", b"apac", 1).replace(b"esds", b"none", 1)
    return content.replace(b"A_OPUS", b"A_NONE", 1)
