"""Decoding: the same samples as librosa, and a reason instead of wrong or missing ones."""

from __future__ import annotations

import ctypes
import io
import os
import pickle
import resource
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import librosa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.audio import decoders
from pipeline.audio.container import Container
from pipeline.audio.decode import AudioLimits, decode, probe
from pipeline.errors import Reason, RejectedRow, Stage
from tests.hostile import make_audio as make

CLIPS = sorted((Path(__file__).parent / "parity" / "audio").iterdir())
SOUND = make.complete()
RATES = (4_000, 8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)


def reason(content: bytes, **options) -> Reason:
    with pytest.raises(RejectedRow) as caught:
        decode(content, **options)
    assert caught.value.stage is Stage.DECODE
    assert caught.value.detail
    return caught.value.reason


def outcome(content: bytes) -> tuple[Reason | None, float]:
    """(why it was rejected, or None; seconds of audio)."""
    try:
        return None, len(decode(content)) / 16_000
    except RejectedRow as rejected:
        return rejected.reason, 0.0


def librosa_load(content: bytes, **options) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # audioread, which librosa imports, wants modules that Python 3.13 drops
        return librosa.load(io.BytesIO(content), sr=16_000, **options)[0]


# The same samples as librosa


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
def test_clips_are_bit_identical_to_librosa(clip):
    """Fails when decoder, downmix order, resampler quality or length rule differ from what the models saw."""
    content = clip.read_bytes()
    waveform = decode(content)
    assert waveform.dtype == np.float32
    assert waveform.flags.c_contiguous
    np.testing.assert_array_equal(waveform, librosa_load(content))


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_rate_is_bit_identical_to_librosa(rate, channels):
    """Fails when a rate is resampled in another order, or its last sample is dropped or padded otherwise."""
    content = make.snd(make.voice(0.777, rate, channels), rate, "WAV", "FLOAT")
    np.testing.assert_array_equal(decode(content), librosa_load(content))


@pytest.mark.parametrize(("form", "subtype", "rate"), [
    ("FLAC", "PCM_24", 44_100), ("MP3", "MPEG_LAYER_III", 44_100), ("MP3", "MPEG_LAYER_III", 8_000),
    ("OGG", "VORBIS", 22_050), ("OGG", "OPUS", 48_000), ("AIFF", "PCM_S8", 11_025), ("WAV", "ALAW", 8_000),
])  # fmt: skip
def test_blocks_do_not_show(form, subtype, rate):
    """Fails when decoding in blocks differs from one read: soundfile's seek after each read resets an MP3 decoder."""
    content = make.snd(make.voice(30, rate, 2), rate, form, subtype)
    whole = librosa_load(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoders, "_BLOCK_VALUES", 100_003)
        np.testing.assert_array_equal(decode(content), whole)
    np.testing.assert_array_equal(decode(content), whole)


@pytest.mark.parametrize("channels", [2, 3, 6, 8, 16])
def test_channels_are_averaged_or_picked(channels):
    """Fails on a sum, an energy-preserving downmix, or a channel counted from 1."""
    wave = make.voice(0.5, 16_000, channels)
    content = make.snd(wave, subtype="FLOAT")
    np.testing.assert_allclose(decode(content), wave.astype(np.float64).mean(axis=1), atol=1e-7)
    np.testing.assert_array_equal(decode(content), librosa_load(content))
    for channel in (0, channels - 1):
        np.testing.assert_array_equal(decode(content, channel=channel), wave[:, channel])
    assert reason(content, channel=channels) is Reason.BAD_CHANNEL
    assert reason(content, channel=-1) is Reason.BAD_CHANNEL


def test_out_of_phase_stereo_is_silence_not_an_error():
    """Fails when the documented mean is replaced by picking a channel."""
    wave = make.voice(0.5)
    assert np.abs(decode(make.snd(np.hstack([wave, -wave]), subtype="FLOAT"))).max() == 0


@pytest.mark.parametrize(("subtype", "bound"), [
    ("PCM_U8", 1 / 128), ("PCM_16", 1 / 32768), ("PCM_24", 1 / 2**23), ("PCM_32", 1e-7), ("FLOAT", 0), ("DOUBLE", 0),
    ("ULAW", 0.02), ("ALAW", 0.02), ("IMA_ADPCM", 0.2), ("MS_ADPCM", 0.2),
])  # fmt: skip
def test_sample_formats_are_within_quantisation(subtype, bound):
    """Fails when a format is scaled wrongly, such as floats read as integers, which is near-silence."""
    wave = make.voice(0.5)
    waveform = decode(make.snd(wave, subtype=subtype))
    assert np.abs(waveform[: len(wave)] - wave[:, 0]).max() <= bound


@pytest.mark.parametrize("name", SOUND)
def test_every_container_is_read_by_its_content(name):
    """Fails when a container is refused or cut; there is no file name that could help."""
    waveform = decode(SOUND[name])
    assert abs(len(waveform) / 16_000 - 3) < 0.1
    lag = slice(8_000, 40_000)  # past encoder delay
    spectrum = np.abs(np.fft.rfft(waveform[lag]))
    assert abs(np.argmax(spectrum) / 2 - 120) < 5, "the 120 Hz tone"
    header = probe(SOUND[name])
    assert header.channels == 1
    assert header.duration_s is None or abs(header.duration_s - 3) < 0.2


def test_first_audio_track_of_several():
    """Fails when tracks are mixed or the loudest or last one is taken."""
    two, one = (decode(make.ffmpeg(make.voice(), "mp4", "aac", tracks=tracks)) for tracks in (2, 1))
    np.testing.assert_allclose(two, one, atol=1e-3)


def test_an_id3_tag_before_the_content_is_skipped():
    """Fails on files that taggers prefixed with ID3 (huge cover art among them): FLAC, ADTS and WAV all occur."""
    tag = b"ID3\x04\0\0\0\x7f\x7f\x7f" + bytes((1 << 21) - 1)
    for name in ("wav", "flac", "adts", "mp3"):
        np.testing.assert_array_equal(decode(tag + SOUND[name]), decode(SOUND[name]))


# Spans


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "ogg", "opus", "m4a", "webm", "adts", "avi"])
def test_a_span_is_that_part_of_the_whole(name):
    """Fails when seeking lands elsewhere, which MP3 and Ogg seeks may."""
    whole = decode(SOUND[name])
    resampled = probe(SOUND[name]).sampling_rate != 16_000  # the span is cut first, so its edges ring
    for start, stop in ((1.0, 1.5), (2.0, None), (0.0, 0.5)):
        expected = whole[round(start * 16_000) : None if stop is None else round(stop * 16_000)]
        span = decode(SOUND[name], offset_s=start, duration_s=None if stop is None else stop - start)
        assert len(span) == len(expected)
        inner = slice(400, -400) if resampled else slice(None)
        np.testing.assert_allclose(span[inner], expected[inner], atol=2e-3 if resampled else 0, rtol=0)


@given(offset=st.floats(0, 2.9), duration=st.floats(0.05, 3))
def test_spans_follow_librosa(offset, duration):
    """Fails when offsets are rounded otherwise than librosa's int(offset * rate), or resampled before cutting."""
    content = FLAC_22K
    if offset + duration > 3.5 or (int(offset * 22_050) == 0 and duration >= 2.9):
        return
    np.testing.assert_array_equal(
        decode(content, offset_s=offset, duration_s=duration), librosa_load(content, offset=offset, duration=duration)
    )


FLAC_22K = make.snd(make.voice(3, 22_050, 2), 22_050, "FLAC")


@pytest.mark.parametrize(("offset_s", "duration_s", "expected"), [
    (0.0, 3.0, 3.0), (0.0, 2.95, 3.0), (0.0, 3.05, 3.0), (0.0, 3.49, 3.0),  # metadata: the whole file
    (0.0, 2.8, 2.8), (1.0, 2.4, 2.0), (2.9, None, 0.1),
    (0.0, 3.6, Reason.TRUNCATED), (1.0, 2.6, Reason.BAD_SPAN), (3.0, None, Reason.BAD_SPAN),
    (9.0, 1.0, Reason.BAD_SPAN), (-0.1, None, Reason.BAD_SPAN), (0.0, 0.0, Reason.BAD_SPAN),
    (0.0, -1.0, Reason.BAD_SPAN), (float("nan"), None, Reason.BAD_SPAN), (1.0, float("inf"), Reason.BAD_SPAN),
    (1.0, 0.01, Reason.TOO_SHORT),
])  # fmt: skip
@pytest.mark.parametrize("name", ["wav", "mp3", "tta"])
def test_what_a_manifest_asks_for(name, offset_s, duration_s, expected):
    """Fails when a span outside the file is silently shortened, or a rounded duration cuts the last word."""
    if isinstance(expected, Reason):
        assert reason(SOUND[name], offset_s=offset_s, duration_s=duration_s) is expected
    else:
        assert abs(len(decode(SOUND[name], offset_s=offset_s, duration_s=duration_s)) / 16_000 - expected) < 0.05


def test_a_span_of_a_long_recording_is_not_the_recording():
    """Fails when a 10 s utterance of a 5 h FLAC is refused for the length of the whole, or all of it is decoded."""
    content = make.flac_that_claims(make.silent_flac(0.02), 5)
    begun = time.perf_counter()
    assert len(decode(content, offset_s=10, duration_s=10)) == 160_000
    assert time.perf_counter() - begun < 0.5
    assert reason(content) is Reason.TOO_LONG


# Truncation and damage


@pytest.mark.parametrize("name", [name for name in SOUND if name not in ("adts", "mp2")])
def test_no_truncation_is_silently_short(name):
    """Fails when a cut file gives a shorter waveform and no reason (baseline: soundfile and FFmpeg both do)."""
    content = SOUND[name]
    for percent in range(1, 100, 2):
        why, seconds = outcome(content[: len(content) * percent // 100])
        assert why or seconds > 2.5, f"{percent} % of the bytes gave {seconds:.2f} s"


@pytest.mark.parametrize("name", ["adts", "mp2", "mp3 without header"])
def test_bare_frames_betray_a_cut_inside_a_frame(name):
    """Fails when a partial last frame passes. A cut between two frames cannot be seen: nothing states the length."""
    content = {**SOUND, "mp3 without header": make.mp3_without_header(SOUND["mp3"])}[name]
    assert outcome(content)[1] > 2.9
    cuts = [content[: len(content) * percent // 101] for percent in range(1, 100)]
    short = [seconds for why, seconds in map(outcome, cuts) if why is None and seconds < 2.5]
    assert len(short) <= 5


@pytest.mark.parametrize("name", ["ogg", "opus"])
def test_ogg_cut_between_pages_is_seen(name):
    """Fails when a missing end-of-stream page passes: every page that is there is whole, and libsndfile is content."""
    content = SOUND[name]
    assert reason(content[: content.rindex(b"OggS")]) is Reason.TRUNCATED


def test_a_truncated_file_says_truncated():
    """Fails when a cut is reported as something that would send a person looking elsewhere."""
    for name in ("wav", "flac", "mp3", "ogg", "opus", "m4a", "aiff", "rf64", "caf", "webm"):
        assert reason(SOUND[name][: len(SOUND[name]) * 2 // 3]) is Reason.TRUNCATED, name


@pytest.mark.parametrize("size", [0, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFDB])
def test_streamed_wav_sizes_mean_until_the_end(size):
    """Fails on what FFmpeg and SoX write to a pipe, where the size is not known in advance."""
    content = SOUND["wav"]
    at = content.index(b"data") + 4
    why, seconds = outcome(content[:at] + size.to_bytes(4, "little") + content[at + 4 :])
    assert (why, seconds) == (None, 3.0)


def test_a_flac_of_unknown_length_is_read_to_its_end():
    """Fails when SF_COUNT_MAX frames are allocated, or soundfile's seek past them raises."""
    np.testing.assert_array_equal(decode(make.flac_of_unknown_length(SOUND["flac"])), decode(SOUND["flac"]))


@pytest.mark.parametrize("name", ["mp3", "ogg", "opus"])
def test_concatenated_streams_are_read_to_the_end(name):
    """Fails when only the first part is returned, as libsndfile (and librosa) do."""
    assert abs(len(decode(SOUND[name] * 2)) / 16_000 - 6) < 0.3


def test_mp3_without_a_xing_header_is_read_to_the_end():
    """Fails when the length is estimated from the first frame's bit rate: libsndfile gave 0.94 s of 5 s."""
    content = make.mp3_without_header(make.snd(make.voice(5, 44_100, 2), 44_100, "MP3", "MPEG_LAYER_III"))
    assert abs(len(decode(content)) / 16_000 - 5) < 0.2


@pytest.mark.parametrize("name", ["wav", "flac", "mp3", "ogg", "opus", "m4a"])
def test_bit_rot_gives_one_outcome(name):
    """Fails on a crash, an exception of a library, samples far over full scale, or audio that lost a part."""
    found = Counter()
    for seed in range(24):
        why, seconds = outcome(make.rotten(SOUND[name], (1e-4, 1e-3, 1e-2, 5e-2)[seed % 4], seed))
        found[why] += 1
        if why is None and name != "wav":  # a rotten WAV header may state another rate in good order
            assert seconds > 2.5
    if name in ("flac", "ogg", "opus"):
        assert found[None] == 0, "checksums leave nothing undetected"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_absurd_samples_are_refused(value):
    """Fails when NaN reaches a model, where one sample makes a whole batch NaN."""
    values = make.voice(0.5)[:, 0].copy()
    values[4_321] = value
    assert reason(make.float_wav(values)) is Reason.NOT_FINITE


def test_peaks():
    """Fails when overshoot of lossy codecs is clipped or refused, or integers stored as floats pass as loud audio."""
    wave = make.voice(0.5)[:, 0]
    assert np.abs(decode(make.float_wav(wave / np.abs(wave).max() * 1.5))).max() == np.float32(1.5)
    assert reason(make.float_wav(wave * 32768)) is Reason.DAMAGED
    assert np.abs(decode(make.float_wav(np.full(8_000, 1e-40)))).max() < 1e-30, "denormals are audio"


@pytest.mark.parametrize("num_samples", [1, 159, 160, 399, 400, 559, 560, 561])
def test_the_shortest_clip(num_samples):
    """Fails when a clip the feature extractor turns into NaN gets past, or one of 560 samples does not."""
    content = make.snd(make.voice(0.1)[:num_samples])
    if num_samples < 560:
        assert reason(content) is Reason.TOO_SHORT
    else:
        assert len(decode(content)) == num_samples


# What is not audio


@pytest.mark.parametrize(
    ("name", "content"), make.not_audio().items(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_other_files_are_not_audio(name, content):
    """Fails when a decoder guesses: FFmpeg finds "audio" in much text."""
    assert reason(content) is Reason.NOT_AUDIO


def test_empty_files():
    """Fails when no bytes, or a header without samples, raise something else or give an empty waveform."""
    assert reason(b"") is Reason.EMPTY
    assert reason(make.snd(make.voice(1)[:0])) is Reason.EMPTY
    assert reason(SOUND["wav"][:20]) in (Reason.TRUNCATED, Reason.EMPTY)


@pytest.mark.parametrize("header", [
    {"rate": 0}, {"rate": 1}, {"rate": 999}, {"rate": 4_000_000_000}, {"rate": 800_000},
    {"channels": 0}, {"channels": 65}, {"channels": 65_535},
])  # fmt: skip
def test_impossible_headers(header):
    """Fails when a 160 kB file asks for gigabytes (a "1 Hz" WAV did), or divides by zero."""
    assert reason(make.wav_header(**header, data_bytes=160_000) + bytes(160_000)) is Reason.BAD_HEADER


@pytest.fixture
def opened(tmp_path):
    """A file, and a function that says how often anyone opened it, C libraries included (inotify, IN_OPEN)."""
    secret = tmp_path / "secret.wav"
    secret.write_bytes(SOUND["wav"])
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert libc.inotify_add_watch(watch, str(secret).encode(), 0x20) >= 0

    def count() -> int:
        try:
            return len(os.read(watch, 4096)) // 16
        except BlockingIOError:
            return 0

    yield secret, count
    os.close(watch)


def test_nothing_outside_is_opened(opened):
    """Fails when content makes a decoder open a file or a socket: playlists, and an M4A whose samples lie elsewhere."""
    secret, count = opened
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        hostile = make.playlists(str(secret), listener.getsockname()[1])
        assert {outcome(content)[0] for content in hostile.values()} == {Reason.NOT_AUDIO}
        outcome(make.m4a_with_outside_samples(str(secret)))
        assert count() == 0
        with pytest.raises(TimeoutError):
            listener.accept()


def test_ffmpeg_itself_opens_nothing(opened, monkeypatch):
    """Fails when `io_open` and the whitelists are both gone: the guard behind the sniffing.

    The control shows that FFmpeg does open the neighbour that a concat script names.
    """
    secret, count = opened
    monkeypatch.chdir(secret.parent)
    script = make.playlists(secret.name, 9)["ffconcat"]
    with pytest.raises(RejectedRow):
        decoders.AvSource(script, Container("concat", "av", "concat"))
    assert count() == 0
    av.open(io.BytesIO(script), format="concat").close()
    assert count() > 0


# Bombs


def test_bombs_are_refused_from_their_headers():
    """Fails when refusing costs the time of decoding: 12 h of FLAC took 33 s and 6.7 GiB in faster-whisper."""
    bombs = {
        "12 h FLAC": make.flac_that_claims(make.silent_flac(0.02), 12),
        "24 h Opus": make.long_opus(24),
        "1 Hz WAV": make.wav_header(rate=1, data_bytes=160_000) + bytes(160_000),
    }
    for name, content in bombs.items():
        begun = time.perf_counter()
        assert reason(content) in (Reason.TOO_LONG, Reason.BAD_HEADER), name
        assert time.perf_counter() - begun < 0.1, name
    assert reason(bytes(1001), limits=AudioLimits(max_bytes=1000)) is Reason.TOO_LARGE


def test_decoding_without_a_stated_length_is_bounded(tmp_path):
    """Fails when a stream that states no length is decoded to its end first: an hour here, under a limit of 60 s."""
    bomb = tmp_path / "bomb.flac"
    bomb.write_bytes(make.flac_of_unknown_length(make.silent_flac(1)))
    script = (
        "import resource, sys\n"
        "from pipeline.audio.decode import AudioLimits, decode\n"
        "from pipeline.errors import RejectedRow\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode(content, limits=AudioLimits(max_duration_s=60))\n"
        "except RejectedRow as rejected:\n    print(rejected.reason)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(bomb)], cwd=root, capture_output=True, text=True, check=True
    )
    why, mebibytes = done.stdout.split()
    assert why == "TOO_LONG"
    assert int(mebibytes) < 60


def test_limits_are_the_callers():
    """Fails when a limit is read from anywhere but the argument."""
    limits = AudioLimits(max_duration_s=2.0)
    assert reason(SOUND["wav"], limits=limits) is Reason.TOO_LONG
    assert reason(SOUND["webm"], limits=limits) is Reason.TOO_LONG
    assert len(decode(SOUND["wav"], duration_s=1.0, limits=limits)) == 16_000
    assert reason(SOUND["wav"], limits=replace(limits, max_duration_s=9.0, min_duration_s=4.0)) is Reason.TOO_SHORT


def test_decoding_leaks_nothing():
    """Fails when decoders or contents stay behind in reference cycles: millions of files pass through one process."""
    big = {name: make.ffmpeg(make.voice(60), "mov", "alac") for name in ("mov",)}
    big["flac"] = make.snd(make.voice(60), form="FLAC")
    for content in big.values():
        decode(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(8):
        for content in big.values():
            decode(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 * 1024


# Anything at all


@given(name=st.sampled_from(sorted(SOUND)), place=st.floats(0, 1), junk=st.binary(max_size=64), drop=st.integers(0, 64))
def test_any_mutation_is_a_waveform_or_a_reason(name, place, junk, drop):
    """Fails when an exception of libsndfile, FFmpeg, soxr or our own parsing escapes as anything but a RejectedRow."""
    content = SOUND[name]
    at = int(place**4 * len(content))  # mostly in the header
    outcome(content[:at] + junk + content[at + drop :])


@given(
    magic=st.sampled_from([content[:length] for content in SOUND.values() for length in (4, 12, 40)]),
    rest=st.binary(max_size=300),
)
def test_any_header_is_a_waveform_or_a_reason(magic, rest):
    """Fails when a parser reads past the end of a few bytes."""
    assert outcome(magic + rest)[1] < 3.1


def test_a_rejection_survives_pickling_and_names_no_address():
    """Fails when libsndfile's message, which holds the address of a BytesIO, makes two runs' rejects differ."""
    with pytest.raises(RejectedRow) as caught:
        decode(SOUND["flac"][:4] + bytes(100))
    assert "0x" not in caught.value.detail
    assert "BytesIO" not in caught.value.detail
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
