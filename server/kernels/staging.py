"""Builds adapters beside the engine's steps, in a class mixed into vLLM's worker.

vLLM's add_lora reads, casts and scales an adapter between two steps, and every stream waits. With
this worker extension (`--worker-extension-cls`) a thread builds the LoRAModel, and vLLM's manager
takes it, instead of reading files, in the first step that needs it. Only that step fills a slot:
activating the adapter earlier could take the slot of a running one.

    server -> EngineCore.stage_adapter -> worker: begin to build; called by the thread that reads
              the server's messages (`answer_at_once`), so that no step has to end first
    server <- the answer, sent by vLLM when the future that EngineCore returned is done

An adapter's file is read at once, into the adapter's own memory. vLLM maps the file and takes one
tensor after the other, 168 in twelve layers: four times as slow, mostly under Python's lock. And a
tensor with the engine's dtype would stay mapped, so that the step that copies it reads the disk.

The worker also reports which adapters are in its slots and which were displaced.
"""

import ctypes
import json
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from vllm.lora.lora_model import LoRAModel
from vllm.lora.request import LoRARequest

logger = logging.getLogger(__name__)

_THREADS = 4  # one slow disk must not delay the other adapters
_NICENESS = 5  # steps come first
_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
_WEIGHTS = "adapter_model.safetensors"
_KEPT = 100_000  # names of displaced adapters until the next slot_changes()


def stage_adapter(core: Any, name: str, integer_id: int, path: str) -> Future[None] | None:
    """A new method of EngineCore, which the server calls as one of vLLM's utilities.

    Several workers are separate processes, which can't return a future: they build between two
    steps, and streams wait.
    """
    adapter = (name, integer_id, path)
    if _has_worker(core):
        (built,) = core.collective_rpc("stage_adapter", args=adapter)
        return built  # type: ignore[no-any-return]
    core.collective_rpc("build_adapter", args=adapter)
    return None


def answer_at_once(process_input_sockets: Callable[..., None]) -> Callable[..., None]:
    """Wrap EngineCoreProc's method whose thread reads the server's messages, beside the steps.

    vLLM answers between two steps. A busy engine takes 30 to 200 ms for one, and a request would
    wait for two: one until building begins, one until the request itself comes in.
    """

    @wraps(process_input_sockets)
    def listening(core: Any, *args: Any) -> None:
        put = core.input_queue.put_nowait

        def put_nowait(message: Any) -> None:
            if _is_staging(*message) and _has_worker(core):
                core._handle_client_request(*message)  # reports exceptions as answers, too
            else:
                put(message)

        core.input_queue.put_nowait = put_nowait
        process_input_sockets(core, *args)

    return listening


def _is_staging(kind: Any, request: Any) -> bool:
    from vllm.v1.engine import EngineCoreRequestType

    return bool(kind == EngineCoreRequestType.UTILITY and request[2] == stage_adapter.__name__)


def _has_worker(core: Any) -> bool:
    """Whether the one worker is in this process."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return isinstance(core.model_executor, UniProcExecutor)


class WatchedSlots:
    """Observes vLLM's worker manager, which fills slots in its `add_adapter`, inside a step."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._names: dict[int, str] = {}
        self._displaced: deque[str] = deque(maxlen=_KEPT)
        self._add = manager.add_adapter
        manager.add_adapter = self._watch

    def take_changes(self) -> dict[str, list[str]]:
        held = set(self._slots())
        self._names = {number: name for number, name in self._names.items() if number in held}
        displaced = list(self._displaced)
        self._displaced.clear()
        return {"device": list(self._names.values()), "displaced": displaced}

    def _watch(self, request: Any) -> Any:
        before = list(self._slots())
        added = self._add(request)
        if request.lora_int_id not in before:
            self._record(request, before)
        return added

    def _record(self, request: Any, before: list[int | None]) -> None:
        try:
            after = self._slots()
            for number in before:
                if number not in after and number in self._names:
                    self._displaced.append(self._names.pop(number))
            self._names[request.lora_int_id] = request.lora_name
        except Exception:  # a recording error must not fail the step
            logger.exception("a change of slots could not be recorded")

    def _slots(self) -> list[int | None]:
        slots: list[int | None] = self._manager._adapter_manager.lora_index_to_id
        return slots


class AdapterStaging:
    """Methods of the worker, for `collective_rpc`: builtins in and out."""

    _lorry_slots: WatchedSlots
    _lorry_staged: dict[int, Future[Any]]
    _lorry_threads: ThreadPoolExecutor

    def stage_adapter(self, name: str, integer_id: int, path: str) -> Future[None]:
        """Begin to build, during a step or between two; the future is done when it is built."""
        if not hasattr(self, "_lorry_staged"):
            self._lorry_begin()
        request = LoRARequest(lora_name=name, lora_int_id=integer_id, lora_path=path)
        staged = self._lorry_threads.submit(_build, self._lorry_manager(), request)
        self._lorry_staged[integer_id] = staged
        done: Future[None] = Future()  # without the adapter, which vLLM would send to the server
        staged.add_done_callback(partial(_copy_outcome, done))
        return done

    def build_adapter(self, name: str, integer_id: int, path: str) -> None:
        """Like `stage_adapter`, but waits."""
        self.stage_adapter(name, integer_id, path).result()

    def drop_adapter(self, integer_id: int) -> None:
        """Drop an adapter wherever it is. Idempotent."""
        if staged := getattr(self, "_lorry_staged", {}).pop(integer_id, None):
            staged.cancel()
        self._lorry_adapters().remove_adapter(integer_id)

    def held_adapters(self) -> dict[str, list[int]]:
        """The integer ids of adapters in host memory, and of those in a device slot."""
        adapters = self._lorry_adapters()
        slots = [integer_id for integer_id in adapters.lora_index_to_id if integer_id is not None]
        return {
            "host": [*adapters.list_adapters(), *getattr(self, "_lorry_staged", ())],
            "device": slots,
        }

    def slot_changes(self) -> dict[str, list[str]]:
        """The adapters in slots now, and those displaced since the last call."""
        if not hasattr(self, "_lorry_slots"):
            self._lorry_slots = WatchedSlots(self._lorry_manager())
        return self._lorry_slots.take_changes()

    def _lorry_begin(self) -> None:
        self._lorry_staged = {}
        self._lorry_threads = ThreadPoolExecutor(_THREADS, "stage", initializer=_give_way)
        manager = self._lorry_manager()
        manager._lora_model_cls = OwnedLoRAModel
        manager._load_adapter = partial(self._lorry_take, manager._load_adapter)

    def _lorry_take(self, read: Any, request: LoRARequest) -> Any:
        """The manager's `_load_adapter`, in a step: the built adapter if there is one."""
        staged = self._lorry_staged.pop(request.lora_int_id, None)
        return read(request) if staged is None else staged.result()

    def _lorry_manager(self) -> Any:
        return self.model_runner.lora_manager  # type: ignore[attr-defined]

    def _lorry_adapters(self) -> Any:
        return self._lorry_manager()._adapter_manager


def _copy_outcome(done: Future[None], staged: Future[Any]) -> None:
    if staged.cancelled():
        done.cancel()
    elif (error := staged.exception()) is not None:
        done.set_exception(error)
    else:
        done.set_result(None)


def _give_way() -> None:
    """Limit this thread to one core, behind the steps' threads.

    OpenMP's own call sets it for this thread only. torch.set_num_threads would change the steps'
    setting too, at which vLLM's attention ends the process; and torch applies its default to a
    thread at the first get_num_threads, so that call comes first.
    """
    torch.get_num_threads()
    with suppress(AttributeError):  # no OpenMP: steps are slower meanwhile, nothing worse
        ctypes.CDLL(None).omp_set_num_threads(1)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _build(manager: Any, request: LoRARequest) -> Any:
    adapter = type(manager)._load_adapter(manager, request)
    adapters = manager._adapter_manager
    if not adapters._is_moe:  # experts can't be merged twice, and `add_adapter` merges again
        adapters._create_merged_loras_inplace(adapter)
        _check_fits(adapters, adapter)
    return adapter


def _check_fits(adapters: Any, adapter: Any) -> None:
    """Raises ValueError if copying to a slot would fail, which in a step ends the engine."""
    for name, module in adapters.modules.items():
        weights = adapters._get_lora_layer_weights(adapter, name)
        is_linear = isinstance(module.lora_a_stacked, tuple)
        if weights is None or not is_linear or module.tp_size > 1:  # the copy shards it
            continue
        pairs = zip(parts_of(weights.lora_a), parts_of(weights.lora_b), strict=True)
        slots = zip(module.lora_a_stacked, module.lora_b_stacked, strict=True)
        for (a, b), (slot_a, slot_b) in zip(pairs, slots, strict=True):
            if a is None and b is None:
                continue
            rank, width = a.shape
            fits = rank <= slot_a.shape[-2] and width == slot_a.shape[-1]
            if not fits or b.shape != (slot_b.shape[-2], rank):
                raise ValueError(f"{name} can't hold {tuple(b.shape)} x {tuple(a.shape)}")


def parts_of(weights: Any) -> list[Any]:
    """The parts of packed layers (q, k and v in one) are a list, with None for one without LoRA."""
    return weights if isinstance(weights, list) else [weights]


class OwnedLoRAModel(LoRAModel):
    """vLLM's class (`_lora_model_cls` of the worker's manager), with memory of its own."""

    @classmethod
    def from_local_checkpoint(
        cls, lora_dir: str, expected_lora_modules: set[str], peft_helper: Any, **options: Any
    ) -> LoRAModel:
        """Raises OSError if the file can't be read, ValueError if it is not this base's adapter.

        The server has validated everything else that vLLM's method checks
        (adapters/checkpoint/checkpoint.py), and experts have no adapters here.
        """
        options.pop("moe_ep_spec", None)
        tensors = load_tensors(Path(lora_dir) / _WEIGHTS)
        model = cls.from_lora_tensors(tensors=tensors, peft_helper=peft_helper, **options)
        _refuse_others(model.loras, expected_lora_modules)
        return model


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, in one block of memory of their own.

    Raises OSError if it can't be read, ValueError if it is incomplete (format:
    https://huggingface.co/docs/safetensors; 8 bytes of length, a JSON header, the values).
    """
    raw = _read(path)
    try:
        begin = 8 + int.from_bytes(raw[:8].numpy().tobytes(), "little")
        if begin > len(raw):
            raise ValueError(begin)
        header = dict(json.loads(raw[8:begin].numpy().tobytes()))
        header.pop("__metadata__", None)
        return {name: _tensor(raw[begin:], **entry) for name, entry in header.items()}
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path.name} is not a complete safetensors file") from error


def _read(path: Path) -> torch.Tensor:
    with path.open("rb", buffering=0) as file:
        raw = torch.empty(os.fstat(file.fileno()).st_size, dtype=torch.uint8)
        left = memoryview(raw.numpy().data)
        while left and (count := file.readinto(left)):
            left = left[count:]
    if left:
        raise ValueError(f"{path.name} shrank during the read")
    return raw


def _tensor(
    values: torch.Tensor, dtype: str, shape: list[int], data_offsets: list[int]
) -> torch.Tensor:
    begin, end = data_offsets
    own = values[begin:end]
    if own.storage_offset() % _DTYPES[dtype].itemsize:
        own = own.clone()
    tensor = own.view(_DTYPES[dtype]).view(shape)
    if list(tensor.shape) != shape:  # torch reads -1 as "the rest"
        raise ValueError(shape)
    return tensor


def _refuse_others(modules: Iterable[str], expected: set[str]) -> None:
    others = sorted(name for name in modules if name.rpartition(".")[2] not in expected)
    if others:
        raise ValueError(f"{others[0]} takes no adapter on this server ({len(others)} like it)")
