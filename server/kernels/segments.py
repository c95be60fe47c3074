"""Which rows of a batch belong to which adapter slot, and arithmetic on those rows alone.

Rows that no segment names are never read nor written. Knows nothing of vLLM.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import linear


@dataclass(frozen=True)
class Segment:
    """The rows that one slot serves: a slice where they are neighbours, as a view costs no copy."""

    slot: int
    rows: slice | torch.Tensor

    def take(self, batch: torch.Tensor) -> torch.Tensor:
        if isinstance(self.rows, slice):
            return batch[self.rows]
        return batch.index_select(0, self.rows)

    def add(self, batch: torch.Tensor, values: torch.Tensor) -> None:
        if isinstance(self.rows, slice):
            batch[self.rows].add_(values)
        else:
            batch.index_add_(0, self.rows, values)

    def put(self, batch: torch.Tensor, values: torch.Tensor) -> None:
        batch[self.rows] = values


def find_segments(slots: torch.Tensor) -> tuple[Segment, ...]:
    """One segment per slot that occurs in `slots`, which says each row's slot, or -1 for none."""
    used = sorted(set(slots.tolist()) - {-1})
    return tuple(Segment(slot, _compact((slots == slot).nonzero().flatten())) for slot in used)


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


def bounded_(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values as `dtype`, finite and within its limit; may reuse their memory.

    vLLM reads freed blocks of the KV cache as zero times what is left there, so one non-finite
    value that an adapter put into its own rows would reach whoever gets the block next.
    """
    bound = limit(dtype)
    return values.to(dtype).nan_to_num_(nan=0.0).clamp_(-bound, bound)


def _compact(rows: torch.Tensor) -> slice | torch.Tensor:
    first, last = int(rows[0]), int(rows[-1])
    return slice(first, last + 1) if last - first + 1 == len(rows) else rows
