"""Estimated cost of a run: hours of audio, GPUs and cores, number of objects, and a suggested cluster; docs/sizing.md.

GPU figures are arithmetic (floating-point operations divided by the card's speed), not measurements; a real run is slower.
Core figures come from measurements on shared x86 cores; Whisper's is derived from them by arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.audio.limits import LONGEST_SPAN_S
from pipeline.config.settings import AsrWindow
from pipeline.dataset.packing import ASSUMED_DURATION_S, SHARDS_PER_FILE, ShardSize

_WINDOW_S = 30.0
"""Longest utterance cut from a long recording, and Whisper's input length, including padding."""
_HEARD_S = 160.0
_WHISPER_TFLOP, _WHISPER_DECODER_TFLOP, _BERT_TFLOP = 2.27, 0.06, 0.003
"""Cost of one window in whisper-large-v3-turbo, encoder and 60 tokens, and of one text in BERT. Source: docs/sizing.md."""
_SHORT_TFLOP_PER_S, _SHORT_TFLOP_PER_S2, _MARGIN_S = 0.0635, 0.00041, 1.25
"""Cost of its encoder on a short window of t seconds: a t + b t^2, 2.27 TFLOP at 30 s; and the mean silence in a window
(`pipeline.models.encoder`)."""
_ENCODER_TFLOP_PER_S, _ENCODER_TFLOP_PER_S2 = 0.0592, 0.000205
"""Cost of t seconds in w2v-bert 2.0: a t + b t^2 through 0.24 TFLOP at 4 s and 1.96 at 30 s. Source: docs/sizing.md."""
CARDS = {"H200": 790.0, "A10 or L4 (assumed)": 75.0}
"""Usable TFLOP/s in half precision: measured elsewhere for the H200; for the small cards, 50 to 100 is assumed."""
CARD_SHARE = 1 / 3
"""Share of a card's speed assumed for the suggested cluster. A guess, not measured."""

_CORE_TFLOP_PER_S = 0.117
"""Speed of one thread of a shared x86 core: 0.24 TFLOP (4 s in w2v-bert) in 2.05 s. Source: docs/performance.md, README."""
_DECODE_S_PER_S = 0.00125
"""Core seconds to decode a second of MP3 in the sandbox; WAV takes 0.0005. Source: docs/performance.md, levers."""
_VAD_S_PER_S = 0.002
"""Core seconds of voice activity detection per second of audio. Source: audio/segmentation.py."""
_ROW_S = 0.0003
"""Core seconds per row without audio and models: 6,600 to 9,600 rows/s on 2 cores. Source: docs/performance.md, scale, and
its earlier run."""
PLANNED_ROWS_PER_S = 33_000.0
"""Rows per second that one driver reads, checks and plans, for a million rows or more. Source: docs/performance.md, scale."""
_ACTOR_CORES, _FEWEST_CORES_PER_CARD = 2, 4
"""Two actors share a GPU and hold one core each (`pipeline.engine.pools`); machines with a GPU have at least four cores."""
_TARGET_H = 24.0
"""Time in which the suggested cluster finishes."""
_ONE_MACHINE_CORES = 16


@dataclass(slots=True)
class Corpus:
    """Totals of the manifest rows to be processed.

    Attributes:
        known_s: seconds of audio of the rows that have a duration.
        audio_s: seconds of audio of all rows, with `ASSUMED_DURATION_S` for rows without a duration.
        utterances: expected utterances; a row that may be segmented counts once for each 30 s.
        windows: windows of up to 30 s to transcribe.
        short_tflop: cost of Whisper's encoder if these windows are short.
        heard_s: seconds of audio in those windows.
        encoder_tflop: cost of w2v-bert over all utterances.
        shards: number of parts of the output.
    """

    rows: int = 0
    rows_without_text: int = 0
    rows_without_duration: int = 0
    known_s: float = 0.0
    audio_s: float = 0.0
    utterances: int = 0
    windows: int = 0
    short_tflop: float = 0.0
    heard_s: float = 0.0
    encoder_tflop: float = 0.0
    shards: int = 0


def measure(
    tables: Iterable[pa.Table], *, mode: str, segmentation: str, group_by: Sequence[str], size: ShardSize
) -> Corpus:
    """Sum up manifest rows, table by table.

    Args:
        group_by: columns whose values the rows of a shard share.
    Memory: two numbers per output folder.
    """
    corpus = Corpus()
    folders: dict[tuple[object, ...], tuple[int, float]] = {}
    for table in tables:
        known_s = pc.min_element_wise(table["duration_s"], LONGEST_SPAN_S, skip_nulls=False)
        duration_s = pc.fill_null(known_s, ASSUMED_DURATION_S)
        silent = (
            pc.is_null(table["text"]) if segmentation != "vad" else pc.is_valid(duration_s)
        )  # rows without a text to keep
        windows = pc.ceil(pc.divide(duration_s, _WINDOW_S))
        pieces = pc.if_else(silent, windows, 1.0) if segmentation != "none" else pc.if_else(silent, 1.0, 1.0)
        each_s = pc.min_element_wise(pc.divide(duration_s, pieces), _HEARD_S)
        tflop = pc.multiply(each_s, pc.add(_ENCODER_TFLOP_PER_S, pc.multiply(each_s, _ENCODER_TFLOP_PER_S2)))
        corpus.rows += table.num_rows
        corpus.rows_without_text += table["text"].null_count
        corpus.rows_without_duration += table["duration_s"].null_count
        corpus.known_s += _sum(known_s)
        corpus.audio_s += _sum(duration_s)
        corpus.utterances += round(_sum(pieces))
        if mode != "audio":
            corpus.windows += round(_sum(pc.if_else(silent, windows, 0.0)))
            window_s = pc.min_element_wise(pc.add(pc.divide(duration_s, windows), _MARGIN_S), _WINDOW_S)
            short = pc.multiply(window_s, pc.add(_SHORT_TFLOP_PER_S, pc.multiply(window_s, _SHORT_TFLOP_PER_S2)))
            corpus.short_tflop += _sum(pc.if_else(silent, pc.multiply(short, windows), 0.0))
            corpus.heard_s += _sum(pc.if_else(silent, duration_s, 0.0))
        if mode != "text":
            corpus.encoder_tflop += _sum(pc.multiply(tflop, pieces))
        grouped = table.select(list(group_by)).append_column("duration_s", duration_s).group_by(list(group_by))
        for group in grouped.aggregate([("duration_s", "sum"), ("duration_s", "count")]).to_pylist():
            rows, seconds = folders.get(key := tuple(group[name] for name in group_by), (0, 0.0))
            folders[key] = (rows + group["duration_s_count"], seconds + group["duration_s_sum"])
    corpus.shards = sum(
        max(math.ceil(rows / size.rows), min(rows, math.ceil(seconds / size.audio_s)))
        for rows, seconds in folders.values()
    )
    return corpus


def _sum(numbers: pa.ChunkedArray) -> float:
    return float(pc.sum(numbers).as_py() or 0.0)


def models_tflop(corpus: Corpus, mode: str, window: AsrWindow = "full") -> float:
    """Return the floating-point operations of all models, in units of 10^12, without the padding of batches."""
    texts = 0.0 if mode == "audio" else corpus.utterances * _BERT_TFLOP
    encoder = corpus.short_tflop if window == "short" else corpus.windows * _WHISPER_TFLOP
    return encoder + corpus.windows * _WHISPER_DECODER_TFLOP + corpus.encoder_tflop + texts


def cards_hours(corpus: Corpus, mode: str, window: AsrWindow = "full") -> dict[str, float]:
    """Return the hours that one card of each kind needs at its full arithmetic speed."""
    return {name: models_tflop(corpus, mode, window) / speed / 3600 for name, speed in CARDS.items()}


def feeding_hours(corpus: Corpus, mode: str) -> float:
    """Return the core hours for everything but models: fetching, decoding, voice activity detection and writing."""
    opened_s = corpus.heard_s if mode == "text" else corpus.audio_s
    return (opened_s * _DECODE_S_PER_S + corpus.heard_s * _VAD_S_PER_S + corpus.rows * _ROW_S) / 3600


def estimate(corpus: Corpus, mode: str, *, on_cards: AsrWindow, on_cores: AsrWindow) -> dict[str, str]:
    """Return the estimate as text, by name.

    Args:
        on_cards: Whisper's window on a GPU.
        on_cores: its window without one.
    """
    cards_h, feeding_h = cards_hours(corpus, mode, on_cards), feeding_hours(corpus, mode)
    cores_h = models_tflop(corpus, mode, on_cores) / _CORE_TFLOP_PER_S / 3600 + feeding_h
    without = (
        f", of it {corpus.rows_without_duration:,} rows without a duration taken for {ASSUMED_DURATION_S:.0f} s each"
    )
    return {
        "audio_hours_expected": f"{corpus.audio_s / 3600:,.4g}{without if corpus.rows_without_duration else ''}",
        "utterances_expected": f"about {corpus.utterances:,}; {corpus.windows:,} windows of up to 30 s to transcribe",
        "gpu_hours_at_least": ", ".join(f"{_time(hours)} on {name}" for name, hours in cards_h.items())
        + " (arithmetic, not measured)",
        "cpu_core_time_beside_gpus": _time(feeding_h),
        "cpu_core_time_without_gpus": f"{_time(cores_h)} (published models; Whisper's part is arithmetic)",
        "objects": f"about {corpus.shards:,} files of utterances, {math.ceil(corpus.shards / SHARDS_PER_FILE) + 5:,} others",
        "driver_plans_for": _time(corpus.rows / PLANNED_ROWS_PER_S / 3600),
        "suggested_cluster": _cluster(cards_h, feeding_h, cores_h),
    }


def prices(
    corpus: Corpus, mode: str, rates: Mapping[str, float], *, on_cards: AsrWindow, on_cores: AsrWindow
) -> dict[str, str]:
    """Return the price of the run on each machine, as text, in the currency of the rates.

    Args:
        rates: price of an hour by the name of the machine (`pipeline.config.lists.PRICED`).
        on_cards, on_cores: as for `estimate`.
    """
    cards_h = cards_hours(corpus, mode, on_cards)
    texts = {}
    for name, rate in rates.items():
        if name == "core":
            hours = models_tflop(corpus, mode, on_cores) / _CORE_TFLOP_PER_S / 3600 + feeding_hours(corpus, mode)
            texts[name] = f"about {hours * rate:,.2f} for {_time(hours)} of CPU cores alone"
        else:
            hours = next(hours for card, hours in cards_h.items() if name in card)
            about, least = hours / CARD_SHARE * rate, hours * rate
            texts[name] = f"about {about:,.2f} if cards give a third of their arithmetic; at least {least:,.2f}"
    return texts


def _cluster(cards_h: Mapping[str, float], feeding_h: float, cores_h: float) -> str:
    if cores_h <= _ONE_MACHINE_CORES * _TARGET_H:
        cores = math.ceil(cores_h / _TARGET_H)
        return f"one machine; {cores} CPU core{'s' * (cores > 1)} would need a day at most"
    clusters = []
    for name, hours in cards_h.items():
        cores = max(_FEWEST_CORES_PER_CARD, _ACTOR_CORES + math.ceil(feeding_h / (hours / CARD_SHARE)))
        clusters.append(f"{math.ceil(hours / CARD_SHARE / _TARGET_H):,} x {name} with {cores} CPU cores each")
    return (
        f"for a day: {' or '.join(clusters)}, if cards give a third of their arithmetic; "
        f"or {math.ceil(cores_h / _TARGET_H):,} CPU cores"
    )


def _time(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.4g} h" if hours < 10_000 else f"{hours:,.0f} h"
    return f"{hours * 60:.2g} min" if hours * 60 >= 1 else f"{hours * 3600:.2g} s"
