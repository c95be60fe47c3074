"""Fills and clears a linear layer's slots on a processor, writing each byte once.

vLLM's set_lora zeroes the whole slot first, through an indexing expression for each of its tensors;
with the 168 of twelve layers that takes longer than the copying, in a step, while streams wait.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA

SetLora = Callable[[Any, int, Any, Any], None]
Pair = tuple[torch.Tensor, torch.Tensor]


def install() -> None:
    """Put ours in place of vLLM's methods, which stay for what ours does not know."""
    for layer in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        layer.set_lora = _filling(layer.set_lora)
    BaseLinearLayerWithLoRA.reset_lora = _reset


def parts_of(weights: Any) -> list[Any]:
    """Packed layers (q, k and v in one) hold a list, with None for a part without LoRA."""
    return weights if isinstance(weights, list) else [weights]


def _filling(set_lora: SetLora) -> SetLora:
    def fill(layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        a_parts, b_parts = parts_of(lora_a), parts_of(lora_b)
        if layer.tp_size > 1 or not layer.n_slices == len(a_parts) == len(b_parts):
            set_lora(layer, index, lora_a, lora_b)  # which takes them apart
            return
        for (slot_a, slot_b), a, b in zip(_slot(layer, index), a_parts, b_parts, strict=True):
            _copy(slot_a, a)
            _copy(slot_b, b)

    return fill


def _slot(layer: Any, index: int) -> list[Pair]:
    """A (rank x inputs) and B (outputs x rank) of each of the layer's parts in that slot.

    Kept: to make such a view takes twice as long as to copy into it.
    """
    if not hasattr(layer, "_lorry_slots"):
        stacked = list(zip(layer.lora_a_stacked, layer.lora_b_stacked, strict=True))
        layer._lorry_slots = [
            [(a[slot, 0], b[slot, 0]) for a, b in stacked] for slot in range(stacked[0][0].size(0))
        ]
    slots: list[list[Pair]] = layer._lorry_slots
    return slots[index]


def _copy(slot: torch.Tensor, values: torch.Tensor | None) -> None:
    if values is None:
        slot.zero_()
        return
    if values.shape != slot.shape:
        slot.zero_()
        slot = slot[: values.size(0), : values.size(1)]
    slot.copy_(values)


def _reset(layer: Any, index: int) -> None:
    layer.joined_slots[index].zero_()
