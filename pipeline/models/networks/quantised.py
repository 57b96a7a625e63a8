"""The audio encoder in eight bits, for processors: an option for those who count label flips first.

Weights are rounded once, to one scale a matrix; activations at each matrix, to the range they have in that pass. So what a clip
gets would depend on the clips it shares a pass with: whoever uses this makes passes of one clip.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

from torch import nn, qint8

if TYPE_CHECKING:
    from pipeline.models.networks.conformer import Conformer


def quantise(encoder: Conformer) -> None:
    """Put the matrices of every layer into eight bits, in place. Positions, norms and convolutions stay in fp32.

    Source: torch's dynamic quantisation (oneDNN's or FBGEMM's int8 kernels). It is deprecated in favour of a package of its own,
    which would be one more dependency of every worker; torch is pinned.
    """
    from torch.ao.quantization import quantize_dynamic

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*deprecated", category=UserWarning)
        quantize_dynamic(encoder.encoder, {nn.Linear}, dtype=qint8, inplace=True)  # type: ignore[no-untyped-call]
