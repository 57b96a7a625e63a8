"""Each optimisation against its stock form, interleaved in one process on one thread, with equality and failing controls.

The stock forms are what the reference or its libraries do: BERT padded to 512 tokens, Hugging Face's sdpa attention,
`faster_whisper.decode_audio`, `SeamlessM4TFeatureExtractor`, batches in the order of arrival.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.harness import Result, Timing, interleaved, ratio
from benchmarks.layers import forward, layer, states
from benchmarks.processes import run as run_process
from benchmarks.workload import RATE, clips, published_models, require, small_models
from pipeline.audio.decode import decode
from pipeline.audio.sandbox import sandbox
from pipeline.models.batching import batches
from pipeline.models.checkpoints.weights import resolve
from pipeline.models.emotion import EmotionRecogniser
from pipeline.models.families.umuteam import MAX_MEL_FRAMES
from pipeline.models.networks.fbank import FilterBanks, num_frames
from pipeline.models.networks.fusion import FusionModel, MultiHeadFusion
from pipeline.models.sentence import TextModel

Waveform = NDArray[np.float32]
CLIP_S = 4.0
BATCH = 32
SHARD = 1024


@dataclass(slots=True)
class Table:
    """The table that the levers fill."""

    quick: bool
    rows: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: dict[str, float] = field(default_factory=dict)

    def add(self, lever: str, stock: Timing | str, ours: Timing | str, *, gain: str, target: str, equal: str) -> None:
        """Add one line."""
        self.rows.append([lever, str(stock), str(ours), gain, target, equal])

    def compare(
        self,
        lever: str,
        stock: Callable[[], object],
        ours: Callable[[], object],
        rounds: int,
        *,
        target: str,
        equal: str,
    ) -> None:
        """Time two forms and add a line."""
        timings = interleaved({"stock": stock, "ours": ours}, rounds=1 if self.quick else rounds)
        self.figures[f"{lever} x"] = timings["stock"].median_s / timings["ours"].median_s
        gain = ratio(timings["stock"], timings["ours"])
        self.add(lever, timings["stock"], timings["ours"], gain=gain, target=target, equal=equal)


def run(*, quick: bool) -> Result:
    """Measure all levers."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    table = Table(quick)
    try:
        with torch.inference_mode():
            for lever in (_text, _attention, _decoding, _filter_banks, _sorting, _multihead):
                lever(table)
    finally:
        torch.set_num_threads(threads)
    columns = ("lever", "stock", "ours", "stock / ours", "target", "equal to stock; control")
    return Result("Each lever alone", columns, table.rows, table.notes, table.figures)


def _equal(ours: object, stock: object, control: object, *, within: float, control_is: str) -> str:
    """Check that ours is close to stock and that the control is not. Returns: both distances."""
    near, far = _distance(ours, stock), _distance(control, stock)
    require(near <= within, f"ours differs from stock by {near:.1e}, {within:.0e} was to be")
    require(far > 10 * within, f"the control ({control_is}) is as near as {far:.1e}: equality proves nothing")
    return f"{'bit for bit' if near == 0 else f'{near:.1e}'}; {control_is}: {far:.1e}"


def _distance(one: object, two: object) -> float:
    first, second = (np.asarray(values, np.float64) for values in (one, two))
    return float(np.abs(first - second).max()) if first.shape == second.shape else float("inf")


def _text(table: Table) -> None:
    from transformers import AutoTokenizer, BertModel

    folder = (small_models() if table.quick else published_models()).encoder
    ours = TextModel(resolve(str(folder)), classify=False, device=torch.device("cpu"))
    tokenizer, bert = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    texts = [clip.text for clip in clips([1.0] * (4 if table.quick else BATCH))]

    def padded(text: str, *, masked: bool = True) -> Tensor:
        read = tokenizer(text, truncation=True, padding="max_length", max_length=512, return_tensors="pt")
        mask = read["attention_mask"] if masked else torch.ones_like(read["attention_mask"])
        return bert(read["input_ids"], attention_mask=mask).last_hidden_state[0, 0]

    stock = torch.stack([padded(text) for text in texts])
    unmasked = torch.stack([padded(text, masked=False) for text in texts])
    control = {"within": 1e-4, "control_is": "no mask"}
    equal = _equal(ours.run(texts).embedding, stock, unmasked, **control)
    few = texts[:4]
    table.compare(
        f"text embedding, {len(few)} texts one by one",
        lambda: [padded(text) for text in few],
        lambda: [ours.run([text]) for text in few],
        5,
        target=">= 15x",
        equal=equal,
    )
    table.compare(
        f"text embedding, {len(texts)} texts at once",
        lambda: [padded(text) for text in texts],
        lambda: ours.run(texts),
        3,
        target=">= 15x",
        equal=equal,
    )
    tokens = np.mean([len(tokens) for tokens in tokenizer(texts)["input_ids"]])
    size = "small parity BERT (2 layers)" if table.quick else "BERT base, random weights"
    table.notes.append(
        f"Text embedding: {size}; texts of {tokens:.0f} tokens on average, padded to 512 against to their batch."
    )


def _attention(table: Table) -> None:
    stock, ours, blind = layer("stock"), layer("ours"), layer("ours")
    blind.self_attn.distance_embedding.weight.zero_()
    lengths = {64: 3, 250: 3} if table.quick else {50: 15, 175: 15, 250: 15, 1500: 7, 4000: 3}
    targets = {1500: (">= 1.5x", ">= 4x less"), 4000: ("-", ">= 20x less")}
    for length, rounds in lengths.items():
        given = states(length)
        equal = _equal(
            forward(ours, given), forward(stock, given), forward(blind, given), within=1e-5, control_is="no positions"
        )
        speed, memory = targets.get(length, (">= 1x", "-"))
        table.compare(
            f"w2v-bert layer, L = {length:,}",
            lambda given=given: forward(stock, given),
            lambda given=given: forward(ours, given),
            rounds,
            target=speed,
            equal=equal,
        )
        if length >= 1500 or table.quick:
            extra = {kind: _layer_bytes(kind, length) for kind in ("stock", "ours")}
            times = extra["stock"] / max(extra["ours"], 1)
            table.figures[f"w2v-bert layer memory, L = {length} x"] = times
            memory_cells = [f"{extra[kind] / 2**20:,.0f} MiB" for kind in ("stock", "ours")]
            table.add(f"its extra memory, L = {length:,}", *memory_cells, gain=f"{times:.1f}x", target=memory, equal="")
    table.notes.append(
        "w2v-bert layer: a whole conformer layer of the published shape (feed-forward and convolution included), one "
        "clip, no padding; memory: growth of the peak resident set over one pass, each form in a process of its own."
    )


def _layer_bytes(kind: str, length: int) -> int:
    return int(run_process([sys.executable, "-m", "benchmarks.layers", kind, str(length)], timeout_s=600).output)


def _decoding(table: Table) -> None:
    import librosa
    from faster_whisper import decode_audio

    (clip, other) = clips([CLIP_S, CLIP_S])
    pcm, neighbour = (soundfile.read(each.audio, dtype="float32")[0] for each in (clip, other))
    files = {
        "wav, 16 kHz": (Path(clip.audio).read_bytes(), neighbour),
        "flac, 48 kHz": (_encoded(pcm, 48_000, "FLAC"), neighbour),
        "mp3, 24 kHz": (_encoded(pcm, 24_000, "MP3"), neighbour),
    }
    box = sandbox()
    for name, (content, wrong) in files.items():
        mine = decode(content)
        librosas = librosa.load(io.BytesIO(content), sr=RATE)[0]
        equal = _equal(mine, librosas, wrong[: len(mine)], within=0.0, control_is="another clip")
        require(np.array_equal(box.decode(content), mine), "the sandbox gives other samples")
        theirs = decode_audio(io.BytesIO(content))
        shared = min(len(theirs), len(mine))
        rms = np.sqrt(np.mean((theirs[:shared] - mine[:shared]) ** 2) / np.mean(mine**2))
        table.notes.append(f"decode_audio against librosa, {name}: {100 * rms:.2g} % rms off.")
        target = ">= 50x" if name.startswith("wav") else "-"
        stock = lambda content=content: decode_audio(io.BytesIO(content))  # noqa: E731
        table.compare(
            f"decoding 4 s, {name}, in process",
            stock,
            lambda content=content: decode(content),
            31,
            target=target,
            equal=f"librosa: {equal}",
        )
        table.compare(
            f"decoding 4 s, {name}, as the job does it",
            stock,
            lambda content=content: box.decode(content),
            31,
            target=target,
            equal="as in process",
        )
    table.notes.append(
        "Decoding: the stock form is `faster_whisper.decode_audio`, which collects garbage once a file, at a cost that "
        "grows with all that a process has loaded (here torch and transformers); `as the job does it` goes through the "
        "sandboxed child and its pipes."
    )


def _encoded(pcm: Waveform, rate: int, kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, soxr.resample(pcm, RATE, rate), rate, format=kind)
    return file.getvalue()


def _filter_banks(table: Table) -> None:
    from transformers import AutoFeatureExtractor

    extractor = AutoFeatureExtractor.from_pretrained(small_models().fusion)
    banks = FilterBanks(extractor, max_frames=MAX_MEL_FRAMES)
    waveforms = [decode(Path(clip.audio).read_bytes()) for clip in clips([CLIP_S] * 9)]

    def stock(given: list[Waveform]) -> Tensor:
        return extractor(given, sampling_rate=RATE, padding=True, return_tensors="pt")["input_features"]

    for given, shifted in ((waveforms[:1], waveforms[1:2]), (waveforms[:8], waveforms[1:])):
        equal = _equal(banks(given)[0], stock(given), banks(shifted)[0], within=1e-4, control_is="other clips")
        table.compare(
            f"filter banks, {len(given)} clips of 4 s",
            lambda given=given: stock(given),
            lambda given=given: banks(given),
            15,
            target="-",
            equal=equal,
        )


def _sorting(table: Table) -> None:
    """Add the padded frames, by arithmetic, and check with the small model that a row does not depend on its batch."""
    equal = _unmoved_by_company(table.quick)
    arrival = [list(range(start, start + BATCH)) for start in range(0, SHARD, BATCH)]
    for mix, lengths in _mixes(8 * SHARD).items():
        shards = [lengths[start : start + SHARD] for start in range(0, len(lengths), SHARD)]
        ordered = [batches(shard, max_batch=BATCH, max_padded=960.0) for shard in shards]
        stock = float(np.mean([_padded(shard, arrival) for shard in shards]))
        ours = float(np.mean([_padded(shard, made) for shard, made in zip(shards, ordered, strict=True)]))
        name = f"padded / real frames, batches of {BATCH}, {mix}"
        table.figures[name] = ours
        gain = f"{stock / ours:.2f}x"
        table.add(name, f"{stock:.2f}", f"{ours:.3f}", gain=gain, target="ours <= 1.15", equal=f"scores: {equal}")
    table.notes.append(
        f"Padding: stock in order of arrival, ours sorted within shards of {SHARD:,}. Lengths are modelled, seed 7. Read: as in "
        "LibriSpeech's training sets, 70 % normal (14.3 s, sd 1.3), 30 % uniform, cut to 2 to 17 s. Spoken: log-normal, "
        "median 3.5 s, sigma 0.8, cut to 0.5 to 30 s. On CPU the default is a batch of one, which pads nothing."
    )


def _unmoved_by_company(quick: bool) -> str:
    models = small_models()
    mixed = clips(_mixes(6 if quick else BATCH)["spoken"])
    waveforms, texts = [decode(Path(clip.audio).read_bytes()) for clip in mixed], [clip.text for clip in mixed]
    one_by_one, batched = (
        EmotionRecogniser("mean", resolve(str(models.fusion)), resolve(str(models.encoder)), max_batch=size)
        for size in (1, BATCH)
    )
    alone, together = (recogniser.recognise(waveforms, texts).scores for recogniser in (one_by_one, batched))
    honest = FusionModel.forward
    try:
        FusionModel.forward = lambda self, x, mask, text=None: honest(self, x, torch.ones_like(mask), text)
        deaf = batched.recognise(waveforms, texts).scores
    finally:
        FusionModel.forward = honest
    return _equal(together, alone, deaf, within=1e-5, control_is="without the mask")


def _mixes(count: int) -> dict[str, list[float]]:
    random = np.random.default_rng(7)
    normal, uniform = random.normal(14.3, 1.3, count), random.uniform(2.0, 17.0, count)
    read = np.clip(np.where(random.random(count) < 0.7, normal, uniform), 2.0, 17.0)
    spoken = np.clip(random.lognormal(np.log(3.5), 0.8, count), 0.5, 30.0)
    return {"read": read.round(2).tolist(), "spoken": spoken.round(2).tolist()}


def _padded(lengths_s: list[float], made: list[list[int]]) -> float:
    frames = [num_frames(round(length * RATE)) for length in lengths_s]
    return sum(len(batch) * max(frames[i] for i in batch) for batch in made) / sum(frames)


def _multihead(table: Table) -> None:
    """Compare eight heads and their projection, as loaded, with one matrix."""
    torch.manual_seed(7)
    stock = MultiHeadFusion(768).eval()
    ours = stock.folded()
    audio, text = torch.randn(1, 768), torch.randn(1, 768)
    equal = _equal(ours(audio, text), stock(audio, text), ours(text, audio), within=1e-5, control_is="sides exchanged")
    table.compare(
        "multihead fusion of one clip",
        lambda: stock(audio, text),
        lambda: ours(audio, text),
        31,
        target="-",
        equal=equal,
    )
