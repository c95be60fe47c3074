"""Builds adapters beside the engine's steps, so that taking one in is a matter of microseconds.

vLLM's add_lora reads, casts and scales an adapter between two steps, and every stream waits. This
class is mixed into vLLM's worker (`--worker-extension-cls`): a thread builds the LoRAModel, and
vLLM's manager finds it there when the first step needs it, instead of reading the files. Only then
does it go to a slot: activating it at once could take the slot of one that runs.

    server -> EngineCore.stage_adapter -> worker: drop who makes room, begin to build
    server <- the answer, sent by vLLM when the future that EngineCore returned is done
"""

import ctypes
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from server.kernels.slot_log import SlotLog

_THREADS = 4  # a slow disk must not keep the others waiting
_NICENESS = 5  # steps come first


def stage_adapter(
    core: Any, name: str, integer_id: int, path: str, leaving: Sequence[int]
) -> Future[None] | None:
    """EngineCore's new method, which the server calls as one of vLLM's utilities.

    One call a load, since each is answered between two steps at best. Several workers are other
    processes, from which no future comes back: they build at once, and streams wait.
    """
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    adapter = (name, integer_id, path, leaving)
    if isinstance(core.model_executor, UniProcExecutor):
        (built,) = core.collective_rpc("stage_adapter", args=adapter)
        return built  # type: ignore[no-any-return]
    core.collective_rpc("build_adapter", args=adapter)
    return None


class AdapterStaging(SlotLog):
    """Methods of the worker."""

    _lorry_staged: dict[int, Future[Any]]
    _lorry_threads: ThreadPoolExecutor

    def stage_adapter(
        self, name: str, integer_id: int, path: str, leaving: Sequence[int]
    ) -> Future[None]:
        """Drop those that leave and begin to build; the future ends when it is built, or raises."""
        if not hasattr(self, "_lorry_staged"):
            self._lorry_begin()
        for each in leaving:
            self.drop_adapter(each)
        request = LoRARequest(lora_name=name, lora_int_id=integer_id, lora_path=path)
        staged = self._lorry_threads.submit(_build, self._lorry_manager(), request)
        self._lorry_staged[integer_id] = staged
        told: Future[None] = Future()  # not the adapter itself, which would be sent
        staged.add_done_callback(partial(_tell, told))
        return told

    def build_adapter(self, name: str, integer_id: int, path: str, leaving: Sequence[int]) -> None:
        """The same, and wait for it."""
        self.stage_adapter(name, integer_id, path, leaving).result()

    def drop_adapter(self, integer_id: int) -> None:
        """Forget an adapter wherever it is; one that was never there is fine."""
        if staged := getattr(self, "_lorry_staged", {}).pop(integer_id, None):
            staged.cancel()
        self._lorry_adapters().remove_adapter(integer_id)

    def held_adapters(self) -> dict[str, list[int]]:
        """The integer ids that are in host memory, and those in a device slot."""
        adapters = self._lorry_adapters()
        slots = [integer_id for integer_id in adapters.lora_index_to_id if integer_id is not None]
        return {
            "host": [*adapters.list_adapters(), *getattr(self, "_lorry_staged", ())],
            "device": slots,
        }

    def _lorry_begin(self) -> None:
        self._lorry_staged = {}
        self._lorry_threads = ThreadPoolExecutor(_THREADS, "stage", initializer=_give_way)
        manager = self._lorry_manager()
        manager._load_adapter = partial(self._lorry_take, manager._load_adapter)

    def _lorry_take(self, read: Any, request: LoRARequest) -> Any:
        """What the manager's `_load_adapter` does, in a step: the one that is built, if it is."""
        staged = self._lorry_staged.pop(request.lora_int_id, None)
        return read(request) if staged is None else staged.result()

    def _lorry_manager(self) -> Any:
        return self.model_runner.lora_manager  # type: ignore[attr-defined]

    def _lorry_adapters(self) -> Any:
        return self._lorry_manager()._adapter_manager


def _tell(told: Future[None], staged: Future[Any]) -> None:
    if staged.cancelled():
        told.cancel()
    elif (error := staged.exception()) is not None:
        told.set_exception(error)
    else:
        told.set_result(None)


def _give_way() -> None:
    """One core at most, and the steps' threads first.

    By OpenMP's own call, whose setting is the thread's own. torch.set_num_threads would become the
    steps' setting too, with which vLLM's attention ends the process; and torch applies its
    default to a thread that first asks for it, so it is asked before.
    """
    torch.get_num_threads()
    with suppress(AttributeError):  # no OpenMP in sight: slower steps meanwhile, nothing worse
        ctypes.CDLL(None).omp_set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _build(manager: Any, request: LoRARequest) -> Any:
    adapter = type(manager)._load_adapter(manager, request)
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
