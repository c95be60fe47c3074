"""NF4 rounding of weights in plain torch, so that pretraining accounts for quantized serving.

It knows nothing about bitsandbytes, which does the real thing (and also rounds the block scales).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

BLOCK: Final = 64
# The sixteen NF4 levels of the QLoRA paper (arXiv:2305.14314, appendix E).
LEVELS: Final = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip


def round_to_nf4(weight: Tensor) -> Tensor:
    """Round every block of 64 weights to the sixteen levels, scaled by the block's maximum."""
    levels = torch.tensor(LEVELS)
    blocks = weight.reshape(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    nearest = torch.bucketize(blocks / scale, (levels[1:] + levels[:-1]) / 2)
    return (levels[nearest] * scale).reshape(weight.shape)


@contextmanager
def nf4_rounded(weights: Iterable[torch.nn.Parameter]) -> Iterator[None]:
    """Round the weights inside the block and put the exact ones back after it.

    Gradients taken inside reach the exact weights as they are (a straight-through estimate).
    """
    kept = [(weight, weight.data) for weight in weights]
    for weight, exact in kept:
        weight.data = round_to_nf4(exact)
    try:
        yield
    finally:
        for weight, exact in kept:
            weight.data = exact
