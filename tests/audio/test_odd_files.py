"""Whole recordings that were refused or misread: each test is named after what their writers do."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio.decode import decode, probe
from pipeline.errors import Reason
from tests.hostile import make_audio as make
from tests.hostile import odd_audio as odd
from tests.support.sounds import SOUND, outcome, reason

LONG = {
    "opus": make.ffmpeg(make.voice(7.3), "ogg", "libopus"),
    "vorbis": make.snd(make.voice(7.3), form="OGG", subtype="VORBIS"),
    "opus of libsndfile": make.snd(make.voice(7.3, 48_000, 2), 48_000, "OGG", "OPUS"),
    "vorbis in stereo": make.snd(make.voice(7.3, 8_000, 2), 8_000, "OGG", "VORBIS"),
}
LONG["opus, a packet a page"] = odd.one_packet_pages(LONG["opus"])
WEBM, M4A = SOUND["webm"], SOUND["m4a"]


def later(from_s: float, by_s: float):
    return lambda time_s: time_s + by_s * (time_s >= from_s)


# Ogg


@pytest.mark.parametrize("name", LONG)
def test_ogg_without_the_end_of_stream_bit(name):
    """Fails if a whole file of Telegram or Android's MediaMuxer is called cut, or its last samples differ."""
    np.testing.assert_array_equal(decode(odd.without_end(LONG[name])), decode(LONG[name]))
    twice = odd.without_end(LONG[name]) * 2
    assert outcome(twice)[1] == pytest.approx(14.6, abs=0.1), "one after the other"


@pytest.mark.parametrize("name", LONG)
def test_ogg_without_the_end_of_stream_bit_is_not_cut_unseen(name):
    """Fails if a cut inside a page passes, or one between two pages where full pages show that it is one."""
    content = odd.without_end(LONG[name])
    for cut in range(1, 100):
        part = content[: len(content) * cut // 100]
        if not content[len(part) :].startswith(b"OggS"):  # as it happens, between two pages: see below
            assert outcome(part)[0], f"{cut} %"
    pages = odd.pages_of(LONG[name])
    passed = [count for count in range(3, len(pages)) if outcome(odd.join(pages[:count]))[0] is None]
    if name == "opus of libsndfile":  # its page before the last is shorter than the others
        passed = [count for count in passed if count < len(pages) - 1]
    assert bool(passed) == ("a packet a page" in name), "there nothing shows a cut, as documented"


def test_ogg_without_the_end_of_stream_bit_and_with_a_zeroed_tail():
    """Fails if a download whose end was only reserved passes because no bit is asked for any more."""
    pages = odd.pages_of(LONG["opus"])
    assert reason(odd.join(pages[:-1]) + bytes(4_096)) is Reason.TRUNCATED


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("jump_s", [5.0, 0.7, -0.5])
def test_ogg_whose_granule_positions_jump(name, jump_s):
    """Fails if lost packets make a file TRUNCATED, or time passes between samples that follow one another."""
    rate = probe(LONG[name]).sampling_rate if "vorbis" in name else 48_000
    content = odd.with_jump(LONG[name], round(jump_s * rate), share=0.5)
    whole = decode(LONG[name])
    np.testing.assert_array_equal(decode(content), whole)
    assert probe(content).duration_s == pytest.approx(probe(LONG[name]).duration_s, abs=1e-3)
    np.testing.assert_array_equal(decode(content, offset_s=5.5), decode(LONG[name], offset_s=5.5))
    assert reason(content, offset_s=7.4) is Reason.BAD_SPAN


@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("later_by", [0, 48_000_000])
def test_ogg_captured_from_a_running_stream(name, later_by):
    """Fails if page numbers that begin in the middle count as lost pages."""
    audio = [page for page in odd.pages_of(LONG[name]) if odd.granule(page) > 0]
    dropped = len(audio) // 3
    content = odd.captured(LONG[name], dropped=dropped, number=5_000, later=later_by)
    rate = 48_000 if "opus" in name else probe(LONG[name]).sampling_rate
    left_s = (odd.granule(audio[-1]) - odd.granule(audio[dropped - 1])) / rate
    assert len(decode(content)) / 16_000 == pytest.approx(left_s, abs=0.08)
    lost = odd.pages_of(content)
    assert reason(odd.join(lost[:5] + lost[6:])) is Reason.DAMAGED, "a page lost further on"


# Time stamps


@pytest.mark.parametrize(("source", "muxer"), [(WEBM, "webm"), (WEBM, "matroska"), (M4A, "matroska"), (M4A, "mp4")])
@pytest.mark.parametrize("moved", [later(1.2, 5), later(0, 4), later(2.0, 0.5)], ids=["gap", "late", "short gap"])
def test_gaps_and_late_starts_are_closed(source, muxer, moved):
    """Fails if an end time is compared with a count of samples: TRUNCATED, with no byte missing."""
    plain = odd.remuxed(source, muxer, lambda time_s: time_s)
    content = odd.remuxed(source, muxer, moved)
    whole = decode(content)
    assert len(whole) / 16_000 == pytest.approx(3, abs=0.1)
    np.testing.assert_array_equal(whole, decode(plain))
    assert probe(content).duration_s == pytest.approx(3, abs=0.1)
    assert len(decode(content, offset_s=2.0, duration_s=0.5)) == 8_000
    assert reason(content, offset_s=3.5, duration_s=0.5) is Reason.BAD_SPAN
    for percent in range(3, 100, 4):
        assert outcome(content[: len(content) * percent // 100])[0], f"cut at {percent} %"


def test_a_manifest_may_repeat_the_length_by_the_clock():
    """Fails if a duration that other tools read from such a file makes it TRUNCATED."""
    content = odd.remuxed(WEBM, "webm", later(1.2, 5))
    np.testing.assert_array_equal(decode(content, duration_s=8.0), decode(content))
    assert reason(content, duration_s=9.0) is Reason.TRUNCATED


def test_an_overwritten_part_is_no_gap():
    """Fails if time stamps that jump over zeroed clusters count as a pause of the speaker."""
    content = bytearray(odd.remuxed(make.ffmpeg(make.voice(20), "webm", "libopus"), "webm", lambda time_s: time_s))
    middle = len(content) // 2
    content[middle : middle + 20_000] = bytes(20_000)
    assert reason(bytes(content)) is Reason.DAMAGED


# Headers that are wrong


@pytest.mark.parametrize("factor", [1 / 30, 0.5, 2, 30])
def test_wrong_mdhd(factor):
    """Fails if spans or durations believe the media header where the index of samples says otherwise."""
    content = odd.with_mdhd(M4A, factor)
    np.testing.assert_array_equal(decode(content), decode(M4A))
    np.testing.assert_array_equal(
        decode(content, offset_s=1.0, duration_s=1.0), decode(M4A, offset_s=1.0, duration_s=1.0)
    )
    assert probe(content).duration_s == pytest.approx(3, abs=0.1)
    assert reason(content, offset_s=3.6) is Reason.BAD_SPAN


@pytest.mark.parametrize("text", [b"00:00:N/A         ", b"three seconds     ", b"99999999999999:0:0"])
def test_a_duration_tag_that_is_no_time(text):
    """Fails if a tag that anyone may write stops the decoder with a ValueError."""
    content = make.ffmpeg(make.voice(), "matroska", "libopus", tracks=2)
    at = content.index(b"00:00:", content.index(b"DURATION"))
    assert outcome(content[:at] + text + content[at + len(text) :]) == (None, pytest.approx(3, abs=0.02))


@pytest.mark.parametrize("muxer", ["matroska", "mp4"])
def test_the_first_track_is_of_an_unknown_codec(muxer):
    """Fails if a film with one exotic track is NOT_AUDIO although another track can be decoded."""
    whole = decode(odd.unknown_first_track(muxer))
    assert len(whole) / 16_000 == pytest.approx(3, abs=0.1)
    assert np.abs(whole).max() < 0.6 * np.abs(make.voice()).max(), "the second track"


def test_a_wav_header_that_states_less_than_there_is():
    """Fails if the documented reading, as far as the header says, changes, or a manifest cannot uncover it."""
    samples = (make.voice(2.77)[:, 0] * 32767).astype("<i2").tobytes()
    content = make.wav_header(data_bytes=32_000) + samples
    assert len(decode(content)) == 16_000
    assert reason(content, duration_s=2.77) is Reason.TRUNCATED


# Codecs


@pytest.mark.parametrize(("form", "subtype", "rate"), [
    ("WAV", "GSM610", 8_000), ("WAV", "G721_32", 8_000), ("WAV", "NMS_ADPCM_16", 8_000), ("WAV", "IMA_ADPCM", 16_000),
    ("WAV", "MS_ADPCM", 16_000), ("AU", "G721_32", 16_000), ("AU", "G723_24", 16_000), ("AU", "G723_40", 16_000),
    ("AIFF", "GSM610", 8_000), ("AIFF", "DWVW_16", 16_000), ("AIFF", "IMA_ADPCM", 16_000), ("W64", "GSM610", 8_000),
    ("CAF", "ALAC_16", 16_000), ("WAV", "PCM_16", 16_000),
])  # fmt: skip
def test_a_span_in_a_codec_that_cannot_seek(form, subtype, rate):
    """Fails if libsndfile is asked to seek there (DAMAGED), or a seek changes the samples."""
    content = make.snd(make.voice(3.0, rate), rate, form, subtype)
    whole, at_rate = decode(content), 16_000
    for start, stop in ((0.75, 1.75), (2.0, None), (0.0, 1.3)):
        span = decode(content, offset_s=start, duration_s=None if stop is None else stop - start)
        expected = whole[round(start * at_rate) : None if stop is None else round(stop * at_rate)]
        assert len(span) == pytest.approx(len(expected), abs=1)
        if rate == at_rate:
            np.testing.assert_array_equal(span, expected[: len(span)])
        else:  # cut before it is resampled, so the edges ring
            np.testing.assert_allclose(span[400:-400], expected[400 : len(span) - 400], atol=2e-3)


@pytest.mark.parametrize(("muxer", "codec", "rate"), [
    ("wav", "adpcm_g722", 16_000), ("wav", "adpcm_g726", 8_000), ("wav", "g723_1", 8_000), ("wav", "adpcm_yamaha", 16_000),
    ("wav", "wmav2", 16_000), ("wav", "mp2", 16_000), ("w64", "adpcm_g722", 16_000), ("au", "adpcm_g722", 16_000),
])  # fmt: skip
def test_codecs_in_wav_that_libsndfile_does_not_know(muxer, codec, rate):
    """Fails if a format tag that FFmpeg decodes is taken for a malformed header."""
    bit_rate = {"g723_1": 6_300, "wmav2": 32_000, "adpcm_g726": 32_000}.get(codec)
    content = make.ffmpeg(make.voice(2.77, rate), muxer, codec, rate=rate, bit_rate=bit_rate)
    whole = decode(content)
    assert len(whole) / 16_000 == pytest.approx(2.77, abs=0.15)
    assert abs(np.argmax(np.abs(np.fft.rfft(whole[8_000:40_000]))) / 2 - 120) < 5, "the 120 Hz tone"
    assert len(decode(content, offset_s=1.0, duration_s=1.0)) == 16_000
    if muxer != "au":
        assert reason(content[: len(content) * 2 // 3]) is Reason.TRUNCATED


@pytest.mark.parametrize("muxer", ["amr", "3gp"])
def test_amr_with_comfort_noise(muxer):
    """Fails if a phone's recording with DTX is DAMAGED because FFmpeg's own decoder knows no comfort noise."""
    wave = make.voice(3.0, 8_000)
    wave[10_000:18_000] = 0
    content = odd.amr(wave, muxer)
    whole = decode(content)
    assert len(whole) / 16_000 == pytest.approx(3, abs=0.05)
    assert np.abs(whole[24_000:34_000]).max() < 0.05 < np.abs(whole[4_000:16_000]).max()
    assert len(decode(content, offset_s=1.0, duration_s=1.0)) == 16_000


def test_amr_wb_with_comfort_noise():
    """Fails if the wide-band codec is left to the decoder without DTX."""
    assert outcome(odd.amr_wb_with_noise(100)) == (None, 2.0)


# Frames without a container


@pytest.mark.parametrize(("name", "tag"), list(odd.tags()), ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("kind", ["mp3", "adts", "mp3 without header", "mp2"])
def test_tags_between_concatenated_parts(kind, name, tag):
    """Fails if a tag between two parts, which FFmpeg takes for damage, costs the file or its second part."""
    part = make.mp3_without_header(SOUND["mp3"]) if kind == "mp3 without header" else SOUND[kind]
    one = len(decode(part))
    for content, parts in ((part + tag + part, 2), (part + tag + part + tag + part + tag, 3)):
        assert len(decode(content)) == pytest.approx(parts * one, abs=parts * 1_700)
        assert len(decode(content, offset_s=3.5, duration_s=1.0)) == 16_000
    assert reason(part + tag + part[:-50]) is Reason.TRUNCATED


@pytest.mark.parametrize("kind", ["mp3", "mp3 without header", "adts"])
@pytest.mark.parametrize("begin", [1, 333, 2_001])
def test_frames_captured_from_a_running_stream(kind, begin):
    """Fails if a capture that begins within a frame is no audio, or is decoded from a false frame."""
    part = make.mp3_without_header(SOUND["mp3"]) if kind == "mp3 without header" else SOUND[kind]
    assert len(decode(part[begin:])) / 16_000 == pytest.approx(3 * (1 - begin / len(part)), abs=0.3)
    assert outcome(part[begin:-50])[0] is Reason.TRUNCATED
