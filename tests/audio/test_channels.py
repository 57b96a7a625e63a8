"""Channels decoded apart, the difference of channels that are mixed, and the decision of `--channels auto`."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.audio.channels import carry_different_speech
from pipeline.audio.decode import decode, decode_pieces
from pipeline.audio.limits import AudioLimits
from pipeline.audio.mixing import Mixing
from pipeline.audio.sandbox import Sandbox
from pipeline.errors import Reason, RejectedRow
from tests.hostile import make_audio as make
from tests.support.golden import PARITY
from tests.support.sounds import SOUND

RATE = 16_000
SILENCE = np.zeros(RATE, np.float32)


def clip(name: str) -> np.ndarray:
    return decode((PARITY / "audio" / name).read_bytes())


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox() as made:
        yield made


@pytest.fixture(scope="module")
def turns() -> tuple[np.ndarray, np.ndarray]:
    """The two sides of a call: one talks while the other listens."""
    one, other = clip("en_16k_pcm16.wav"), clip("es_16k_pcm16.wav")
    left = np.concatenate([one, np.zeros_like(other), one])
    right = np.concatenate([np.zeros_like(one), other, np.zeros_like(one)])
    return left, right


# -- decoding


@pytest.mark.parametrize(("channels", "rate"), [(1, 16_000), (2, 44_100), (2, 8_000), (3, 48_000)])
def test_a_split_file_is_its_channels(sandbox, channels, rate):
    """Fails if a channel that is decoded with the others differs in a bit from itself decoded alone, or two are swapped."""
    content = make.snd(make.voice(70.0, rate, channels), rate)
    decoded = sandbox.decode_channels(content, offset_s=0.5, split=True)
    assert len(decoded.channels) == channels and not decoded.differ
    for number, waveform in enumerate(decoded.channels):
        np.testing.assert_array_equal(waveform, decode(content, offset_s=0.5, channel=number))


def test_one_channel_of_a_split_file(sandbox):
    """Fails if a row's own channel is ignored when the output splits channels."""
    content = make.snd(make.voice(1.0, channels=2))
    (waveform,) = sandbox.decode_channels(content, channel=1, split=True).channels
    np.testing.assert_array_equal(waveform, decode(content, channel=1))


def test_a_file_on_disk_is_split(sandbox, tmp_path):
    """Fails if a large file, which a child of its own maps, is mixed down instead."""
    content = make.snd(make.voice(1.0, channels=2))
    (tmp_path / "a.wav").write_bytes(content)
    with (tmp_path / "a.wav").open("rb") as file:
        assert len(sandbox.decode_channels(file, split=True).channels) == 2


@pytest.mark.parametrize(("channels", "most_s"), [(2, 3.0), (6, 1.0)])
def test_channels_together_are_limited(sandbox, channels, most_s):
    """Fails if an array of microphones may take many times the memory that `--max-duration-s` allows, or a call half of it."""
    limits = AudioLimits(max_duration_s=3.0)
    assert sandbox.decode_channels(make.snd(make.voice(most_s - 0.1, channels=channels)), split=True, limits=limits)
    with pytest.raises(RejectedRow) as caught:
        sandbox.decode_channels(make.snd(make.voice(most_s + 0.1, channels=channels)), split=True, limits=limits)
    assert caught.value.reason is Reason.TOO_LONG


# -- the difference of two channels


def differ(content: bytes, **options: int) -> bool:
    mixing = Mixing()
    for _ in decode_pieces(content, mixing=mixing, **options):
        pass
    return mixing.differs


def test_channels_that_differ(turns):
    """Fails if a call, or a channel that is silent, is mixed down without a warning."""
    left, right = turns
    assert differ(make.snd(np.stack([left, right], axis=1)))
    assert differ(make.snd(np.stack([left, np.zeros_like(left)], axis=1)))
    assert not differ(make.snd(np.stack([left, right], axis=1)), channel=0), "nothing is mixed"


@pytest.mark.parametrize("kind", ["wav", "mp3", "ogg"])
def test_equal_channels_do_not_differ(kind):
    """Fails if what a codec adds to two equal channels is counted as a difference: every stereo podcast would warn."""
    one = clip("en_16k_pcm16.wav")
    form = {"wav": ("WAV", "PCM_16"), "mp3": ("MP3", "MPEG_LAYER_III"), "ogg": ("OGG", "VORBIS")}[kind]
    content = make.snd(np.stack([one, one], axis=1), 16_000, *form)
    assert not differ(content)


def test_the_sandbox_reports_the_difference(sandbox, turns):
    """Fails if the difference is lost between the decoder and the worker, or belongs to the file before."""
    left, right = turns
    different, equal = (make.snd(np.stack([left, each], axis=1)) for each in (right, left))
    found = [sandbox.decode_channels(each, split=False).differ for each in (different, equal, SOUND["wav"], different)]
    assert found == [True, False, False, True]
    np.testing.assert_array_equal(sandbox.decode_channels(different, split=False).channels[0], decode(different))


# -- different speech


def test_two_sides_of_a_call_are_different_speech(turns):
    """Fails if a call is mixed, also one whose channels leak into each other at -26 dB, or are quiet."""
    left, right = turns
    assert carry_different_speech([left, right])
    assert carry_different_speech([left + 0.05 * right, right + 0.05 * left])
    assert carry_different_speech([0.1 * left, right])


def test_one_speech_in_two_channels_is_not_different(turns):
    """Fails if a stereo recording of one voice becomes two speakers: louder in one channel, delayed, or with noise."""
    left, _ = turns
    noise = np.random.default_rng(1).standard_normal(len(left)).astype(np.float32)
    delayed = np.concatenate([np.zeros(160, np.float32), left[:-160]])
    for other in (left, 0.3 * left, delayed, left + 0.003 * noise):
        assert not carry_different_speech([left, other])


@pytest.mark.parametrize("kind", ["silence", "noise", "hum"])
def test_a_channel_without_speech_is_not_different_speech(turns, kind):
    """Fails if a dead or noisy channel counts as a speaker."""
    left, _ = turns
    noise = np.random.default_rng(2).standard_normal(len(left)).astype(np.float32)
    hum = np.sin(np.arange(len(left), dtype=np.float32) * 2 * np.pi * 50 / RATE)
    other = {"silence": 0 * left, "noise": 0.05 * noise, "hum": 0.3 * hum}[kind]
    assert not carry_different_speech([left, other.astype(np.float32)])
    assert not carry_different_speech([other.astype(np.float32), other.astype(np.float32)])


def test_one_voice_beside_a_room(turns):
    """Fails if three microphones are split although two of them record one voice and none another."""
    left, right = turns
    assert not carry_different_speech([left, 0.5 * left, 0.2 * left])
    assert carry_different_speech([left, 0.5 * left, right])
