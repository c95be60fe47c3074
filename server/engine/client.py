"""vLLM's engine client, extended: loads and removes adapters, and outlives the engine's process.

An engine that has ended is replaced behind the same object, so vLLM's app and its requests keep it.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from copy import copy
from pathlib import Path
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens
from vllm.v1.engine import logprobs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor import Executor

from server.call import Call, Observer, current_call
from server.engine import deaths
from server.engine.grammars import Grammars
from server.engine.interface import Death, EngineGone, EngineRefusal, EngineSlow
from server.engine.outputs import AttributedOutputProcessor, TokenTexts
from server.errors import EngineStartFailed, InvalidRequest, RequestError, Unavailable
from server.kernels import STAGING
from server.presence import Presence
from server.suspects import Suspects

logger = logging.getLogger("lorry.engine")

_MAX_LEAVING_SHARE = 1 / 4  # of the places: memory that evicted adapters may take beside them

# How vLLM wraps a worker's message: EngineCore._invoke_utility_method and the executors.
_WRAPPING = re.compile(r"^Call to \w+ method failed: (?:Worker failed with error '(.*?)'.*)?", re.S)

_EXIT_SECONDS = 2  # for the process of an engine that has failed
_KILL_SECONDS = 0.2

_TOO_SLOW = "the engine did not answer in time"
_SHUTTING_DOWN = "Server shutting down"  # EngineCore._reject_utility_in_shutdown


class Engine(AsyncLLM):
    """The AdapterEngine of server/engine/interface.py on vLLM; attributes its work to calls.

    Construct it outside the event loop, then call `attach`, and `start` in the event loop.
    """

    engine_core: Any
    output_handler: Any  # the task that reads the engine's outputs; it ends with the engine

    def attach(
        self, observer: Observer, grammars: Grammars, presence: Presence, suspects: Suspects
    ) -> None:
        """Attribute outputs to calls, report tokens and steps to `observer`, check grammars.

        Tells `presence` when the engine ends; whoever restarts it says that it is back.
        """
        self.grammars = grammars
        self.presence = presence
        self.suspects = suspects
        self.output_processor.__class__ = AttributedOutputProcessor
        self.output_processor.observer = observer
        logprobs.convert_ids_list_to_tokens = TokenTexts(convert_ids_list_to_tokens)
        self._drops: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Start reading the engine's outputs."""
        self._oom_kills = deaths.count_oom_kills()
        self._hangs = False
        self._run_output_handler()
        self.output_handler.add_done_callback(lambda _: self.presence.leave())

    @property
    def death(self) -> asyncio.Task[None]:
        """Ends when the engine's process does."""
        handler: asyncio.Task[None] = self.output_handler
        return handler

    def kill(self) -> None:
        """End a process that hangs; it may be stopped, so that it would not end by itself."""
        self._hangs = True
        for process in self._processes:
            process.kill()

    async def autopsy(self) -> Death:
        """How the engine has ended; waits a moment until its process has."""
        for process in self._processes:
            await asyncio.to_thread(process.join, _EXIT_SECONDS)
        codes = [process.exitcode for process in self._processes]
        code = next((each for each in codes if each), codes[0])
        oom_kills = deaths.count_oom_kills() - self._oom_kills
        hung = "it hung and was killed"
        return Death(
            cause=hung if self._hangs else deaths.describe(code, oom_kills),
            from_outside=not self._hangs and deaths.is_from_outside(code, oom_kills),
            inside=self.output_processor.calls_inside(),
        )

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
        try:
            await self._ask(self.reset_mm_cache(), None)
        except (EngineGone, EngineRefusal) as error:
            raise EngineStartFailed(f"the engine ended as it started again: {error}") from None

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

    @property
    def is_dead(self) -> bool:
        """Whether its process has ended; it may be started again."""
        return bool(self.engine_core.resources.engine_dead or self.output_handler.done())

    @property
    def errored(self) -> bool:
        """What vLLM's handlers ask before they begin: only whether there is no more engine."""
        return self.presence.is_over

    async def generate(
        self, prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        """As in vLLM; but while nothing of the answer has left, the engine's death is a pause.

        The request then waits for the engine to be back, and is asked again.
        """
        call = current_call.get()
        while True:
            death, has_begun = self.death, False
            try:
                async with self._enter(call, options) as options:
                    outputs = super().generate(prompt, sampling_params, request_id, **options)
                    async with aclosing(outputs):
                        async for output in outputs:
                            has_begun = True
                            yield output
                return
            except EngineDeadError:
                if has_begun or call is None or call.status:
                    raise
            await asyncio.wait({death})  # it may not have been noticed yet
            await self._wait_back()
            _forget_attempt(call, request_id)

    @asynccontextmanager
    async def _enter(self, call: Call | None, options: Any) -> AsyncIterator[Any]:
        """The options of a request that may go into the engine for the length of the block."""
        if call is None:
            yield options
            return
        async with AsyncExitStack() as stack:
            if call.lease is not None and call.lease.lost:
                lease = await stack.enter_async_context(self.leases(call.version, call))
                call.lease = lease
                options = options | {"lora_request": lease.request}
            try:
                await stack.enter_async_context(self.suspects.inside(call.digest))
            except RequestError as error:
                call.refusal = error
                raise VLLMValidationError(str(error)) from None
            yield options

    async def _wait_back(self) -> None:
        try:
            await self.presence.wait()
        except EngineGone:
            raise EngineDeadError from None

    async def add_request(
        self, request_id: str, prompt: Any, params: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """As in vLLM, which refuses some requests only here; their grammars are settled first."""
        try:
            params = await self._settle_grammar(params)
            if self.is_dead:
                raise EngineDeadError
            return await super().add_request(request_id, prompt, params, *args, **kwargs)
        except Exception as error:
            if (call := current_call.get()) is not None:
                _note_refusal(call, error)
            raise

    async def _settle_grammar(self, params: Any) -> Any:
        """The parameters with a grammar that compiles; the given ones may be needed again."""
        wanted = getattr(params, "structured_outputs", None)
        if wanted is None:
            return params
        call = current_call.get()
        params = copy(params)
        try:
            params.structured_outputs = await self.grammars.settle(
                wanted, call.flow if call else ""
            )
            return params
        except RequestError as error:
            if call is not None:
                call.refusal = error
            raise VLLMValidationError(str(error)) from None

    def make_request(self, engine_name: str, integer_id: int, path: Path) -> LoRARequest:
        return LoRARequest(
            lora_name=engine_name, lora_int_id=integer_id, lora_path=str(path.resolve())
        )

    async def add_adapter(
        self, request: LoRARequest, leaving: Sequence[int], within: float
    ) -> None:
        """Raises EngineRefusal with the worker's message, or EngineGone.

        The engine works in order, so `leaving` has left before a request can use the new adapter;
        its memory is freed only when the running step ends.
        """
        if self._stages:
            for integer_id in leaving:
                await self._drop_soon(integer_id, within)
            adapter = (request.lora_name, request.lora_int_id, request.lora_path)
            await self._ask(self.engine_core.call_utility_async("stage_adapter", *adapter), within)
            return
        for integer_id in leaving:
            await self.remove_adapter(integer_id, within)
        if not await self._ask(self.add_lora(request), within):
            raise EngineRefusal("no reason given")

    async def remove_adapter(self, integer_id: int, within: float | None) -> None:
        """Raises EngineGone; without `within` only when the engine has ended.

        An id that was never there is no error.
        """
        try:
            if self._stages:
                await self._call_workers("drop_adapter", integer_id, within=within)
            else:
                await self._ask(self.remove_lora(integer_id), within)
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None

    async def _drop_soon(self, integer_id: int, within: float) -> None:
        """Start to remove it once few enough others are leaving; raises EngineGone after `within`.

        Returns before it has left.
        """
        places = self.vllm_config.lora_config.max_cpu_loras
        while len(self._drops) >= max(1, int(places * _MAX_LEAVING_SHARE)):
            left, _ = await asyncio.wait(
                self._drops, timeout=within, return_when=asyncio.FIRST_COMPLETED
            )
            if not left:
                raise EngineSlow(_TOO_SLOW)
        # Without a time limit: it takes memory until it has left.
        task = asyncio.create_task(self.remove_adapter(integer_id, None))
        self._drops.add(task)
        task.add_done_callback(self._dropped)

    def _dropped(self, task: asyncio.Task[None]) -> None:
        self._drops.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("the engine did not confirm that an adapter left: %s", error)

    async def held_adapters(self, within: float) -> Mapping[str, list[int]]:
        """The integer ids in the first worker's host memory and slots; raises EngineGone."""
        try:
            if self._stages:
                held: list[Mapping[str, list[int]]] = await self._call_workers(
                    "held_adapters", within=within
                )
                return held[0]
            return {"host": list(await self._ask(self.list_loras(), within)), "device": []}
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None

    async def slot_changes(self, within: float) -> Mapping[str, list[str]] | None:
        """From the first worker (server/kernels/staging.py); raises EngineGone."""
        if not self._stages:
            return None
        try:
            changes: list[Mapping[str, list[str]]] = await self._call_workers(
                "slot_changes", within=within
            )
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None
        return changes[0]

    async def ping(self) -> None:
        """Raises EngineGone. However long it takes: the caller watches the time."""
        try:
            await self._ask(self.is_paused(), None)
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None

    @property
    def _stages(self) -> bool:
        """Whether the workers have server/kernels/staging.py as their extension."""
        return bool(self.vllm_config.parallel_config.worker_extension_cls == STAGING)

    async def _call_workers(self, method: str, *arguments: Any, within: float | None) -> list[Any]:
        """Call a method of server/kernels/staging.py in every worker."""
        answers: list[Any] = await self._ask(self.collective_rpc(method, args=arguments), within)
        return answers

    async def _ask(self, request: Awaitable[Any], within: float | None) -> Any:
        """Await a call into the engine process, until it answers, ends or takes too long.

        vLLM never resolves the pending calls of an engine that dies.
        """
        death = self.death
        asked = asyncio.ensure_future(request)
        done, _ = await asyncio.wait(
            {asked, death}, timeout=within, return_when=asyncio.FIRST_COMPLETED
        )
        if asked not in done:
            asked.cancel()
            if death in done:
                raise EngineGone("the engine ended")
            raise EngineSlow(_TOO_SLOW)
        try:
            return asked.result()
        except Exception as error:  # noqa: BLE001 - vLLM raises the bare class with a message
            if self.is_dead or _SHUTTING_DOWN in str(error):
                await asyncio.wait({death}, timeout=within)  # then `presence` says so too
                raise EngineGone("the engine ended") from None
            raise EngineRefusal(_reason(error)) from None

    def is_using(self, engine_name: str) -> bool:
        return any(
            state.lora_name == engine_name
            for state in self.output_processor.request_states.values()
        )


def _forget_attempt(call: Call, request_id: str) -> None:
    """Drop what a request that is asked again has left on its call: the record has one answer."""
    call.sequences[:] = [each for each in call.sequences if each.engine_request_id != request_id]
    if call.engine_error == EngineDeadError.__name__:
        call.engine_error = None


def _note_refusal(call: Call, error: Exception) -> None:
    """Keep why the engine did not take a request: vLLM tells it in a form of each endpoint."""
    if call.refusal is None:
        call.refusal = _as_refusal(error)
    if call.refusal is None:
        call.engine_error = type(error).__name__
    else:
        call.late_status, call.error_code = call.refusal.status, call.refusal.code


def _as_refusal(error: Exception) -> RequestError | None:
    if isinstance(error, VLLMClientError | ValueError | TypeError):
        return InvalidRequest(str(error), param=getattr(error, "parameter", None))
    if isinstance(error, GracefulHTTPError):
        return Unavailable(str(error), retry_after=1)
    return None


def _reason(error: Exception) -> str:
    """The worker's message without vLLM's wrapping and without paths of this machine."""
    text = str(error)
    match = _WRAPPING.match(text)
    if match is not None:
        text = match.group(1) or text[match.end() :]
    text = re.sub(r"(/[\w.@:+-]+){2,}", "...", text).strip()
    return text or "no reason given"
