"""Patches of vLLM's engine on a CPU beside the arithmetic: compilation, experts, frames, a lookup.

torch.compile stays on with LoRA (vLLM turns it off, as its own LoRA arithmetic there can't be
compiled; ours is opaque operators), and a compiled model is loaded again at the next start. The
engine's loop gets room for its frames and looks adapters up without copying a cache.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import torch
from vllm.platforms.cpu import CpuPlatform

from server.kernels import operators
from server.kernels.versions import patch

# The main loops of vLLM's processes: the engine's, and a worker's if it has its own process.
# Data parallelism has another loop, which is not patched.
_LOOPS = (
    ("vllm.v1.engine.core", "EngineCoreProc", "run_busy_loop"),
    ("vllm.v1.executor.multiproc_executor", "WorkerProc", "worker_busy_loop"),
)
# Words of 8 bytes. A chunk is 16 KiB, doubled until the frame fits. This frame and its overhead do
# not fit into 256 KiB, so the chunk has 512: half of it is left for the frames below, of which a
# compiled model of 12 layers with LoRA takes some 10 KiB. Untouched pages take no memory.
_FRAME_WORDS = 32 * 1024
_COMPILERS = 2  # at once; each takes 300 MB


def install() -> None:
    """Wrap vLLM's own methods. Idempotent."""
    _compile_beside_lora()
    _load_what_was_compiled()
    _choose_experts_without_lora()
    make_room_for_frames()


@patch("0.32", before="0.33")
def install_beside_adapters() -> None:
    """For processes that serve adapters. Idempotent."""
    from vllm.lora.worker_manager import WorkerLoRAManager

    WorkerLoRAManager.list_adapters = _resident_ids


@patch("0.32", before="0.33")
def _compile_beside_lora() -> None:
    check = CpuPlatform.check_and_update_config.__func__
    if check.__module__ == __name__:
        return

    def check_as_without_lora(platform: Any, vllm_config: Any) -> None:
        # By the presence of LoRA, vLLM decides nothing here but compilation.
        lora_config, vllm_config.lora_config = vllm_config.lora_config, None
        try:
            check(platform, vllm_config)
        finally:
            vllm_config.lora_config = lora_config
        _identify_by_operators(vllm_config)
        _compile_at_once(vllm_config)

    CpuPlatform.check_and_update_config = classmethod(check_as_without_lora)


def _compile_at_once(vllm_config: Any) -> None:
    """Have threads wait for C++ compilers; vLLM asks for one after the other.

    As many on all machines: vLLM recognises a saved model by its settings.
    """
    vllm_config.compilation_config.inductor_compile_config.setdefault("compile_threads", _COMPILERS)
    os.environ.setdefault("TORCH_WARM_POOL", "0")  # else Inductor starts processes for Triton


def _identify_by_operators(vllm_config: Any) -> None:
    """Add our operators to the settings, by which vLLM recognises a saved model."""
    if isinstance(more := vllm_config.additional_config, dict):
        more["lorry_operators"] = operators.kinds()


@patch("0.32", before="0.33")
def _load_what_was_compiled() -> None:
    """Without this every start compiles again, although vLLM has saved the result.

    vLLM 0.32 finishes loading by a method that only its own backend's functions have
    (`compilation/decorators.py: _try_load_aot_compiled_fn`); a processor uses torch's.
    """
    load: Any = torch.compiler.load_compiled_function
    if load.__module__ == __name__:
        return

    def load_complete(*args: Any, **kwargs: Any) -> Any:
        loaded = load(*args, **kwargs)
        compiled = loaded._artifacts.compiled_fn
        if not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = lambda _vllm_config: None
        return loaded

    torch.compiler.load_compiled_function = load_complete


@patch("0.32", before="0.33")
def _choose_experts_without_lora() -> None:
    """Have a mixture's experts run on vLLM's kernels for processors.

    Beside LoRA vLLM takes Triton's, which no processor has, and the first call ends the engine
    (`oracle/unquantized.py: select_unquantized_moe_backend`). Experts have no adapters here.
    """
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as method

    select = method.select_unquantized_moe_backend
    if select.__module__ == __name__:
        return

    def select_without_lora(moe_config: Any) -> Any:
        moe_config.is_lora_enabled = False
        return select(moe_config)

    method.select_unquantized_moe_backend = select_without_lora


@patch("0.32", before="0.33")
def make_room_for_frames() -> None:
    """Idempotent; a process that runs such a loop has imported it by now, and no other needs it.

    CPython 3.11 keeps the frames of a thread in chunks of 16 KiB. It maps another chunk when a call
    does not fit and unmaps it when that call returns (`pystate.c: push_chunk,
    _PyThreadState_PopFrame`). A compiled model is one function with hundreds of variables, more
    with LoRA: where its frame ends near the end of a chunk, each call that it makes maps and unmaps
    one, and interrupts the other cores for it.
    """
    for module, owner, loop in _LOOPS:
        if (found := sys.modules.get(module)) is not None:
            process = getattr(found, owner)
            if getattr(process, loop).__module__ != __name__:
                setattr(process, loop, with_room(getattr(process, loop)))


def with_room(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function; while it runs, memory for the frames of its callees stays mapped."""

    def call_with_room(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    code = call_with_room.__code__
    call_with_room.__code__ = code.replace(co_stacksize=_FRAME_WORDS)
    return call_with_room


def _resident_ids(manager: Any) -> set[int]:
    """The result of `list_adapters`, without its order.

    vLLM asks for each adapter of each step, and copies its cache twice for an answer, item by item
    in Python (`LRUCacheWorkerLoRAManager.add_adapter`, `_MappingOrderCacheView`): a millisecond for
    a step of 24 adapters where 128 are resident (docs/log/kernels.md).
    """
    return set(manager._adapter_manager._registered_adapters)
