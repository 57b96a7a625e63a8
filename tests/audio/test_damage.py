"""Decoding what is cut, damaged, hostile or no audio: a reason instead of wrong or missing samples."""

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
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import decoders
from pipeline.audio.container import Container
from pipeline.audio.decode import decode
from pipeline.audio.limits import AudioLimits
from pipeline.errors import Reason, RejectedRow
from tests.hostile import make_audio as make
from tests.support.sounds import SOUND, outcome, reason

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


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_the_bound_on_samples_holds_after_resampling(rate):
    """Fails if noise within the bound leaves the resampler far outside it: up to 9.5 from 4, as it did."""
    swing = np.where(np.random.default_rng(1).random(rate) > 0.5, 1, -1).astype(np.float32)[:, None]
    assert reason(make.snd(3.99 * swing, rate, subtype="FLOAT")) is Reason.DAMAGED
    assert np.abs(decode(make.snd(swing, rate, subtype="FLOAT"))).max() < 4


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
        "from pipeline.audio.decode import decode\n"
        "from pipeline.audio.limits import AudioLimits\n"
        "from pipeline.errors import RejectedRow\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try:\n    decode(content, limits=AudioLimits(max_duration_s=60))\n"
        "except RejectedRow as rejected:\n    print(rejected.reason)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    root = Path(__file__).parents[2]
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


@settings(deadline=None)  # a loaded machine is no bug
@given(name=st.sampled_from(sorted(SOUND)), place=st.floats(0, 1), junk=st.binary(max_size=64), drop=st.integers(0, 64))
def test_any_mutation_is_a_waveform_or_a_reason(name, place, junk, drop):
    """Fails when an exception of libsndfile, FFmpeg, soxr or our own parsing escapes as anything but a RejectedRow."""
    content = SOUND[name]
    at = int(place**4 * len(content))  # mostly in the header
    outcome(content[:at] + junk + content[at + drop :])


@settings(deadline=None)  # a loaded machine is no bug
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
