"""Hostile and damaged audio, made in memory from a seed: what a corpus of other people's files holds.

`python -m tests.hostile.make_audio OUT` writes it to a folder for a look by hand; the tests call the functions.
"""

from __future__ import annotations

import io
import re
import struct
import sys
import zipfile
import zlib
from pathlib import Path

import av
import numpy as np
import soundfile

SEED = 20260


def voice(duration_s: float = 3.0, rate: int = 16_000, channels: int = 1, seed: int = SEED) -> np.ndarray:
    """[num_frames, channels] float32: a buzzing, pulsing tone with noise, another in each channel, peak below 0.8."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(duration_s * rate)) / rate
    pitch = 120 + 40 * np.arange(channels)
    wave = sum(np.sin(2 * np.pi * k * time[:, None] * pitch) / k for k in (1, 2, 3, 5))
    wave = 0.25 * wave * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))[:, None]
    return (wave + 0.01 * rng.standard_normal(wave.shape)).astype(np.float32)


def snd(
    wave: np.ndarray, rate: int = 16_000, form: str = "WAV", subtype: str | None = "PCM_16", endian: str = "FILE"
) -> bytes:
    """Encode with libsndfile; the same bytes every time."""
    out = io.BytesIO()
    soundfile.write(out, wave, rate, format=form, subtype=subtype, endian=endian)
    content = bytearray(out.getvalue())
    if (peak := content.find(b"PEAK", 0, 200)) > 0:
        content[peak + 12 : peak + 16] = bytes(4)  # the time of writing
    for page in [found.start() for found in re.finditer(rb"OggS\0", content)] if form == "OGG" else []:
        end = page + 27 + content[page + 26] + sum(content[page + 27 : page + 27 + content[page + 26]])
        content[page + 14 : page + 18] = b"\7\0\0\0"  # a serial number at random
        content[page + 22 : page + 26] = bytes(4)
        content[page + 22 : page + 26] = struct.pack("<I", ogg_crc(bytes(content[page:end])))
    return bytes(content)


def many_channels(channels: int, muxer: str, codec: str, rate: int = 16_000) -> bytes:
    """Another voice in each channel, encoded with FFmpeg."""
    out = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1", 12: "7.1.4", 16: "hexadecagonal", 24: "22.2"}[channels]
    with av.open(out, "w", format=muxer, options={"fflags": "bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        stream.codec_context.open()
        packed = (voice(1.0, rate, channels) * 32767).astype(np.int16).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        frame.sample_rate = rate
        context = stream.codec_context
        fitted = av.AudioResampler(context.format.name, layout, rate, frame_size=context.frame_size or 0)
        for piece in [*fitted.resample(frame), *fitted.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return out.getvalue()


def ffmpeg(
    wave: np.ndarray, muxer: str, codec: str, *, rate: int = 16_000, tracks: int = 1, bit_rate: int | None = None
) -> bytes:
    """Encode with FFmpeg, mono, at 48 kHz for Opus; track n is the wave times 1 / (n + 1)."""
    out = io.BytesIO()
    codec_rate = 48_000 if codec == "libopus" else rate
    with av.open(out, "w", format=muxer, options={"fflags": "bitexact"}) as container:
        streams = [container.add_stream(codec, rate=codec_rate, layout="mono") for _ in range(tracks)]
        for stream in streams:
            if bit_rate:
                stream.bit_rate = bit_rate
            stream.codec_context.open()
        for number, stream in enumerate(streams):
            samples = (wave[:, 0] / (number + 1) * 32767).astype(np.int16)[None]
            frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate = rate
            context = stream.codec_context
            fitted = av.AudioResampler(context.format.name, "mono", codec_rate, frame_size=context.frame_size or 0)
            for piece in [*fitted.resample(frame), *fitted.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))
    return out.getvalue()


def film(muxer: str = "mp4") -> bytes:
    """A film without sound."""
    out = io.BytesIO()
    with av.open(out, "w", format=muxer) as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()


def complete() -> dict[str, bytes]:
    """3 s in every format that is written here, by name."""
    wave = voice()
    made = {
        "wav": snd(wave),
        "wav float": snd(wave, subtype="FLOAT"),
        "wav mu-law": snd(wave, subtype="ULAW"),
        "wav adpcm": snd(wave, subtype="MS_ADPCM"),
        "wavex": snd(wave, form="WAVEX"),
        "rf64": snd(wave, form="RF64"),
        "rifx": snd(wave, endian="BIG"),
        "w64": snd(wave, form="W64"),
        "aiff": snd(wave, form="AIFF"),
        "au": snd(wave, form="AU"),
        "caf": snd(wave, form="CAF"),
        "alac": snd(wave, form="CAF", subtype="ALAC_16"),
        "sphere": snd(wave, form="NIST"),
        "flac": snd(wave, form="FLAC"),
        "mp3": snd(wave, form="MP3", subtype="MPEG_LAYER_III"),
        "ogg": snd(wave, form="OGG", subtype="VORBIS"),
        "opus": snd(wave, form="OGG", subtype="OPUS"),
    }
    for name, muxer, codec in (
        ("m4a", "ipod", "aac"),
        ("adts", "adts", "aac"),
        ("webm", "webm", "libopus"),
        ("mkv", "matroska", "aac"),
        ("mov", "mov", "alac"),
        ("avi", "avi", "mp2"),
        ("mp2", "mp2", "mp2"),
        ("wavpack", "wv", "wavpack"),
        ("tta", "tta", "tta"),
    ):
        made[name] = ffmpeg(wave, muxer, codec)
    return made


def wav_header(*, channels: int = 1, rate: int = 16_000, bits: int = 16, data_bytes: int = 0) -> bytes:
    """A bare WAV header that says what it is told to say."""
    block = max(1, channels * bits // 8) & 0xFFFF
    fmt = struct.pack("<HHIIHH", 1, channels, rate, (rate * block) & 0xFFFFFFFF, block, bits)
    riff = min(36 + data_bytes, 0xFFFFFFFF)
    return (
        b"RIFF"
        + struct.pack("<I", riff)
        + b"WAVEfmt "
        + struct.pack("<I", 16)
        + fmt
        + b"data"
        + struct.pack("<I", data_bytes)
    )


def float_wav(values: np.ndarray) -> bytes:
    """A float WAV that holds exactly these samples, NaN and all."""
    payload = values.astype("<f4").tobytes()
    fmt = struct.pack("<HHIIHH", 3, 1, 16_000, 64_000, 4, 32)
    body = b"WAVEfmt " + struct.pack("<I", 16) + fmt + b"data" + struct.pack("<I", len(payload)) + payload
    return b"RIFF" + struct.pack("<I", len(body)) + body


def silent_flac(hours: float, rate: int = 16_000) -> bytes:
    """Hours of silence: 12 h are 2.3 MB and decode to 2.8 GB of float32. Takes 0.8 s per hour to make."""
    out = io.BytesIO()
    with soundfile.SoundFile(out, "w", rate, 1, "PCM_16", format="FLAC") as flac:
        minute = np.zeros(60 * rate, np.int16)
        for _ in range(round(hours * 60)):
            flac.write(minute)
    return out.getvalue()


def flac_of_unknown_length(flac: bytes) -> bytes:
    """The same with total_samples 0, as encoders write it to a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + b"\0\0\0\0" + flac[26:]


def flac_that_claims(flac: bytes, hours: float, rate: int = 16_000) -> bytes:
    """The same with another length in its header."""
    total = round(hours * 3600 * rate)
    return flac[:21] + bytes([(flac[21] & 0xF0) | total >> 32]) + struct.pack(">I", total & 0xFFFFFFFF) + flac[26:]


def _ogg_crc_of_byte(byte: int) -> int:
    crc = byte << 24
    for _ in range(8):
        crc = (crc << 1 ^ 0x04C11DB7 if crc & 0x80000000 else crc << 1) & 0xFFFFFFFF
    return crc


_OGG_CRC = [_ogg_crc_of_byte(byte) for byte in range(256)]


def ogg_crc(page: bytes) -> int:
    """RFC 3533's checksum, by the book."""
    crc = 0
    for byte in page:
        crc = (crc << 8 & 0xFFFFFFFF) ^ _OGG_CRC[crc >> 24 ^ byte]
    return crc


def ogg_page(packets: bytes, number: int, *, granule: int = 0, kind: int = 0) -> bytes:
    """One page that holds one packet."""
    lacing = bytes([255] * (len(packets) // 255) + [len(packets) % 255])
    head = b"OggS\0" + struct.pack("<BqIII", kind, granule, 7, number, 0) + bytes([len(lacing)]) + lacing
    return head[:22] + struct.pack("<I", ogg_crc(head + packets)) + head[26:] + packets


def long_opus(hours: float) -> bytes:
    """Few bytes that claim hours: the last page's granule position is the length of an Opus file."""
    head = ogg_page(b"OpusHead\1\1" + struct.pack("<HIHB", 0, 48_000, 0, 0), 0, kind=2)
    tags = ogg_page(b"OpusTags" + struct.pack("<I", 0) + struct.pack("<I", 0), 1)
    silence = b"\xf8\xff\xfe"  # 20 ms
    pages = [ogg_page(silence, 2 + n, granule=960 * (n + 1)) for n in range(50)]
    return head + tags + b"".join(pages) + ogg_page(silence, 52, granule=round(hours * 3600 * 48_000), kind=4)


def mp3_without_header(mp3: bytes) -> bytes:
    """Without its first frame, which is the Xing header: nothing states the length any more."""
    second = mp3.find(mp3[:2], 4)
    return mp3[second:]


def not_audio() -> dict[str, bytes]:
    """Files of other kinds, and playlists that name what a decoder must not open."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.wav", snd(voice(0.1)))
    pixel = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    ihdr = struct.pack(">I", 13) + b"IHDR" + pixel + struct.pack(">I", zlib.crc32(b"IHDR" + pixel))
    return {
        "text": b"Kids are talking by the door\n" * 40,
        "html": b"<!DOCTYPE html><html><body>404 Not Found</body></html>" * 20,
        "json": b'{"error": "AccessDenied"}' * 30,
        "zip": archive.getvalue(),
        "png": b"\x89PNG\r\n\x1a\n" + ihdr,
        "elf": b"\x7fELF\x02\x01\x01" + bytes(900),
        "gzip": b"\x1f\x8b\x08" + bytes(200),
        "zeros": bytes(100_000),
        "noise": np.random.default_rng(SEED).bytes(50_000),
        "film": film(),
        "webp": b"RIFF\x24\0\0\0WEBPVP8 " + bytes(40),
        "midi": b"MThd\0\0\0\x06\0\0\0\x01\0`" + bytes(60),
        "id3 only": b"ID3\x04\0\0\0\0\x07\x76" + bytes(1014),
    }


def playlists(secret: str, port: int) -> dict[str, bytes]:
    """Texts that FFmpeg's own probing would follow to a file or a socket."""
    url = f"http://127.0.0.1:{port}/a.wav"
    return {
        "ffconcat": f"ffconcat version 1.0\nfile '{secret}'\n".encode(),
        "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n".encode(),
        "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n".encode(),
        "dash": f'<?xml version="1.0"?><MPD><BaseURL>{url}</BaseURL></MPD>'.encode(),
        "pls": f"[playlist]\nFile1={url}\n".encode(),
        "rtsp": f"RTSPtextRTSP://127.0.0.1:{port}/".encode(),
        "vobsub": f"# VobSub index file, v7\nid: en, index: 0\n{secret}\n".encode(),
    }


def m4a_with_outside_samples(secret: str) -> bytes:
    """An M4A whose data reference names another file instead of itself (ISO/IEC 14496-12, 8.7.2)."""
    m4a = ffmpeg(voice(1.0), "ipod", "aac")
    old = m4a[m4a.index(b"dref") - 4 :][:28]
    url = struct.pack(">I", 12 + len(secret) + 1) + b"url \0\0\0\0" + secret.encode() + b"\0"
    new = struct.pack(">I", 16 + len(url)) + b"dref\0\0\0\0\0\0\0\x01" + url
    grown = len(new) - len(old)
    out = bytearray(m4a.replace(old, new, 1))
    for name in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = out.index(name) - 4
        out[place : place + 4] = struct.pack(">I", struct.unpack(">I", out[place : place + 4])[0] + grown)
    return bytes(out)


def rotten(content: bytes, share: float, seed: int) -> bytes:
    """A share of the bytes overwritten at random."""
    rng = np.random.default_rng(seed)
    out = np.frombuffer(content, np.uint8).copy()
    count = max(1, int(len(out) * share))
    out[rng.integers(0, len(out), count)] = rng.integers(0, 256, count)
    return out.tobytes()


def main(folder: Path) -> None:
    """Write everything to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {**complete(), **not_audio(), **playlists("/etc/hostname", 9)}
    made |= {
        "bomb 12 h.flac": silent_flac(12),
        "bomb 24 h.opus": long_opus(24),
        "1 Hz.wav": wav_header(rate=1, data_bytes=160_000) + bytes(160_000),
    }
    for name, content in made.items():
        (folder / name.replace(" ", "_")).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
