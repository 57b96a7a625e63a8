"""One conformer layer of Wav2Vec2-BERT 2.0, stock and ours, and the memory of its forward pass.

usage: python -m benchmarks.layers stock|ours LENGTH       prints the peak of extra resident bytes of one pass
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import Wav2Vec2BertConfig
from transformers.models.wav2vec2_bert.modeling_wav2vec2_bert import Wav2Vec2BertEncoderLayer

from pipeline.models.networks.conformer import Layer

WIDTH = 1024


def layer(kind: str) -> nn.Module:
    """Return a layer of the published shape with random weights, the same for both kinds."""
    config = Wav2Vec2BertConfig()  # its defaults are those of facebook/w2v-bert-2.0
    config._attn_implementation = "sdpa"
    torch.manual_seed(7)
    made = Wav2Vec2BertEncoderLayer(config).eval().requires_grad_(False)
    if kind == "ours":
        ours = Layer(config).eval().requires_grad_(False)
        ours.load_state_dict(made.state_dict())
        return ours
    return made


def states(length: int) -> Tensor:
    """[1, length, WIDTH], the same at every call."""
    return torch.randn(1, length, WIDTH, generator=torch.Generator().manual_seed(length))


def forward(module: nn.Module, given: Tensor) -> Tensor:
    """Return the states after the layer, [1, length, WIDTH]."""
    with torch.inference_mode():
        return module(given, None)


def _status(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    """Measure one pass, after a short one that loads the libraries."""
    kind, length = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(1)
    module, given = layer(kind), states(length)
    forward(module, states(32))
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = _status("VmRSS")
    forward(module, given)
    print(_status("VmHWM") - before)


if __name__ == "__main__":
    main()
