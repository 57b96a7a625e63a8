"""Container recognition and checks for truncated or damaged files.

The content decides, never the file name: each container has one magic number and one decoder here, so that nothing
is guessed and no playlist, image or subtitle demuxer is ever reached. The walkers read chunk headers only:
microseconds for a clip, about 0.1 s for an hour of MP3. A cut cannot be detected where no length is stated: between
two frames of ADTS, AMR, AC-3 or an MP3 without a Xing header, between the clusters of a live WebM or the fragments
of a streaming MP4. FLV and MPEG-TS/PS, where every cut is of this kind, are not supported.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

from pipeline.audio.content import Content
from pipeline.audio.mpeg import Frames, after_id3, count_adts, count_mpeg, find_adts
from pipeline.audio.ogg import walk_ogg

_SLACK_BYTES = 64
"""Bytes by which a length field may exceed the content: many writers count their own 44-byte header into `data`."""

_UNTIL_END = 0x7FFF0000
"""Smallest RIFF size that means "until the end": FFmpeg streams 0xFFFFFFFF, SoX 0x7FFFFFFF less its header."""


@dataclass(frozen=True, slots=True)
class Container:
    """A recognised container and the facts its structure states.

    Attributes:
        reader: the library that decodes it.
        demuxer: FFmpeg's name for the format, the only demuxer it may use. None: only libsndfile reads it.
        states_length: False when the duration a demuxer reports is only an estimate from the bit rate.
        missing: a description when the file is truncated, else None.
        channels, sampling_rate: the header's values, where the header was read here; not checked yet.
        frames: totals of the frame headers (MP3, ADTS); None for other formats.
        holes: a description when pages or frames are missing in the middle, else None.
        indexed: True when an index in the header lists every packet, so that the packets read can be counted.
        clock_s: duration in seconds by time stamps, gaps included, where they were read here.
        rewritten: the bytes to decode instead of the content, where they differ: see `pipeline.audio.ogg` and
            `pipeline.audio.mpeg`.
    """

    name: str
    reader: Literal["soundfile", "av"] = "soundfile"
    demuxer: str | None = None
    states_length: bool = True
    missing: str | None = None
    channels: int | None = None
    sampling_rate: int | None = None
    frames: Frames | None = None
    holes: str | None = None
    indexed: bool = False
    clock_s: float = 0.0
    rewritten: bytes | None = None


_MOV = "mov,mp4,m4a,3gp,3g2,mj2"
_W64_RIFF = bytes.fromhex("726966662e91cf11a5d628db04c10000")
_W64_DATA = bytes.fromhex("64617461f3acd3118cd100c04f8edb8a")
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

_AFTER_SAMPLES = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"fact", b"cue ", b"PEAK", b"iXML", b"JUNK", b"smpl", b"_PMX")
"""RIFF chunks that may follow the samples. After a data chunk of size 0 they mean that it is really empty."""

_WAV_TAGS_OF_LIBSNDFILE = {
    0x0000,
    0x0001,
    0x0002,
    0x0003,
    0x0006,
    0x0007,
    0x0011,
    0x0031,
    0x0038,
    0x0040,
    0x0055,
    0xFFFE,
}
"""Format tags libsndfile reads (wavlike.c), and 0 for a missing one. libsndfile reports other tags, such as those of
G.722, G.726, G.723.1 and WMA, as a malformed header."""

_PLAIN = (
    (b"fLaC", Container("flac")),
    (b"#!AMR", Container("amr", "av", "amr", states_length=False)),
    (b"wvpk", Container("wavpack", "av", "wv")),
    (b"MAC ", Container("ape", "av", "ape")),
    (b"TTA1", Container("tta", "av", "tta")),
    (b"tBaK", Container("tak", "av", "tak")),
    (b"MPCK", Container("musepack", "av", "mpc8")),
    (b"MP+\x07", Container("musepack", "av", "mpc")),
    (b"\x0bw", Container("ac3", "av", "ac3", states_length=False)),
)
"""Containers without a length to walk. Their decoded length is compared with their header instead."""


def identify(content: Content) -> Container | None:
    """Recognise a container and check that its structure is complete; return None for unknown content."""
    start = after_id3(content)
    if start > len(content):
        return Container("id3", missing=_cut("the ID3 tag", start, len(content), slack_bytes=0))
    head = content[start : start + 64]
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64"):
        return _riff(content, start) if head[8:12] in (b"WAVE", b"AVI ") else None
    walkers = (
        (head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"), _aiff),
        (head[:4] in (b".snd", b"dns."), _au),
        (head[:4] == b"caff", _caf),
        (head[:16] == _W64_RIFF, _w64),
        (head[:7] == b"NIST_1A", _nist),
        (head[:4] == b"OggS", _ogg),
        (head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp"), _mp4),
        (head[:4] == b"\x1aE\xdf\xa3", _matroska),
        (head[:16] == _ASF, _asf),
    )
    for matches, walk in walkers:
        if matches:
            return walk(content, start)
    for magic, container in _PLAIN:
        if head.startswith(magic):
            return container
    return _framed(content, start)


def _cut(what: str, needed: int, there: int, *, slack_bytes: int = _SLACK_BYTES) -> str | None:
    return f"{what} needs {needed:,} bytes, but only {there:,} are left" if needed > there + slack_bytes else None


def _riff(content: Content, start: int) -> Container:
    """Walk WAV, RIFX, RF64, BW64 and AVI. Source: Microsoft RIFF MCI; EBU Tech 3306 (RF64, `ds64`)."""
    order = ">" if content[start : start + 4] == b"RIFX" else "<"
    (riff_size,) = struct.unpack_from(order + "I", content, start + 4)
    if content[start + 8 : start + 12] == b"AVI ":
        return Container(
            "avi", "av", "avi", states_length=False, missing=_cut("RIFF", riff_size + 8, len(content) - start)
        )
    channels = sampling_rate = size_64 = None
    tag = 0
    position = start + 12
    while position + 8 <= len(content):
        name = content[position : position + 4]
        (size,) = struct.unpack_from(order + "I", content, position + 4)
        if name == b"ds64" and position + 24 <= len(content):
            (size_64,) = struct.unpack_from("<Q", content, position + 16)
        elif name == b"fmt " and position + 16 <= len(content):
            tag, channels, sampling_rate = struct.unpack_from(order + "HHI", content, position + 8)
        elif name == b"data":
            bytes_left = len(content) - position - 8
            if size == 0 and bytes_left > 0 and content[position + 8 : position + 12] not in _AFTER_SAMPLES:
                # The writer never set the size: FFmpeg reads to the end, libsndfile reads no sample.
                return Container("wav", "av", "wav", False, channels=channels, sampling_rate=sampling_rate)
            if size == 0xFFFFFFFF and size_64 is not None:
                size = size_64
                missing = _cut("the data chunk", size, bytes_left)
            else:
                missing = None if size >= _UNTIL_END else _cut("the data chunk", size, bytes_left)
            if tag not in _WAV_TAGS_OF_LIBSNDFILE:
                return Container("wav", "av", "wav", False, missing, channels=channels, sampling_rate=sampling_rate)
            return Container("wav", "soundfile", "wav", missing=missing, channels=channels, sampling_rate=sampling_rate)
        position += 8 + size + (size & 1)
    missing = None
    if riff_size and riff_size < _UNTIL_END:
        missing = _cut("RIFF", riff_size + 8, len(content) - start)
    if missing is None and position > len(content) + _SLACK_BYTES:
        missing = "a chunk before the samples ends past the end of the file"
    return Container("wav", "soundfile", "wav", missing=missing, channels=channels, sampling_rate=sampling_rate)


def _aiff(content: Content, start: int) -> Container:
    position = start + 12
    while position + 8 <= len(content):
        name = content[position : position + 4]
        (size,) = struct.unpack_from(">I", content, position + 4)
        if name == b"SSND":
            return Container(
                "aiff", "soundfile", "aiff", missing=_cut("the SSND chunk", size, len(content) - position - 8)
            )
        position += 8 + size + (size & 1)
    (size,) = struct.unpack_from(">I", content[: start + 8].ljust(start + 8, b"\0"), start + 4)
    return Container("aiff", "soundfile", "aiff", missing=_cut("FORM", size + 8, len(content) - start))


def _au(content: Content, start: int) -> Container:
    if len(content) < start + 24:
        return Container("au", "soundfile", "au", missing="the header is incomplete")
    order = ">" if content[start : start + 4] == b".snd" else "<"
    offset, size, _, sampling_rate, channels = struct.unpack_from(order + "5I", content, start + 4)
    missing = None if size == 0xFFFFFFFF else _cut("the header", offset + size, len(content) - start)
    return Container("au", "soundfile", "au", missing=missing, channels=channels, sampling_rate=sampling_rate)


def _caf(content: Content, start: int) -> Container:
    position = start + 8
    while position + 12 <= len(content):
        (size,) = struct.unpack_from(">q", content, position + 4)
        if content[position : position + 4] == b"data" and size == -1:
            return Container("caf", "soundfile", "caf")
        if size < 0:
            return Container("caf", "soundfile", "caf", holes="a chunk of negative size")
        missing = _cut("a CAF chunk", size, len(content) - position - 12)
        if missing:
            return Container("caf", "soundfile", "caf", missing=missing)
        position += 12 + size
    return Container("caf", "soundfile", "caf")


def _w64(content: Content, start: int) -> Container:
    position = start + 40
    while position + 24 <= len(content):
        (size,) = struct.unpack_from("<Q", content, position + 16)
        if content[position : position + 16] == _W64_DATA:
            return Container("w64", "soundfile", "w64", missing=_cut("the data chunk", size, len(content) - position))
        position += max(24, (size + 7) & ~7)
    return Container("w64", "soundfile", "w64", missing="no data chunk before the end of the file")


def _nist(content: Content, start: int) -> Container:
    """Walk NIST SPHERE, a text header of `name -type value` lines. Source: NIST SPHERE 2.6 documentation."""
    lines = content[start : start + 1024].decode("latin-1").split("\n")
    fields = {words[0]: words[2] for line in lines if len(words := line.split()) == 3}
    try:
        size = int(fields["sample_count"]) * int(fields["sample_n_bytes"]) * int(fields["channel_count"])
        header_bytes = int(lines[1])
    except (KeyError, ValueError, IndexError):
        return Container("nist", "soundfile", "nistsphere")
    packed = "shorten" in fields.get("sample_coding", "")
    missing = None if packed else _cut("the header", header_bytes + size, len(content) - start)
    return Container("nist", "soundfile", "nistsphere", missing=missing)


def _ogg(content: Content, start: int) -> Container:
    """Walk Ogg: libsndfile reads a single Vorbis or Opus stream, FFmpeg video, Speex, FLAC and chained streams.

    Pages are checked one by one, so the length that FFmpeg takes from the last granule position adds nothing.
    """
    found = walk_ogg(content, start)
    reader: Literal["soundfile", "av"] = "soundfile" if found.alone else "av"
    return Container(
        "ogg",
        reader,
        "ogg",
        states_length=False,
        missing=found.missing,
        holes=found.holes,
        rewritten=found.rewritten,
        clock_s=found.clock_s,
    )


def _mp4(content: Content, start: int) -> Container:
    """Walk the outermost boxes of MP4, M4A, MOV and 3GP. Source: ISO/IEC 14496-12."""
    position, names = start, set()
    missing = None
    while position + 8 <= len(content):
        (size,) = struct.unpack_from(">I", content, position)
        names.add(content[position + 4 : position + 8])
        if size == 1 and position + 16 <= len(content):
            (size,) = struct.unpack_from(">Q", content, position + 8)
        if size == 0:
            break
        if size < 8:
            break  # trailing padding or damage: the decoder reports it
        missing = missing or _cut(
            f"the {content[position + 4 : position + 8].decode('latin-1')!r} box", size, len(content) - position
        )
        position += size
    if missing is None and b"moov" not in names:
        missing = "the moov box, the index of the samples, is missing"
    return Container("mp4", "av", _MOV, missing=missing, indexed=b"moof" not in names)


def _vint(content: Content, position: int, *, keep_marker: bool) -> tuple[int, int, bool]:
    """Read an EBML number: (value, position after it, whether it means "unknown"). Source: RFC 8794, section 4."""
    first = content[position]
    length = 9 - first.bit_length()
    if length > 8:
        return 0, position + 1, True
    value = int.from_bytes(content[position : position + length], "big")
    bare = value & ~(1 << (7 * length))
    return (value if keep_marker else bare), position + length, bare == (1 << (7 * length)) - 1


def _matroska(content: Content, start: int) -> Container:
    position = start
    missing = None
    while position + 12 <= len(content):
        _, position, _ = _vint(content, position, keep_marker=True)
        size, position, unknown = _vint(content, position, keep_marker=False)
        if unknown:
            break
        missing = missing or _cut("an EBML element", size, len(content) - position)
        position += size
    return Container("matroska", "av", "matroska,webm", missing=missing)


_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_IN_SEGMENT = {0x114D9B74, 0x1549A966, 0x1654AE6B, _CLUSTER, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF}
_IN_CLUSTER = {0xE7, 0xA3, 0xA0, 0xAB, 0xA7, 0x5854, 0xAF, 0xEC, 0xBF}
"""Elements allowed in a Matroska segment (`_IN_SEGMENT`) and in a cluster. Source: RFC 9559, section 5."""


def matroska_hole(content: Content) -> str | None:
    """Describe the first break in the sequence of Matroska elements; return None when there is none.

    Distinguishes time stamps that jump (packets that were never written) from an overwritten part of the file, which
    FFmpeg skips without an error. Costs 1 us an element.
    """
    position, parents = 0, {_SEGMENT, 0x1A45DFA3, 0xEC, 0xBF}
    while position + 2 <= len(content):
        begun = position
        element, position, _ = _vint(content, position, keep_marker=True)
        if element not in parents | _IN_SEGMENT | _IN_CLUSTER or position >= len(content):
            return f"no valid Matroska element at byte {begun:,}"
        size, position, unknown = _vint(content, position, keep_marker=False)
        if element in (_SEGMENT, _CLUSTER):
            continue  # descend: its elements follow
        if unknown:
            return f"the element at byte {begun:,} does not state its size"
        position += size
    return (
        None
        if position == len(content)
        else f"the last element ends {position - len(content):,} bytes past the end of the file"
    )


def _asf(content: Content, start: int) -> Container:
    position, missing = start, None
    while position + 24 <= len(content):
        (size,) = struct.unpack_from("<Q", content, position + 16)
        if size < 24:
            break  # 0 in a live recording
        missing = missing or _cut("an ASF object", size, len(content) - position)
        position += size
    return Container("asf", "av", "asf", missing=missing)


_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def asf_hole(content: Content) -> str | None:
    """Describe the first damaged packet of an ASF file; return None when there is none.

    All packets have one size, and each must begin with the same byte as the first. Source: ASF 1.20, 3.2 and 5.2.1.
    """
    properties, data = content.find(_ASF_PROPERTIES), content.find(_ASF_DATA)
    if properties < 0 or data < 0 or properties + 96 > len(content) or data + 50 >= len(content):
        return "the header is damaged"
    size = max(1, int.from_bytes(content[properties + 92 : properties + 96], "little"))
    (data_bytes,) = struct.unpack_from("<Q", content, data + 16)
    end = min(len(content), data + data_bytes) if data_bytes else len(content)
    for position in range(data + 50, end - size + 1, size):
        if content[position] != content[data + 50]:
            return f"no valid ASF packet at byte {position:,}"
    return None


def _framed(content: Content, start: int) -> Container | None:
    """Recognise MPEG audio and raw AAC, which have no container, by their consecutive frames."""
    adts = count_adts(content, start)
    mpeg = None if adts else count_mpeg(content, start)
    adts = adts if adts or mpeg else find_adts(content, start)
    if adts:
        missing = _cut("the last AAC frame", adts.end, len(content), slack_bytes=0)
        return Container("adts", "av", "aac", missing=missing, frames=adts, rewritten=adts.joined(content))
    if mpeg:
        missing = _cut("the last MPEG frame", mpeg.end, len(content), slack_bytes=0)
        rewritten = mpeg.joined(content) if len(mpeg.runs) > 1 else None
        return Container("mp3", "soundfile", "mp3", missing=missing, frames=mpeg, rewritten=rewritten)
    return None
