"""Room for the frames of a step, which CPython would otherwise take from the system call by call.

CPython 3.11 keeps the frames of a thread in chunks of 16 KiB. It maps another one when a call does
not fit and unmaps it when that call returns (`pystate.c: push_chunk, _PyThreadState_PopFrame`). A
compiled model is one function with hundreds of variables, more with LoRA: where its frame ends near
the end of a chunk, each call that it makes maps and unmaps, and interrupts the other cores for it.
"""

import sys
from collections.abc import Callable
from typing import Any

# Where a process of vLLM's spends its life: the engine's, and a worker's where it has its own. The
# loop of data parallelism, which no processor needs, is another one.
_LOOPS = (
    ("vllm.v1.engine.core", "EngineCoreProc", "run_busy_loop"),
    ("vllm.v1.executor.multiproc_executor", "WorkerProc", "worker_busy_loop"),
)
# Of 8 bytes. A chunk's size is 16 KiB doubled until all fits, and with what goes beside it such a
# frame does not fit into 256 KiB: so half of 512 is for the frames below, of which a compiled model
# of 12 layers with LoRA takes some 10. Pages that nobody touches are no memory.
_FRAME_WORDS = 32 * 1024


def install() -> None:
    """Once; a process that runs such a loop has imported it by now, and no other needs it."""
    for module, owner, loop in _LOOPS:
        if (found := sys.modules.get(module)) is not None:
            process = getattr(found, owner)
            if getattr(process, loop).__module__ != __name__:
                setattr(process, loop, with_room(getattr(process, loop)))


def with_room(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same; as long as it runs, memory for the frames of what it calls stays mapped."""

    def call_with_room(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    code = call_with_room.__code__
    call_with_room.__code__ = code.replace(co_stacksize=_FRAME_WORDS)
    return call_with_room
