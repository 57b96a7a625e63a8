"""Speakers of a recording: its speech between pauses, grouped by the similarity of speaker embeddings.

Agglomerative clustering (scikit-learn, average linkage) joins groups while the mean cosine distance between their members is
below `MOST_DISTANCE`; the number of speakers follows from it. docs/speakers.md has the error on mixtures of known speakers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline import SAMPLING_RATE
from pipeline.audio.segmentation import Cuts, Span, speech_spans

MOST_DISTANCE = 0.36
"""Mean cosine distance of the embeddings of two groups from which they are two speakers. Source: benchmarks/speakers.py."""
PAUSE_S = 0.2
"""Shortest pause at which speech is cut before speakers are compared."""
_JOINED_PAUSE_S = 0.5
"""Pause below which two neighbours of one speaker are one utterance, as they are without speakers."""
_WINDOW, _HOP = round(1.6 * SAMPLING_RATE), round(0.8 * SAMPLING_RATE)
"""Samples of the window of an embedding, and between two of them."""
_LEAST_S = 1.0
"""Speech below which an embedding is too uncertain to found a speaker; it is assigned to the most similar one."""
_MOST_CLUSTERED = 4000
"""Spans that are clustered; more are assigned. The distances between so many are 128 MB."""
_LEVEL = 10 ** (-30 / 20)
"""Root mean square to which a span is scaled. Source: the loudness of the model's training data."""

Embed = Callable[[NDArray[np.float32], NDArray[np.int64]], NDArray[np.float32]]
"""Embeddings [N, D], unit vectors, of the windows of a waveform that begin at given samples."""


class SpeakerSpan(NamedTuple):
    """A span and its speaker, from 0 in the order of their first words."""

    span: Span
    speaker: int


def speaker_spans(waveform: NDArray[np.float32], cuts: Cuts, embed: Embed) -> list[SpeakerSpan]:
    """Cut a recording at pauses and where the speaker changes. Returns: spans in order; none without speech.

    Args:
        waveform: float32 [num_samples] at 16 kHz.
        cuts: bounds of the spans.
    """
    spans = list(speech_spans(waveform, cuts.max_s, pause_s=PAUSE_S))
    if not spans:
        return []
    vectors = np.stack([_embedding(waveform[span.start : span.end], embed) for span in spans])
    long = np.array([span.end - span.start >= _LEAST_S * SAMPLING_RATE for span in spans])
    return _joined(spans, speakers_of(vectors, long), cuts)


def speakers_of(vectors: NDArray[np.float32], certain: NDArray[np.bool_]) -> list[int]:
    """Group embeddings by speaker. Returns: the speaker of each, from 0 in the order in which they first appear.

    Args:
        vectors: [N, D], unit vectors.
        certain: [N], whether a vector may found a group. If none may, all do.
    """
    founding = np.flatnonzero(certain) if certain.any() else np.arange(len(vectors))
    if len(founding) > _MOST_CLUSTERED:
        founding = founding[np.linspace(0, len(founding) - 1, _MOST_CLUSTERED).astype(np.int64)]
    groups = _clusters(vectors[founding])
    centres = np.stack([vectors[founding[groups == group]].mean(axis=0) for group in range(groups.max() + 1)])
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    nearest = (vectors @ centres.T).argmax(axis=1)
    nearest[founding] = groups
    order = list(dict.fromkeys(nearest.tolist()))
    return [order.index(group) for group in nearest.tolist()]


def _clusters(vectors: NDArray[np.float32]) -> NDArray[np.int64]:
    from sklearn.cluster import AgglomerativeClustering

    if len(vectors) == 1:
        return np.zeros(1, np.int64)
    clustering = AgglomerativeClustering(
        n_clusters=None, metric="cosine", linkage="average", distance_threshold=MOST_DISTANCE
    )
    return np.asarray(clustering.fit_predict(vectors), np.int64)


def _embedding(waveform: NDArray[np.float32], embed: Embed) -> NDArray[np.float32]:
    """Return the mean embedding of a span's windows, a unit vector."""
    power = float(np.square(waveform).mean(dtype=np.float64))
    last = max(0, len(waveform) - _WINDOW)
    starts = np.unique(np.append(np.arange(0, last + 1, _HOP), last))
    mean = embed(waveform * np.float32(_LEVEL / max(power, 1e-12) ** 0.5), starts).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-6), np.float32)


def _joined(spans: Sequence[Span], speakers: Sequence[int], cuts: Cuts) -> list[SpeakerSpan]:
    """Join neighbours of one speaker that are close, or shorter than `min_s`, where they fit into `max_s`."""
    joined: list[SpeakerSpan] = []
    for span, speaker in zip(spans, speakers, strict=True):
        before = joined[-1] if joined else None
        if before is not None and before.speaker == speaker:
            close = (
                span.start - before.span.end < (_JOINED_PAUSE_S - PAUSE_S) * SAMPLING_RATE
            )  # half the pause is kept at each side
            short = min(span.end - span.start, before.span.end - before.span.start) < cuts.min_s * SAMPLING_RATE
            if (close or short) and span.end - before.span.start <= cuts.max_s * SAMPLING_RATE:
                joined[-1] = SpeakerSpan(Span(before.span.start, span.end), speaker)
                continue
        joined.append(SpeakerSpan(span, speaker))
    return joined
