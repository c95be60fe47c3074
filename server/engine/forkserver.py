"""Engines are forked from a process that has imported vLLM already, Python's fork server.

Importing vLLM takes most of a start. The fork server imports it beside the server, on another core,
and stays: an engine that replaces a dead one imports nothing. It has no threads of Python, runs no
model and holds no request; engines are its children, and `lorry serve` reads how they end from it.

    lorry serve ── "fork" ──▶ fork server (server/engine/preload.py) ──▶ EngineCore
         ▲                                                                   │
         └──────────────────────── vLLM's sockets ───────────────────────────┘

Only on a processor: on a GPU vLLM spawns its engine, as CUDA may not be used before a fork.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
from collections.abc import Callable
from contextlib import closing
from functools import partial
from multiprocessing import connection, context, forkserver, resource_tracker
from typing import Any, TypeVar

from server import children
from server.kernels.versions import patch
from server.preflight import is_cpu_build
from server.signals import STOPPING

_T = TypeVar("_T")

_PRELOAD = "server.engine.preload"
_PR_SET_PDEATHSIG = 1


def start() -> None:
    """Start the fork server, which begins to import vLLM. Idempotent.

    It reads the environment now, so `environment.prepare` comes first.
    """
    children.withhold()
    if not is_cpu_build():
        return
    forkserver.set_forkserver_preload([_PRELOAD])
    resource_tracker.ensure_running()  # multiprocessing's; it unblocks signals
    # Blocked until it ignores them: its first instants are Python's own.
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)


@patch("0.32", before="0.33")  # only where `is_cpu_build`
def use() -> None:
    """Have vLLM fork its engines, and what inspects a model's class, off the fork server."""
    if is_cpu_build():
        from vllm.model_executor.models import registry
        from vllm.v1.engine import utils

        utils.get_mp_context = ForkContext
        registry._run_in_subprocess = inspect_forked


class ForkedProcess(context.ForkServerProcess):
    """A child of the fork server, with the environment that children get when it is started."""

    def start(self) -> None:
        self._environ = children.environment()
        super().start()

    def run(self) -> None:
        # Without the fork server nobody tells the server how this process ends.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.environ.clear()
        os.environ.update(self._environ)
        super().run()


class ForkContext(context.ForkServerContext):
    """What vLLM takes for a context of multiprocessing."""

    Process = ForkedProcess


def inspect_forked(function: Callable[[], _T]) -> _T:
    """What vLLM asks of a new interpreter, which would import vLLM first."""
    return run_forked(partial(_call_beside_plugins, function))


def _call_beside_plugins(function: Callable[[], _T]) -> _T:
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    return function()


def run_forked(function: Callable[[], _T]) -> _T:
    """The result of `function` in a process of its own; raises RuntimeError with its exception."""
    import cloudpickle  # type: ignore[import-untyped]

    receiver, sender = connection.Pipe(duplex=False)
    with closing(receiver):
        process = ForkedProcess(target=_answer, args=(cloudpickle.dumps(function), sender))
        process.start()
        sender.close()
        try:
            result, problem = receiver.recv()
        except EOFError:
            result, problem = None, "it ended without an answer"
        process.join()
    if problem:
        raise RuntimeError(f"a forked process failed: {problem}")
    return result  # type: ignore[no-any-return]


def _answer(function: bytes, sender: connection.Connection) -> None:
    outcome: tuple[Any, str]
    try:
        outcome = pickle.loads(function)(), ""
    except Exception as error:  # noqa: BLE001 - whatever it is, the server reports it
        outcome = None, repr(error)
    sender.send(outcome)
