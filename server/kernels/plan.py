"""The plan: which rows of a batch belong to which adapter slot, as one tensor for the operators.

Its address never changes, so a compiled model can keep it. Knows nothing of vLLM.

    [segments, index of the rows, (slot, rank, first row, rows) per segment ..., rows ...]

The operators neither read nor write rows outside the segments. The plan settles once a step, not in
every layer, all that depends on the batch alone: how rows are cut into segments, and the order of
the segments, which is that of the batch, as x and y were written.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

_RANK_STEP = 8  # of the native kernels; slots are padded with zeros
_SEGMENT_ROWS = 96  # at most: a share of a long prompt for each thread


@dataclass(frozen=True)
class Segment:
    """Rows that one slot serves, in the order of the batch; a slot may have several."""

    slot: int
    rank: int
    rows: torch.Tensor


def make_plan(max_rows: int, max_slots: int) -> torch.Tensor:
    """An empty plan with room for any batch."""
    start = 2 + 4 * (max_slots + max_rows // _SEGMENT_ROWS)
    plan = torch.zeros(start + max_rows, dtype=torch.int32)
    plan[1] = start
    return plan


def write_plan(plan: torch.Tensor, slots: torch.Tensor, ranks: Sequence[int]) -> None:
    """Write the plan for `slots`: each row's slot, or -1; `ranks` holds each slot's rank."""
    of_rows = slots.numpy()
    order = np.argsort(of_rows, kind="stable")[np.count_nonzero(of_rows < 0) :]
    by_slot = np.split(order, np.flatnonzero(np.diff(of_rows[order])) + 1)
    segments = [
        rows[first : first + _SEGMENT_ROWS]
        for rows in by_slot
        for first in range(0, len(rows), _SEGMENT_ROWS)
    ]
    segments.sort(key=lambda rows: int(rows[0]))
    array, at = plan.numpy(), 0
    array[0] = len(segments)
    table, of_segments = array[2 : array[1]].reshape(-1, 4), array[array[1] :]
    for line, rows in zip(table[: len(segments)], segments, strict=True):
        slot = of_rows[rows[0]]
        line[:] = slot, -(-ranks[slot] // _RANK_STEP) * _RANK_STEP, at, len(rows)
        of_segments[at : at + len(rows)] = rows
        at += len(rows)


def segments_of(plan: torch.Tensor) -> list[Segment]:
    count, start = plan[:2].tolist()
    table = plan[2 : 2 + 4 * count].view(-1, 4).tolist()
    return [
        Segment(slot, rank, plan[start + first : start + first + rows].long())
        for slot, rank, first, rows in table
    ]
