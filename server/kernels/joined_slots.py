"""A linear layer's slots as one tensor, a row for each, of which vLLM's own tensors are views.

    (slots, A of each part (rank x inputs), B of each part (outputs x rank))

vLLM keeps two tensors for each part (q, k and v), 14 for the four linear layers of each of Llama's
blocks. Each is an argument of the compiled model, to be fetched, counted and dropped in every step:
where the compiled kernels serve this makes it 4.
"""

from typing import Any

import torch
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA

from server.kernels.lora import PlannedPunicaWrapper


def install() -> None:
    """Put ours in place of vLLM's methods, which make the tensors, and serve what ours can't."""
    for kind in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        _join_what_is_made(kind)
    add_lora = BaseLinearLayerWithLoRA._apply_lora_to_output

    def add_joined(layer: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        wrapper: PlannedPunicaWrapper = layer.punica_wrapper
        if not wrapper.takes(output, x) or not output.is_contiguous():
            return add_lora(layer, x, output)  # type: ignore[no-any-return]
        wrapper.add_lora_layer(output, x, layer.joined_slots, layer.output_slices)
        return output

    BaseLinearLayerWithLoRA._apply_lora_to_output = add_joined


def _join_what_is_made(kind: Any) -> None:
    create = kind.create_lora_weights

    def create_joined(layer: Any, *args: Any, **kwargs: Any) -> None:
        create(layer, *args, **kwargs)
        join(layer)

    kind.create_lora_weights = create_joined


def join(layer: Any) -> None:
    """What the slots hold is not kept: this is done before anything is put there."""
    parts = [*layer.lora_a_stacked, *layer.lora_b_stacked]
    sizes = [part[0].numel() for part in parts]
    layer.joined_slots = parts[0].new_zeros(len(parts[0]), sum(sizes))
    pieces = layer.joined_slots.split(sizes, dim=1)
    views = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    layer.lora_a_stacked = tuple(views[: layer.n_slices])
    layer.lora_b_stacked = tuple(views[layer.n_slices :])
