"""Which rows of a batch belong to which adapter slot, as one tensor that the operators read.

Its place in memory never changes, so a compiled model can hold on to it. Knows nothing of vLLM.

    [segments, where the rows start, (slot, rank, first row, rows) per segment ..., rows ...]

Rows that no segment names are never read nor written.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_RANK_STEP = 8  # of the native kernels; slots are padded with zeros


@dataclass(frozen=True)
class Segment:
    """The rows that one slot serves, in the order of the batch."""

    slot: int
    rank: int
    rows: torch.Tensor


def make_plan(max_rows: int, max_slots: int) -> torch.Tensor:
    """A plan without segments that has room for any batch."""
    plan = torch.zeros(2 + 4 * max_slots + max_rows, dtype=torch.int32)
    plan[1] = 2 + 4 * max_slots
    return plan


def write_plan(plan: torch.Tensor, slots: torch.Tensor, ranks: Sequence[int]) -> None:
    """Plan for `slots`, which holds each row's slot or -1; `ranks` holds each slot's rank."""
    of_rows = slots.numpy()
    order = np.argsort(of_rows, kind="stable")[np.count_nonzero(of_rows < 0) :]
    used, first, counts = np.unique(of_rows[order], return_index=True, return_counts=True)
    array = plan.numpy()
    start = int(array[1])
    array[0] = len(used)
    for index, (slot, begin, count) in enumerate(zip(used, first, counts, strict=True)):
        rank = -(-ranks[slot] // _RANK_STEP) * _RANK_STEP
        array[2 + 4 * index : 6 + 4 * index] = slot, rank, begin, count
    array[start : start + len(order)] = order


def segments_of(plan: torch.Tensor) -> list[Segment]:
    count, start = plan[:2].tolist()
    table = plan[2 : 2 + 4 * count].view(-1, 4).tolist()
    return [
        Segment(slot, rank, plan[start + first : start + first + rows].long())
        for slot, rank, first, rows in table
    ]
