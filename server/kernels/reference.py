"""The operators in plain PyTorch: the fallback for every type and processor, and the oracle of the
native kernels' tests. Arithmetic on the rows of a plan; knows nothing of vLLM.
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import linear

from server.kernels.plan import Segment, segments_of


def lora_linear_(
    y: torch.Tensor,
    x: torch.Tensor,
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    plan: torch.Tensor,
    repaired: torch.Tensor,
    scale: float,
    bound: float,
    add: bool,
) -> None:
    for segment in segments_of(plan):
        rows, start = x.index_select(0, segment.rows), 0
        for own_a, own_b in zip(a, b, strict=True):
            shrunk = project(rows, _matrix(own_a, segment)[: segment.rank]) * scale
            _expand(y, shrunk, own_b, segment, repaired, bound, add, start)
            start += own_b.size(-2)


def lora_shrink_(
    y: Sequence[torch.Tensor],
    x: torch.Tensor,
    a: Sequence[torch.Tensor],
    plan: torch.Tensor,
    scale: float,
) -> None:
    for segment in segments_of(plan):
        rows = x.index_select(0, segment.rows)
        for out, own_a in zip(y, a, strict=True):
            shrunk = project(rows, _matrix(own_a, segment)) * scale
            out[segment.rows, : own_a.size(-2)] = shrunk.to(out.dtype)


def lora_expand_(
    y: torch.Tensor,
    x: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    plan: torch.Tensor,
    repaired: torch.Tensor,
    bound: float,
    start: int,
    add: bool,
) -> None:
    for segment in segments_of(plan):
        column = start
        for shrunk, own_b in zip(x, b, strict=True):
            rows = shrunk.index_select(0, segment.rows)
            _expand(y, rows, own_b, segment, repaired, bound, add, column)
            column += own_b.size(-2)


def _expand(
    y: torch.Tensor,
    shrunk: torch.Tensor,
    b: torch.Tensor,
    segment: Segment,
    repaired: torch.Tensor,
    bound: float,
    add: bool,
    start: int,
) -> None:
    own_b = _matrix(b, segment)[:, : shrunk.size(-1)]
    delta = project(shrunk, own_b)
    repaired[segment.slot] += count_repairs(delta, bound)
    out = y.narrow(1, start, own_b.size(0))
    values = bounded(delta, bound)
    out[segment.rows] = (out[segment.rows] + values if add else values).to(y.dtype)


def project(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """rows @ weight.T in the wider of the two types; the GEMM itself accumulates in fp32."""
    dtype = torch.promote_types(rows.dtype, weight.dtype)
    return linear(rows.to(dtype), weight.to(dtype))


def limit(dtype: torch.dtype) -> float:
    """The largest magnitude that an adapter may add to an activation of this type.

    It is far above the values of a trained adapter, and low enough in bf16 and fp32 that no product
    in later layers (gate times up, query times key, squares in a norm) comes near 3e38. fp16 has no
    such room: rows stay separate there too, but a broken adapter's own rows may still overflow.
    """
    return min(8192.0, torch.finfo(dtype).max / 16)


def bounded(values: torch.Tensor, bound: float) -> torch.Tensor:
    """The values, finite and within the bound.

    vLLM multiplies the content of freed KV cache blocks by zero instead of skipping it, so one
    non-finite value in an adapter's rows would reach the next request that gets the block.
    """
    return values.nan_to_num(nan=0.0).clamp(-bound, bound)


def count_repairs(values: torch.Tensor, bound: float) -> int:
    """The number of values that `bounded` changes."""
    return int((~(values.abs() <= bound)).sum())


def _matrix(stacked: torch.Tensor, segment: Segment) -> torch.Tensor:
    """A slot's matrix out of (slots, 1, rows, columns)."""
    return stacked[segment.slot, 0]
