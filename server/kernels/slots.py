"""What happens to a device slot of vLLM's LoRA manager, beyond what vLLM does itself.

A slot that an adapter leaves is zeroed, so that nothing can be taken from one that is gone (vLLM's
own LRU frees a slot only to fill it, all of it). A slot that is filled has its adapter's rank told
to the wrapper, so that padding costs nothing. And the values that had to be repaired in a slot are
reported with its requests' next tokens.
"""

from typing import Any

from vllm.lora.layers import ClassificationHeadWithLoRA, LogitsProcessorWithLoRA
from vllm.lora.model_manager import LoRAModelManager
from vllm.v1.worker.gpu_model_runner import GPUModelRunner

from server.kernels import joined_slots, slot_copy
from server.kernels.lora import PlannedPunicaWrapper
from server.kernels.slot_copy import parts_of


def install() -> None:
    """Put them in place, once; vLLM's own methods do their work inside them."""
    if LoRAModelManager.activate_adapter.__module__ == __name__:
        return
    joined_slots.install()
    slot_copy.install()
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
    # vLLM asks this in every step when told to count NaN in logits. Repaired values leave none
    # there, and counting them costs a pass over all logits: this takes its place.
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
    """Request id to the number of values that were repaired in its adapter's slot so far."""
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
