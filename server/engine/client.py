"""vLLM's engine client as the rest of the server sees it: adapters in and out, and its death."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMClientError
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from server.call import Call, Observer, current_call
from server.engine.interface import EngineGone, EngineRefusal, EngineSlow
from server.engine.outputs import AttributedOutputProcessor
from server.kernels import STAGING

logger = logging.getLogger("lorry.engine")

_LEAVING = 4  # a fourth of the places is what the engine's memory must have room for beside them

# How vLLM wraps what the worker said: EngineCore._invoke_utility_method and the executors.
_WRAPPING = re.compile(r"^Call to \w+ method failed: (?:Worker failed with error '(.*?)'.*)?", re.S)

_TOO_SLOW = "the engine did not answer in time"
_SHUTTING_DOWN = "Server shutting down"  # EngineCore._reject_utility_in_shutdown


class Engine(AsyncLLM):
    """An AsyncLLM (server.engine.interface.AdapterEngine) that attributes what it does to calls.

    Constructed outside the event loop: `start` must follow, in it.
    """

    def attach(self, observer: Observer) -> None:
        self.output_processor.__class__ = AttributedOutputProcessor
        self.output_processor.observer = observer
        self._drops: set[asyncio.Task[None]] = set()

    def start(self) -> asyncio.Task[None]:
        """Begin reading the engine's outputs. The task ends when the engine process does."""
        self._run_output_handler()
        handler: asyncio.Task[None] = self.output_handler
        return handler

    async def add_request(self, *args: Any, **kwargs: Any) -> Any:
        """vLLM's, which refuses some requests only here: inside a stream, after its 200."""
        try:
            return await super().add_request(*args, **kwargs)
        except Exception as error:
            if (call := current_call.get()) is not None:
                _note_refusal(call, error)
            raise

    def make_request(self, engine_name: str, integer_id: int, path: Path) -> LoRARequest:
        return LoRARequest(
            lora_name=engine_name, lora_int_id=integer_id, lora_path=str(path.resolve())
        )

    async def add_adapter(
        self, request: LoRARequest, leaving: Sequence[int], within: float
    ) -> None:
        """Raises EngineRefusal with the worker's own words, or EngineGone.

        Those of `leaving` are out of the engine before a request can bring it in, as the engine
        does what it is told in turn; until its running step ends, their memory is still taken.
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

        Removing what was never there is fine.
        """
        try:
            if self._stages:
                await self._tell("drop_adapter", integer_id, within=within)
            else:
                await self._ask(self.remove_lora(integer_id), within)
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None

    async def _drop_soon(self, integer_id: int, within: float) -> None:
        """Tell it to leave, as soon as few enough do; raises EngineGone if that takes too long."""
        places = self.vllm_config.lora_config.max_cpu_loras
        while len(self._drops) >= max(1, places // _LEAVING):
            left, _ = await asyncio.wait(
                self._drops, timeout=within, return_when=asyncio.FIRST_COMPLETED
            )
            if not left:
                raise EngineSlow(_TOO_SLOW)
        # However long it takes: until then its memory is taken.
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
                held: Mapping[str, list[int]] = (await self._tell("held_adapters", within=within))[
                    0
                ]
                return held
            return {"host": list(await self._ask(self.list_loras(), within)), "device": []}
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None

    async def slot_changes(self, within: float) -> Mapping[str, list[str]] | None:
        """Of the first worker (server/kernels/staging.py); raises EngineGone."""
        if not self._stages:
            return None
        try:
            changes: Mapping[str, list[str]] = (await self._tell("slot_changes", within=within))[0]
        except EngineRefusal as error:
            raise EngineGone(str(error)) from None
        return changes

    @property
    def _stages(self) -> bool:
        """Whether the workers carry server/kernels/staging.py."""
        return bool(self.vllm_config.parallel_config.worker_extension_cls == STAGING)

    async def _tell(self, method: str, *arguments: Any, within: float | None) -> list[Any]:
        """A method of server/kernels/staging.py in every worker."""
        answers: list[Any] = await self._ask(self.collective_rpc(method, args=arguments), within)
        return answers

    async def _ask(self, request: Awaitable[Any], within: float | None) -> Any:
        """A call into the engine process that ends also when the engine does.

        When the engine dies, vLLM never resolves its pending calls.
        """
        asked = asyncio.ensure_future(request)
        done, _ = await asyncio.wait(
            {asked, self.output_handler}, timeout=within, return_when=asyncio.FIRST_COMPLETED
        )
        if asked not in done:
            asked.cancel()
            if self.output_handler in done:
                raise EngineGone("the engine ended")
            raise EngineSlow(_TOO_SLOW)
        try:
            return asked.result()
        except Exception as error:  # noqa: BLE001 - vLLM raises the bare class, with a text
            if self.errored or _SHUTTING_DOWN in str(error):
                raise EngineGone("the engine ended") from None
            raise EngineRefusal(_reason(error)) from None

    def is_using(self, engine_name: str) -> bool:
        return any(
            state.lora_name == engine_name
            for state in self.output_processor.request_states.values()
        )


def _note_refusal(call: Call, error: Exception) -> None:
    if isinstance(error, VLLMClientError | ValueError | TypeError):
        call.refused_late = 400
        call.error_code = "invalid_request"
    elif isinstance(error, GracefulHTTPError):
        call.refused_late = int(error.http_status)
        call.error_code = "unavailable"
    else:
        call.engine_error = type(error).__name__


def _reason(error: Exception) -> str:
    """What the worker said, without vLLM's wrapping and without paths of this machine."""
    text = str(error)
    match = _WRAPPING.match(text)
    if match is not None:
        text = match.group(1) or text[match.end() :]
    text = re.sub(r"(/[\w.@:+-]+){2,}", "...", text).strip()
    return text or "no reason given"
