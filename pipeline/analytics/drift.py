"""Drift between two windows of rows, column by column.

Distributions of emotion (or the reason why there is none), language, reject reasons, confidence, duration and, from schema
version 3, arousal, valence and dominance, labels where one has no emotion, and the same of each further model with its
agreement with the main one: population stability index (the symmetric
Kullback-Leibler divergence, in nats) and Jensen-Shannon distance (base 2, 0 to 1). Embeddings: the distance between the
centroids, in units of the root mean square distance of the reference from its own.

Small windows differ by chance. Without drift the index is about chi-square(bins - 1) times 1/n + 1/m (Yurdakul 2018,
"Statistical Properties of Population Stability Index"), a Jensen-Shannon divergence an eighth of it, and the squared
shift of centroids on average 1/n + 1/m. The noise floor is the value that chance exceeds once in a thousand times; n
and m count recordings, because the utterances of a recording are alike. Drift is a value above both its limit and the
floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config.further import BY_MODEL
from pipeline.dataset.reader import Rows, asking, optional, quoted
from pipeline.errors import ConfigError
from pipeline.schema import DIMENSIONS, EMBEDDINGS, UNMAPPED

LIMITS = {"psi": 0.25, "js": 0.2, "shift": 0.25}
"""Limits by measure. Practice acts at an index of 0.25, and a distance of 0.2 is about the same change. The
limit of the shift is a free choice."""
_CHANCE = 0.001
_BINS = 10
_EXACT = 0.5
"""Pseudocount added to every bin, so that an empty bin is unlikely instead of impossible."""
_COLUMNS = {
    "emotion": "emotion",
    "language": "language",
    # fine steps, from which the reference deciles are computed: one pass, deterministic on every machine. DuckDB's
    # `least` and `greatest` ignore nulls, which form a separate bin
    "confidence": "CASE WHEN confidence IS NOT NULL THEN least(floor(confidence * 1000), 999)::INT END",
    "duration_s": "CASE WHEN duration_s IS NOT NULL THEN floor(64 * log2(greatest(duration_s, 0.01)))::INT END",
}
_WITH_REASONS = "coalesce(emotion, '(' || emotion_null_reason || ')')"
"""SQL for the emotion, or the reason why it is null, which datasets have from schema version 2."""
_UNMAPPED = f"({UNMAPPED})"
_EDGES: dict[str, Callable[[int], float]] = {
    "confidence": lambda step: step / 1000,
    **dict.fromkeys(DIMENSIONS, lambda step: step / 1000),
    "duration_s": lambda step: float(2 ** (step / 64)),
}


@dataclass(frozen=True, slots=True)
class Window:
    """Rows of an output: those of the finished plans in `rows` for which the SQL condition `where` holds."""

    rows: Rows
    where: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"runs": [plan.plan for plan in self.rows.plans], "where": self.where}


@dataclass(frozen=True, slots=True)
class Measure:
    """One measure of one column.

    Attributes:
        measure: psi, js or shift.
        noise: noise floor, which chance alone exceeds once in a thousand times.
        change: the largest change, in words.
        part: the model of the embeddings; None for other columns.
    """

    column: str
    measure: str
    value: float
    limit: float
    noise: float
    change: str
    part: str | None = None

    @property
    def drifted(self) -> bool:
        """Return whether the value exceeds both its limit and the noise floor."""
        return self.value > max(self.limit, self.noise)

    @property
    def verdict(self) -> str:
        """Return `drift`, `ok`, or `too few` when there are too few rows to detect a change as large as the limit."""
        return "drift" if self.drifted else "too few" if self.noise > self.limit else "ok"

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {**asdict(self), "verdict": self.verdict}


@dataclass(frozen=True, slots=True)
class Compared:
    """Result of comparing two windows.

    Attributes:
        recordings: number of recordings with an utterance, in the reference and in the current window.
        left_out: comparisons that were not possible, with the reason.
    """

    recordings: tuple[int, int]
    measures: tuple[Measure, ...]
    left_out: tuple[str, ...]

    @property
    def verdict(self) -> str:
        """Return `drift` if any measure drifted, else `too few` if any has too few rows to detect drift, else `ok`."""
        verdicts = {measure.verdict for measure in self.measures}
        return next((verdict for verdict in ("drift", "too few") if verdict in verdicts), "ok")


def compare(
    reference: Window, current: Window, *, limits: Mapping[str, float] = LIMITS, embeddings: bool = True
) -> Compared:
    """Measure how far `current` is from `reference`.

    Costs one pass over four columns of each window, and with `embeddings` one over all embedding columns. Memory: the
    histograms, and DuckDB's set of recording ids, which spills to disk.
    Raises: ConfigError when a window is empty, or its condition is not valid.
    """
    measures: list[Measure] = []
    left_out: list[str] = []
    windows = (reference, current)
    counts = [_recordings(window) for window in windows]
    for name, count in zip(("reference", "current window"), counts, strict=True):
        if not count:
            raise ConfigError(f"the {name} contains no utterance")
    share = sum(1 / count for count in counts)
    version = min(window.rows.plans[0].settings.schema_version for window in windows)
    for column, steps in {**_COLUMNS, **({"emotion": _WITH_REASONS} if version > 1 else {})}.items():
        histograms = [_histogram(window, steps) for window in windows]
        measures += _distribution(column, histograms, share, limits)
        if version > 2 and column == "emotion":
            labels = any(_UNMAPPED in histogram for histogram in histograms)
            measures += _model_outputs(windows, share, limits, labels=labels)
    further = [set(window.rows.plans[0].settings.also) for window in windows]
    for name in sorted(set.intersection(*further)):
        measures += _further_model(windows, share, limits, name)
    left_out += [f"further model {name}: one window has it" for name in sorted(set.symmetric_difference(*further))]
    try:
        reasons = [_reasons(window, count) for window, count in zip(windows, counts, strict=True)]
        rows = sum(1 / sum(counts_of.values()) for counts_of in reasons)
        measures += _distribution("reject reasons", reasons, rows, limits)
    except ConfigError as error:
        left_out.append(f"reject reasons: {error}")
    if embeddings:
        shifts = list(_shifts(reference, current, share, limits))
        measures += shifts
        if not shifts and any(plan.embedding_widths for window in windows for plan in window.rows.plans):
            left_out.append(
                "embeddings: the windows have no model in common, and embeddings of different models are not comparable"
            )
    return Compared((counts[0], counts[1]), tuple(measures), tuple(left_out))


def _model_outputs(
    windows: Sequence[Window], share: float, limits: Mapping[str, float], *, labels: bool, of: str = ""
) -> Iterator[Measure]:
    """Yield the measures of the labels, if asked for, and of each dimension that a window has, of the columns `of`."""
    if labels:
        histograms = [_histogram(window, f"{of}label") for window in windows]
        yield from _distribution(f"{of}label", histograms, share, limits)
    for name in DIMENSIONS:
        value = f"{of}{name}"
        steps = f"CASE WHEN {value} IS NOT NULL THEN greatest(least(floor({value} * 1000), 2000), -1000)::INT END"
        histograms = [_histogram(window, steps) for window in windows]
        if any(histogram.keys() - {None} for histogram in histograms):
            yield from _distribution(value, histograms, share, limits)


def _further_model(
    windows: Sequence[Window], share: float, limits: Mapping[str, float], name: str
) -> Iterator[Measure]:
    """Yield the measures of a further model, and of its agreement with the emotions of the main one."""
    of = f"{BY_MODEL}.{name}."
    agreement = f"CASE WHEN emotion = {of}emotion THEN 'same' WHEN emotion <> {of}emotion THEN 'different' END"
    confidence = f"CASE WHEN {of}confidence IS NOT NULL THEN least(floor({of}confidence * 1000), 999)::INT END"
    columns = {
        "emotion": f"coalesce({of}emotion, '(' || {of}emotion_null_reason || ')')",
        "agreement": agreement,
        "confidence": confidence,
    }
    for column, steps in columns.items():
        histograms = [_histogram(window, steps) for window in windows]
        if any(histogram.keys() - {None} for histogram in histograms):
            yield from _distribution(f"{of}{column}", histograms, share, limits)
        if column == "emotion":
            labels = any(_UNMAPPED in histogram for histogram in histograms)
            yield from _model_outputs(windows, share, limits, labels=labels, of=of)


def _where(window: Window) -> str:
    return f"WHERE ({window.where})" if window.where else ""


def _recordings(window: Window) -> int:
    with asking(utterances=window.rows.utterances()) as connection:
        rows = connection.sql(f"SELECT count(DISTINCT recording_id) FROM utterances {_where(window)}").fetchall()
    return int(rows[0][0])


def _histogram(window: Window, steps: str) -> dict[Any, int]:
    with asking(utterances=window.rows.utterances()) as connection:
        query = f"SELECT {steps}, count(*) FROM utterances {_where(window)} GROUP BY ALL"
        return dict(connection.sql(query).fetchall())


def _reasons(window: Window, annotated: int) -> dict[Any, int]:
    with asking(rejects=window.rows.rejects()) as connection:
        query = f"SELECT reason, count(*) FROM rejects {_where(window)} GROUP BY ALL"
        return {"annotated": annotated, **dict(connection.sql(query).fetchall())}


def _distribution(
    column: str, windows: Sequence[dict[Any, int]], share: float, limits: Mapping[str, float]
) -> Iterator[Measure]:
    optional("scipy", extra="analytics")
    from scipy.spatial.distance import jensenshannon
    from scipy.special import rel_entr
    from scipy.stats import chi2

    names, counts = _bins(column, *windows)
    p, q = (_EXACT + counts) / (_EXACT + counts).sum(axis=1, keepdims=True)
    most = int(np.abs(p - q).argmax())
    before, after = (counts / counts.sum(axis=1, keepdims=True))[:, most]
    change = f"{names[most]}: {before:.1%} -> {after:.1%}"
    noise = float(chi2.ppf(1 - _CHANCE, len(names) - 1) * share) if len(names) > 1 else 0.0
    psi = float((rel_entr(p, q) + rel_entr(q, p)).sum())
    yield Measure(column, "psi", psi, limits["psi"], noise, change)
    js_noise = min(1.0, math.sqrt(noise / 8 / math.log(2)))
    yield Measure(column, "js", float(jensenshannon(p, q, base=2)), limits["js"], js_noise, change)


def _bins(column: str, reference: dict[Any, int], current: dict[Any, int]) -> tuple[list[str], NDArray[np.float64]]:
    """Return the names of the bins and counts [2, bins]: one bin per category, or per decile of the reference."""
    known = sorted({*reference, *current} - {None})
    table = np.array([[window.get(key, 0) for key in known] for window in (reference, current)], np.float64)
    names = [str(key) for key in known]
    edge = _EDGES.get(column.rpartition(".")[2])
    if edge is not None and known:
        before = np.cumsum(table[0]) - table[0] / 2
        tenth = np.minimum(before / max(1.0, table[0].sum()) * _BINS, _BINS - 1).astype(int)
        starts = np.flatnonzero(np.diff(tenth, prepend=-1))
        table = np.add.reduceat(table, starts, axis=1)
        ends = [*starts[1:] - 1, len(known) - 1]
        names = [
            f"{edge(known[first]):.3g} to {edge(known[last] + 1):.3g}" for first, last in zip(starts, ends, strict=True)
        ]
    unknown = [reference.get(None, 0), current.get(None, 0)]
    if any(unknown):
        names, table = [*names, "none"], np.column_stack([table, unknown])
    return names, table


@dataclass
class _Cloud:
    """Sums over the embeddings of one model."""

    count: int
    total: NDArray[np.float64]
    squares: float

    @property
    def centroid(self) -> NDArray[np.float64]:
        return self.total / self.count

    @property
    def spread(self) -> float:
        """Return the root mean square distance from the centroid."""
        return math.sqrt(max(0.0, self.squares / self.count - float(self.centroid @ self.centroid)))


def _shifts(reference: Window, current: Window, share: float, limits: Mapping[str, float]) -> Iterator[Measure]:
    from scipy.spatial.distance import cosine
    from scipy.stats import norm

    for name in EMBEDDINGS:
        clouds = [_clouds(window, name) for window in (reference, current)]
        for model in sorted(clouds[0].keys() & clouds[1].keys()):
            one, other = (by_model[model] for by_model in clouds)
            distance = float(np.linalg.norm(one.centroid - other.centroid))
            change = f"cosine distance of the centroids {cosine(one.centroid, other.centroid):.3g}"
            shift = distance / one.spread if one.spread else math.inf if distance else 0.0
            # upper bound: all variance along one direction
            noise = float(norm.ppf(1 - _CHANCE / 2)) * math.sqrt(share)
            yield Measure(name, "shift", shift, limits["shift"], noise, change, part=model)


def _clouds(window: Window, name: str) -> dict[str, _Cloud]:
    if name not in window.rows.schema().names:
        return {}
    clouds: dict[str, _Cloud] = {}
    with asking(utterances=window.rows.utterances()) as connection:
        where = " AND ".join(filter(None, [f"({window.where})" if window.where else "", f"{quoted(name)} IS NOT NULL"]))
        for batch in connection.sql(f"SELECT model, {quoted(name)} FROM utterances WHERE {where}").to_arrow_reader(
            8192
        ):
            models = batch.column(0).to_numpy(zero_copy_only=False)
            values = batch.column(1).flatten().to_numpy(zero_copy_only=False).reshape(len(models), -1)
            for model in set(models):
                of_model = values[models == model].astype(np.float64)
                cloud = clouds.setdefault(model, _Cloud(0, np.zeros(of_model.shape[1]), 0.0))
                cloud.count += len(of_model)
                cloud.total += of_model.sum(axis=0)
                cloud.squares += float(np.einsum("ij,ij->", of_model, of_model))
    return clouds
