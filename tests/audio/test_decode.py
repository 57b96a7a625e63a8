"""Decoding: the same samples as librosa, whole and in spans."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.audio import decoders
from pipeline.audio.decode import decode, probe
from pipeline.audio.sandbox import Sandbox
from pipeline.errors import Reason
from tests.hostile import make_audio as make
from tests.support.cases import case
from tests.support.sounds import CLIPS, SOUND, librosa_load, reason

RATES = (4_000, 8_000, 11_025, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000, 96_000, 192_000)


@pytest.fixture(scope="module")
def sandboxed():
    """For what may kill its process."""
    with Sandbox() as sandbox:
        yield sandbox


# The same samples as librosa


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.name)
def test_clips_are_bit_identical_to_librosa(clip):
    """Fails when decoder, downmix order, resampler quality or length rule differ from what the models saw."""
    content = clip.read_bytes()
    waveform = decode(content)
    assert waveform.dtype == np.float32
    assert waveform.flags.c_contiguous
    np.testing.assert_array_equal(waveform, librosa_load(content))


def test_every_rate_is_bit_identical_to_librosa():
    """Fails when a rate is resampled in another order, or its last sample is dropped or padded otherwise."""
    for rate, channels in itertools.product(RATES, [1, 2]):
        with case(rate, channels):
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


@pytest.mark.parametrize(("channels", "muxer", "codec"), [
    (1, "matroska", "pcm_s16le"), (2, "matroska", "pcm_s16le"), (6, "wv", "wavpack"), (6, "mov", "alac"),
    (8, "matroska", "pcm_s16le"), (8, "wv", "wavpack"), (12, "matroska", "pcm_s16le"), (16, "matroska", "pcm_s16le"),
    (24, "matroska", "pcm_s16le"),
])  # fmt: skip
def test_eight_channels_and_more_through_ffmpeg(sandboxed, channels, muxer, codec):
    """Fails if PyAV is asked for the planes of such a frame: every film with 7.1 sound killed the process."""
    content = make.many_channels(channels, muxer, codec)
    wave = make.voice(1.0, 16_000, channels)
    np.testing.assert_allclose(
        sandboxed.decode(content), wave.mean(axis=1), atol=0.01
    )  # 8 bit, as FFmpeg writes WavPack
    for channel in (0, channels - 1):
        np.testing.assert_allclose(sandboxed.decode(content, channel=channel), wave[:, channel], atol=0.01)


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


@settings(deadline=None)  # a loaded machine is no bug
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


SPANS = [
    (0.0, 3.0, 3.0), (0.0, 2.95, 3.0), (0.0, 3.05, 3.0), (0.0, 3.49, 3.0),  # metadata: the whole file
    (0.0, 2.8, 2.8), (1.0, 2.4, 2.0), (2.9, None, 0.1),
    (0.0, 3.6, Reason.TRUNCATED), (1.0, 2.6, Reason.BAD_SPAN), (3.0, None, Reason.BAD_SPAN),
    (9.0, 1.0, Reason.BAD_SPAN), (-0.1, None, Reason.BAD_SPAN), (0.0, 0.0, Reason.BAD_SPAN),
    (0.0, -1.0, Reason.BAD_SPAN), (float("nan"), None, Reason.BAD_SPAN), (1.0, float("inf"), Reason.BAD_SPAN),
    (1.0, 0.01, Reason.TOO_SHORT),
]  # fmt: skip


def test_what_a_manifest_asks_for():
    """Fails when a span outside the file is silently shortened, or a rounded duration cuts the last word."""
    for (offset_s, duration_s, expected), name in itertools.product(SPANS, ["wav", "mp3", "tta"]):
        with case(offset_s, duration_s, expected, name):
            if isinstance(expected, Reason):
                assert reason(SOUND[name], offset_s=offset_s, duration_s=duration_s) is expected
            else:
                assert (
                    abs(len(decode(SOUND[name], offset_s=offset_s, duration_s=duration_s)) / 16_000 - expected) < 0.05
                )


def test_a_span_of_a_long_recording_is_not_the_recording():
    """Fails when a 10 s utterance of a 5 h FLAC is refused for the length of the whole, or all of it is decoded."""
    content = make.flac_that_claims(make.silent_flac(0.02), 5)
    begun = time.perf_counter()
    assert len(decode(content, offset_s=10, duration_s=10)) == 160_000
    assert time.perf_counter() - begun < 0.5
    assert reason(content) is Reason.TOO_LONG
