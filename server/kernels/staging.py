"""Builds adapters beside the engine's steps, so that taking one in is a matter of microseconds.

vLLM's add_lora reads, casts and scales an adapter between two steps, and every stream waits. This
class is mixed into vLLM's worker (`--worker-extension-cls`): a thread builds the LoRAModel, and
between steps it is only put into the manager's table. It goes to a slot in the step that needs
it: activating it at once could take the slot of one that runs.
"""

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from server.kernels.slot_log import SlotLog

_THREADS = 4  # a slow disk must not keep the others waiting
_NICENESS = 5  # steps come first


class AdapterStaging(SlotLog):
    """Methods for `collective_rpc`: builtins in, builtins out; a raised error's text is told."""

    _lorry_staged: dict[int, Future[Any]]
    _lorry_threads: ThreadPoolExecutor

    def stage_adapter(self, name: str, integer_id: int, path: str) -> None:
        """Begin to build an adapter; returns at once."""
        if not hasattr(self, "_lorry_staged"):
            self._lorry_staged = {}
            self._lorry_threads = ThreadPoolExecutor(_THREADS, "stage", initializer=_give_way)
        request = LoRARequest(lora_name=name, lora_int_id=integer_id, lora_path=path)
        manager = self.model_runner.lora_manager  # type: ignore[attr-defined]
        self._lorry_staged[integer_id] = self._lorry_threads.submit(_build, manager, request)

    def is_adapter_staged(self, integer_id: int) -> bool:
        """Whether it is built; raises what went wrong with it."""
        staged = self._lorry_staged[integer_id]
        if staged.done():
            staged.result()
        return staged.done()

    def admit_adapter(self, integer_id: int) -> None:
        """Take in an adapter that is built."""
        adapters = self._lorry_adapters()
        if len(adapters) >= adapters.capacity:
            raise RuntimeError("the engine holds as many adapters as it can")
        adapters.add_adapter(self._lorry_staged.pop(integer_id).result())

    def drop_adapter(self, integer_id: int) -> None:
        """Forget an adapter wherever it is; one that was never there is fine."""
        if staged := getattr(self, "_lorry_staged", {}).pop(integer_id, None):
            staged.cancel()
        self._lorry_adapters().remove_adapter(integer_id)

    def held_adapters(self) -> dict[str, list[int]]:
        """The integer ids that are in host memory, and those in a device slot."""
        adapters = self._lorry_adapters()
        slots = [integer_id for integer_id in adapters.lora_index_to_id if integer_id is not None]
        return {"host": list(adapters.list_adapters()), "device": slots}

    def _lorry_adapters(self) -> Any:
        return self.model_runner.lora_manager._adapter_manager  # type: ignore[attr-defined]


def _give_way() -> None:
    """One core at most, and the steps' threads first: OpenMP's setting is the thread's own."""
    # Not torch.set_num_threads: vLLM's worker puts a function in its place that does nothing.
    torch._C.set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _build(manager: Any, request: LoRARequest) -> Any:
    adapter = manager._load_adapter(request)
    for weights in adapter.loras.values():
        # What has the engine's dtype already is still a map of the file: its pages would be
        # read in the step that copies them, or never if the file is gone by then.
        weights.lora_a, weights.lora_b = weights.lora_a.clone(), weights.lora_b.clone()
    adapters = manager._adapter_manager
    if not adapters._is_moe:  # whose merge can't be done twice, and `add_adapter` will do it
        adapters._create_merged_loras_inplace(adapter)
        _check_fits(adapters, adapter)
    return adapter


def _check_fits(adapters: Any, adapter: Any) -> None:
    """Raises ValueError where copying to a slot would fail: in a step, that ends the engine."""
    for name, module in adapters.modules.items():
        weights = adapters._get_lora_layer_weights(adapter, name)
        is_linear = isinstance(module.lora_a_stacked, tuple)
        if weights is None or not is_linear or module.tp_size > 1:  # sharded when it is copied
            continue
        pairs = zip(_parts(weights.lora_a), _parts(weights.lora_b), strict=True)
        slots = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
        for (a, b), (slot_a, slot_b) in zip(pairs, slots, strict=True):
            if a is None and b is None:
                continue
            rank, width = a.shape
            fits = rank <= slot_a.shape[-2] and width == slot_a.shape[-1]
            if not fits or b.shape != (slot_b.shape[-2], rank):
                raise ValueError(f"{name} can't hold {tuple(b.shape)} x {tuple(a.shape)}")


def _parts(tensors: Any) -> list[Any]:
    """Packed layers (q, k and v in one) hold a list, with None for a part without LoRA."""
    return tensors if isinstance(tensors, list) else [tensors]
