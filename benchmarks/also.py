"""Cost of further models in one pass, beyond the models' own forward time.

    python -m benchmarks.also [--clips 48] [--seconds 4] [--rounds 3]

Annotates the same clips with a main model and three further ones, in rounds. Each round times the recognition step of a
shard as a whole, and within it the calls of the models (feature extraction and forward passes); the rest is the cost of
`--also` and of the columns. Random models of a quarter of the published width.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import soundfile
import torch

from pipeline.models import roles
from pipeline.shard.prepare import prepare
from pipeline.shard.recognise import recognise
from tests.support.shards import work_of
from tests.support.tiny_models import audio_checkpoint, tones

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "num_hidden_layers": 6,
    "intermediate_size": 1024,
    "conv_dim": (128,) * 7,
    "feat_extract_norm": "layer",
}
NAMES = ("wav2vec2", "hubert", "wavlm", "unispeech-sat")


class Timed:
    """A recogniser that adds up the time of its calls."""

    def __init__(self, real: Any) -> None:  # noqa: ANN401 - any recogniser
        self.real, self.seconds = real, 0.0

    def recognise(self, *inputs: Any) -> Any:  # noqa: ANN401 - passed through
        """Run the model."""
        start = time.perf_counter()
        try:
            return self.real.recognise(*inputs)
        finally:
            self.seconds += time.perf_counter() - start


def main() -> None:
    """Print whole time, time of the models and the share beyond it, by round, and the median."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=48)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        records = []
        for number, clip in enumerate(tones(*[int(16_000 * options.seconds) + 160 * n for n in range(options.clips)])):
            soundfile.write(folder / f"{number}.wav", clip, 16_000)
            records.append({"id": str(number), "audio": str(folder / f"{number}.wav"), "text": "t", "language": "en"})
        for kind in NAMES:
            audio_checkpoint(folder / kind, kind, **SIZES)
        main_model, *further = NAMES
        chosen = {"fusion/en": str(folder / main_model)}
        chosen |= {f"fusion/en/{kind.replace('-', '_')}": str(folder / kind) for kind in further}
        also = [f"{kind.replace('-', '_')}={folder / kind}" for kind in further]
        work = work_of(folder / "out", records, chosen, "audio", segmentation="none", also=also)
        loaded = roles.Loaded(work.plan.models, settings=work.plan.settings, device="cpu", num_threads=1)
        (shard,) = work.plan.shards()
        shares = []
        for number in range(options.rounds + 1):
            table = prepare(work, shard)
            timed: dict[tuple[str, ...], Timed] = {}

            def model(*key: str, timed: dict[tuple[str, ...], Timed] = timed) -> Any:  # noqa: ANN401
                return timed.setdefault(key, Timed(loaded.recogniser_for(*key)))

            start = time.perf_counter()
            recognise(work, shard, table, model)
            whole, own = time.perf_counter() - start, sum(each.seconds for each in timed.values())
            if number:  # the first loads and warms up
                shares.append((whole - own) / own)
                print(
                    f"round {number}: {whole:.3f} s, {own:.3f} s in {len(timed)} models, {shares[-1]:+.2%} beyond them"
                )
        print(f"median: {statistics.median(shares):+.2%} beyond the models' own time")


if __name__ == "__main__":
    main()
