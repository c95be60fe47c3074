"""Changes to the device slots of vLLM's LoRA manager on a CPU.

A linear layer's slots are one tensor, and filling one writes each byte once. A slot is zeroed when
its adapter leaves, so that no request can use an adapter that is gone (vLLM's LRU frees a slot only
to fill it completely). A filled slot reports its adapter's rank to the wrapper, so that padding
costs nothing. The values repaired in a slot are reported with its requests' next tokens.
"""

from collections.abc import Callable
from typing import Any

import torch
from vllm.lora.layers import ClassificationHeadWithLoRA, LogitsProcessorWithLoRA
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.layers.column_parallel_linear import MergedColumnParallelLinearWithLoRA
from vllm.lora.model_manager import LoRAModelManager
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from server.kernels.lora import PlannedPunicaWrapper
from server.kernels.staging import parts_of
from server.kernels.versions import patch

SetLora = Callable[[Any, int, Any, Any], None]
Pair = tuple[torch.Tensor, torch.Tensor]


@patch("0.32", before="0.33")
def install() -> None:
    """Wrap or replace vLLM's own methods. Idempotent."""
    if LoRAModelManager.activate_adapter.__module__ == __name__:
        return
    install_joined_slots()
    install_slot_copy()
    activate, deactivate = LoRAModelManager.activate_adapter, LoRAModelManager._deactivate_adapter

    def activate_adapter(manager: Any, lora_id: int) -> bool:
        activated: bool = activate(manager, lora_id)
        if activated:
            _describe(manager, lora_id)
        return activated

    def deactivate_adapter(manager: Any, lora_id: int) -> None:
        slots = manager.lora_index_to_id
        slot = slots.index(lora_id) if lora_id in slots else None
        deactivate(manager, lora_id)
        if slot is not None:
            _zero(manager, slot)

    LoRAModelManager.activate_adapter = activate_adapter
    LoRAModelManager._deactivate_adapter = deactivate_adapter
    # When told to count NaN in logits, vLLM calls this in every step. Repaired values leave no NaN
    # there, and counting costs a pass over all logits: this count replaces it.
    GPUModelRunner._get_nans_in_logits = _repaired_by_request


def _describe(manager: Any, lora_id: int) -> None:
    slot = manager.lora_index_to_id.index(lora_id)
    adapter = manager._registered_adapters[lora_id]
    layers = {name: manager._get_lora_layer_weights(adapter, name) for name in manager.modules}
    rank = max((_rank(layer) for layer in layers.values() if layer), default=0)
    has_logits = any(
        layers[name] and isinstance(module, LogitsProcessorWithLoRA)
        for name, module in manager.modules.items()
    )
    for wrapper in _wrappers(manager):
        wrapper.describe_slot(slot, rank, has_logits)


def _rank(layer: Any) -> int:
    return max((part.size(0) for part in parts_of(layer.lora_a) if part is not None), default=0)


def _zero(manager: Any, slot: int) -> None:
    for module in manager.modules.values():
        module.reset_lora(slot)
        if isinstance(module, ClassificationHeadWithLoRA):
            module.reset_module_to_save(slot)


def _wrappers(manager: Any) -> set[PlannedPunicaWrapper]:
    wrappers = set(manager.punica_wrapper_mapping.values())
    return {wrapper for wrapper in wrappers if isinstance(wrapper, PlannedPunicaWrapper)}


def _repaired_by_request(runner: Any, logits: Any) -> dict[str, int]:
    """Request id -> the number of values repaired in its adapter's slot so far."""
    if runner.lora_config is None:
        return {}
    manager = runner.lora_manager._adapter_manager
    by_slot = zip(*(wrapper.repaired.tolist() for wrapper in _wrappers(manager)), strict=True)
    by_adapter = {
        adapter: sum(counts)
        for adapter, counts in zip(manager.lora_index_to_id, by_slot, strict=True)
        if any(counts) and adapter is not None
    }
    if not by_adapter:
        return {}
    batch = runner.input_batch
    adapters = batch.request_lora_mapping[: batch.num_reqs].tolist()
    return {
        request: by_adapter[adapter]
        for request, adapter in zip(batch.req_ids, adapters, strict=True)
        if adapter in by_adapter
    }


@patch("0.32", before="0.33")
def install_joined_slots() -> None:
    """Make a linear layer's slots one tensor, a row for each, of which vLLM's own are views.

        (slots, A of each part (rank x inputs), B of each part (outputs x rank))

    vLLM keeps two tensors for each part (q, k and v), 14 for the four linear layers of a Llama
    block. Each is an argument of the compiled model, to be fetched, counted and dropped in every
    step: where the compiled kernels serve, 4 are left. vLLM's methods still make the tensors, and
    compute what ours can't.
    """
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
    """Replace the layer's slots, still empty, by views of one tensor."""
    parts = [*layer.lora_a_stacked, *layer.lora_b_stacked]
    sizes = [part[0].numel() for part in parts]
    layer.joined_slots = parts[0].new_zeros(len(parts[0]), sum(sizes))
    pieces = layer.joined_slots.split(sizes, dim=1)
    views = [piece.view(part.shape) for piece, part in zip(pieces, parts, strict=True)]
    layer.lora_a_stacked = tuple(views[: layer.n_slices])
    layer.lora_b_stacked = tuple(views[layer.n_slices :])


@patch("0.32", before="0.33")
def install_slot_copy() -> None:
    """Fill and clear slots by methods that write each byte once; vLLM's remain for sharded layers.

    vLLM's set_lora zeroes the whole slot first, through an indexing expression for each of its
    tensors: with the 168 of twelve layers that takes longer than the copying, in a step.
    """
    for layer in (BaseLinearLayerWithLoRA, MergedColumnParallelLinearWithLoRA):
        layer.set_lora = _filling(layer.set_lora)
    BaseLinearLayerWithLoRA.reset_lora = _reset


def _filling(set_lora: SetLora) -> SetLora:
    def fill(layer: Any, index: int, lora_a: Any, lora_b: Any) -> None:
        a_parts, b_parts = parts_of(lora_a), parts_of(lora_b)
        if layer.tp_size > 1 or not layer.n_slices == len(a_parts) == len(b_parts):
            set_lora(layer, index, lora_a, lora_b)  # vLLM's splits the weights first
            return
        for (slot_a, slot_b), a, b in zip(_slot(layer, index), a_parts, b_parts, strict=True):
            _copy(slot_a, a)
            _copy(slot_b, b)

    return fill


def _slot(layer: Any, index: int) -> list[Pair]:
    """A (rank x inputs) and B (outputs x rank) of each part of the layer in that slot.

    Cached: making such a view takes twice as long as copying into it.
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
