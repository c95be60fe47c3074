"""The operators in plain PyTorch: the fallback for every type and processor, and what the native
kernels are tested against. Arithmetic on the rows that a plan names; knows nothing of vLLM.
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

    It is far above what a trained adapter adds, and low enough in bf16 and fp32 that nothing which
    the layers above make of it (gate times up, query times key, squares in a norm) comes near 3e38.
    fp16 has no such room: rows stay apart there too, but a broken adapter's own may still overflow.
    """
    return min(8192.0, torch.finfo(dtype).max / 16)


def bounded(values: torch.Tensor, bound: float) -> torch.Tensor:
    """The values, finite and within the bound.

    vLLM reads freed blocks of the KV cache as zero times what is left there, so one non-finite
    value that an adapter put into its own rows would reach whoever gets the block next.
    """
    return values.nan_to_num(nan=0.0).clamp(-bound, bound)


def count_repairs(values: torch.Tensor, bound: float) -> int:
    """How many of them `bounded` changes."""
    return int((~(values.abs() <= bound)).sum())


def _matrix(stacked: torch.Tensor, segment: Segment) -> torch.Tensor:
    """A slot's matrix out of (slots, 1, rows, columns)."""
    return stacked[segment.slot, 0]
