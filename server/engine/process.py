"""vLLM's engine client, whose process can end and be replaced behind the same object.

vLLM's app, its tokenizer, its metrics and the requests that wait keep the object meanwhile.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import signal
from pathlib import Path
from typing import Any

from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import Executor

from server.engine.interface import Death
from server.errors import EngineStartFailed
from server.presence import Presence

_EXIT_SECONDS = 2  # for the process of an engine that has failed
_KILL_SECONDS = 0.2
_VMSTAT = Path("/proc/vmstat")  # of the whole machine, in a container too
_FORK_SERVER_ENDED = 255  # multiprocessing.popen_forkserver: nobody tells how the process ended
# A process that gets SIGTERM may also end in order, with 0.
_BY_SOMEONE = (0, -signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL, _FORK_SERVER_ENDED)


class MortalEngine(AsyncLLM):
    """Construct it outside the event loop, then call `start` in the event loop.

    It tells `presence` when its process ends; whoever restarts it says that it is back.
    """

    presence: Presence
    engine_core: Any
    output_handler: Any  # the task that reads the process's outputs; it ends with the process

    def start(self) -> None:
        """Start reading the process's outputs."""
        self._hangs = False
        self.note_life()
        self._run_output_handler()
        # The first callback: nobody learns of the death before `presence` does.
        self.output_handler.add_done_callback(lambda _: self.presence.leave())

    def note_life(self) -> None:
        """Count the kernel's kills for memory so far: later ones may be of this process."""
        self._oom_kills = count_oom_kills()

    @property
    def death(self) -> asyncio.Task[None]:
        """Ends when the process does; another one after each restart."""
        handler: asyncio.Task[None] = self.output_handler
        return handler

    @property
    def is_dead(self) -> bool:
        """Whether the process has ended; it may be started again."""
        return bool(self.engine_core.resources.engine_dead or self.output_handler.done())

    @property
    def errored(self) -> bool:
        """What vLLM's handlers ask before they begin: whether there is no engine any more."""
        return self.presence.is_over

    def kill(self) -> None:
        """End a process that hangs; it may be stopped, so that nothing else would end it."""
        self._hangs = True
        for process in self._processes:
            process.kill()

    async def autopsy(self) -> Death:
        """How the engine has ended; waits a moment until its process has."""
        for process in self._processes:
            await asyncio.to_thread(process.join, _EXIT_SECONDS)
        codes = [process.exitcode for process in self._processes]
        code = next((each for each in codes if each), codes[0])
        oom_kills = count_oom_kills() - self._oom_kills
        inside = self.output_processor.calls_inside()
        if self._hangs:
            return Death("it hung and was killed", from_outside=False, inside=inside)
        return Death(describe(code, oom_kills), is_from_outside(code, oom_kills), inside)

    async def restart(self) -> None:
        """Put a new process in the place of the one that has ended; it holds no adapter.

        Raises EngineStartFailed.
        """
        await asyncio.to_thread(self.engine_core.shutdown, timeout=0)
        try:
            core = await asyncio.to_thread(self._make_core)
        except Exception as error:
            raise EngineStartFailed(f"the engine did not start again: {error}") from error
        self.output_processor.forget(EngineDeadError())
        self.engine_core, self.output_handler = core, None
        self.start()
        reset = asyncio.create_task(self.reset_mm_cache())  # never ends if the process does
        await asyncio.wait({reset, self.death}, return_when=asyncio.FIRST_COMPLETED)
        if not reset.done() or reset.exception() is not None:
            reset.cancel()
            raise EngineStartFailed("the engine ended as soon as it had started again")

    def _make_core(self) -> Any:
        """As in AsyncLLM.__init__."""
        self.vllm_config.cache_config.num_gpu_blocks = None  # the new process's are added to it
        return EngineCoreClient.make_async_mp_client(
            vllm_config=self.vllm_config,
            executor_class=Executor.get_class(self.vllm_config),
            log_stats=self.log_stats,
        )

    async def abandon(self, restart: asyncio.Task[Any]) -> None:
        """End a restart under way: a thread waits for the process, which can't be cancelled."""
        while not restart.done():
            for process in multiprocessing.active_children():
                process.kill()
            await asyncio.wait({restart}, timeout=_KILL_SECONDS)

    @property
    def _processes(self) -> list[Any]:
        processes: list[Any] = self.engine_core.resources.engine_manager.processes
        return processes


def count_oom_kills() -> int:
    """How many processes the kernel has killed for their memory since it was started."""
    try:
        lines = _VMSTAT.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def is_from_outside(exit_code: int | None, oom_kills: int) -> bool:
    """Whether someone has ended the process, rather than what it did.

    One that a request ends fails by itself (an exception, a crash), fills the memory until the
    kernel kills it, or hangs until the server does. `kill -9` looks like the kernel's SIGKILL, but
    the kernel counts its own: `oom_kills` are those since the process was last seen alive.
    """
    return exit_code in _BY_SOMEONE and not oom_kills


def describe(exit_code: int | None, oom_kills: int) -> str:
    """`exit_code` as in multiprocessing: None is still running, -N was ended by signal N."""
    if exit_code is None:
        return "it failed"
    if exit_code >= 0:
        return f"its process ended with code {exit_code}"
    name = signal.Signals(-exit_code).name if -exit_code in {*signal.Signals} else str(-exit_code)
    memory = ", as the machine or its group ran out of memory" if oom_kills else ""
    return f"its process was ended by {name}{memory}"
