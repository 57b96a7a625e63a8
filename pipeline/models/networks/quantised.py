"""Eight-bit audio encoder for CPUs: an option; count the label flips on your own data before using it.

Weights are rounded once, with one scale per matrix; activations at each matrix, to their range in that pass. A
clip's result would therefore depend on the other clips of its pass, so callers must run passes of one clip.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn, qint8

if TYPE_CHECKING:
    from pipeline.models.networks.conformer import Conformer


def quantise(encoder: Conformer) -> None:
    """Convert the matrices of every layer to eight bits, in place. Positions, norms and convolutions stay in fp32.

    Source: torch's dynamic quantisation (oneDNN's or FBGEMM's int8 kernels). It is deprecated in favour of a
    separate package, which would be one more dependency of every worker; torch is pinned.
    """
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        quantize_dynamic(encoder.encoder, {nn.Linear}, dtype=qint8, inplace=True)  # type: ignore[no-untyped-call]
