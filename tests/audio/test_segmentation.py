"""Cutting recordings into utterances, and telling silence from speech."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline import MAX_SEGMENT_S
from pipeline.audio import segmentation
from pipeline.audio.decode import decode
from pipeline.audio.segmentation import Cuts, Span, cut, speech_seconds
from pipeline.errors import Reason, RejectedRow, Stage

CLIPS = Path(__file__).parents[1] / "parity" / "audio"
RATE = 16_000


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return decode((CLIPS / "es_16k_pcm16.wav").read_bytes())


@pytest.fixture(scope="module")
def recording(clip) -> tuple[np.ndarray, list[Span]]:
    """Twenty clips with 1.5 s of near-silence between them, and where they lie."""
    rng = np.random.default_rng(1)
    pieces, spans, at = [], [], 0
    for _ in range(20):
        gap = (rng.standard_normal(RATE * 3 // 2) * 1e-4).astype(np.float32)
        pieces += [gap, clip]
        spans.append(Span(at + len(gap), at + len(gap) + len(clip)))
        at = spans[-1].end
    return np.concatenate(pieces), spans


@pytest.mark.parametrize(("seconds", "segmentation", "has_text"), [
    (3, "auto", False), (30, "auto", False), (31, "auto", True), (90, "auto", True), (90, "none", False),
])  # fmt: skip
def test_kept_whole(seconds, segmentation, has_text):
    """Fails when a recording with one transcript is cut, or a short one loses what VAD does not hear."""
    silence = np.zeros(seconds * RATE, np.float32)
    assert cut(silence, Cuts(segmentation=segmentation), has_text=has_text) == [Span(0, seconds * RATE)]


@pytest.mark.parametrize(
    ("seconds", "segmentation", "has_text"), [(31, "auto", False), (5, "vad", False), (5, "vad", True)]
)
def test_nothing_to_cut_out_is_a_rejection(seconds, segmentation, has_text):
    """Fails when a silent recording gives no span and so vanishes from the output without a reason."""
    with pytest.raises(RejectedRow) as caught:
        cut(np.zeros(seconds * RATE, np.float32), Cuts(segmentation=segmentation), has_text=has_text)
    assert (caught.value.reason, caught.value.stage) == (Reason.NO_SPEECH, Stage.SEGMENT)


def check_order(spans: list[Span], num_samples: int) -> None:
    assert all(0 <= span.start < span.end <= num_samples for span in spans)
    assert all(left.end <= right.start for left, right in pairwise(spans)), "no sample twice"
    assert all(span.end_s - span.start_s <= MAX_SEGMENT_S for span in spans)


def test_each_utterance_is_found(recording):
    """Fails when utterances are merged over a pause, lost, or cut at both ends."""
    waveform, truth = recording
    spans = cut(waveform, Cuts(), has_text=False)
    check_order(spans, len(waveform))
    for true in truth:
        mine = [span for span in spans if span.start < true.end and span.end > true.start]
        assert mine
        assert true.start - RATE // 2 <= mine[0].start
        assert mine[-1].end <= true.end + RATE // 2
        assert sum(min(s.end, true.end) - max(s.start, true.start) for s in mine) > 0.5 * (true.end - true.start)


def test_chunks_do_not_show(recording, monkeypatch):
    """Fails when a chunk boundary splits an utterance, or its two sides overlap."""
    waveform, _ = recording
    whole = cut(waveform, Cuts(segmentation="vad"), has_text=False)
    for seconds in (36, 41, 57):
        monkeypatch.setattr(segmentation, "_CHUNK", seconds * RATE // 512 * 512)
        spans = cut(waveform, Cuts(segmentation="vad"), has_text=False)
        check_order(spans, len(waveform))
        assert len(spans) == len(whole)
        assert max(abs(a.start - b.start) + abs(a.end - b.end) for a, b in zip(spans, whole, strict=True)) < RATE // 2


def test_speech_without_a_pause_is_cut_at_the_window(clip, monkeypatch):
    """Fails when a piece is longer than Whisper hears, or speech between pieces is dropped, also over chunk borders."""
    voiced = cut(clip, Cuts(segmentation="vad"), has_text=False)[0]
    core = clip[voiced.start + 4_000 : voiced.end - 4_000]
    waveform = np.tile(core, 1 + 100 * RATE // len(core))
    for chunk in (segmentation._CHUNK, 64 * RATE):
        monkeypatch.setattr(segmentation, "_CHUNK", chunk)
        spans = cut(waveform, Cuts(), has_text=False)
        check_order(spans, len(waveform))
        assert sum(span.end - span.start for span in spans) > 0.9 * len(waveform)


def test_cuts_are_deterministic_and_read_only(recording):
    """Fails when a second pass differs, or the caller's samples are written to (Arrow buffers are read-only)."""
    waveform, _ = recording
    frozen = waveform.copy()
    frozen.flags.writeable = False
    assert cut(frozen, Cuts(segmentation="vad"), has_text=False) == cut(
        frozen, Cuts(segmentation="vad"), has_text=False
    )
    assert speech_seconds(frozen) > 0


@pytest.mark.parametrize("name", sorted(path.name for path in CLIPS.iterdir()))
def test_speech_is_heard(name):
    """Fails when a real clip, 8 kHz and mu-law among them, would get no transcript."""
    waveform = decode((CLIPS / name).read_bytes())
    assert 0 < speech_seconds(waveform) <= len(waveform) / RATE + 0.032


def test_silence_and_noise_are_not_speech():
    """Fails when Whisper would be asked to transcribe nothing, for which it invents words."""
    rng = np.random.default_rng(0)
    time = np.arange(10 * RATE) / RATE
    quiet = {
        "nothing": np.zeros(0),
        "one sample": np.zeros(1),
        "silence": np.zeros(10 * RATE),
        "DC": np.full(10 * RATE, 0.5),
        "one LSB": rng.integers(-1, 2, 10 * RATE) / 32768,
        "mains hum": 0.1 * np.sin(2 * np.pi * 50 * time),
        "tone": 0.3 * np.sin(2 * np.pi * 440 * time),
        **{f"noise at {level} dBFS": rng.standard_normal(10 * RATE) * 10 ** (level / 20) for level in (-90, -60, -30)},
    }
    assert [name for name, waveform in quiet.items() if speech_seconds(waveform.astype(np.float32))] == []


def test_importing_costs_nothing():
    """Fails when onnxruntime is loaded at import: the driver, and every worker that cuts nothing, would pay for it."""
    script = "import sys, pipeline.audio.segmentation; sys.exit('onnxruntime' in sys.modules or 'faster_whisper' in sys.modules)"
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True)


@pytest.mark.parametrize(("seconds", "window_s", "hop_s", "expected"), [
    (10.0, 4.0, 2.0, [(0, 4), (2, 6), (4, 8), (6, 10)]), (10.0, 4.0, None, [(0, 4), (4, 8), (6, 10)]),
    (3.0, 4.0, 2.0, [(0, 3)]), (4.0, 4.0, 2.0, [(0, 4)]), (4.5, 4.0, 2.0, [(0, 4), (0.5, 4.5)]),
])  # fmt: skip
def test_windows_cover_a_recording(seconds, window_s, hop_s, expected):
    """Fails if the end of a recording is left out, a window has another length, or silence or a text keeps it whole."""
    spans = cut(np.zeros(round(seconds * RATE), np.float32), Cuts(window_s=window_s, hop_s=hop_s), has_text=True)
    assert [(span.start_s, span.end_s) for span in spans] == expected


@pytest.mark.parametrize("longest", [1.5, 4.0])
def test_utterances_have_at_most_the_length_asked_for(recording, longest):
    """Fails if `max_s` is not the limit of the cuts, or of what counts as short."""
    waveform, _ = recording
    spans = cut(waveform, Cuts(max_s=longest), has_text=False)
    assert max(span.end_s - span.start_s for span in spans) <= longest + 1e-9 and len(spans) >= 20


def test_short_utterances_join_a_neighbour(recording):
    """Fails if a short utterance stays alone beside one it fits to, if speech is lost, or the longest is exceeded."""
    waveform, _ = recording
    apart = cut(waveform, Cuts(), has_text=False)
    length_s = max(span.end_s - span.start_s for span in apart)
    joined = cut(waveform, Cuts(min_s=length_s + 0.1, max_s=3 * length_s + 5), has_text=False)
    assert len(joined) < len(apart) and (joined[0].start, joined[-1].end) == (apart[0].start, apart[-1].end)
    assert max(span.end_s - span.start_s for span in joined) <= 3 * length_s + 5
    assert {span.start for span in joined} <= {span.start for span in apart}
    assert cut(waveform, Cuts(min_s=0.1), has_text=False) == apart
