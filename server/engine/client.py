"""vLLM's engine client, extended: admits requests, and loads and removes adapters."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMClientError, VLLMValidationError
from vllm.lora.request import LoRARequest
from vllm.tokenizers.detokenizer_utils import convert_ids_list_to_tokens
from vllm.v1.engine import logprobs
from vllm.v1.engine.exceptions import EngineDeadError

from server.call import Call, Observer, current_call
from server.engine.chat_forms import ChatForms
from server.engine.grammars import Grammars
from server.engine.interface import (
    Admission,
    EngineGone,
    EngineRefusal,
    EngineSlow,
    Work,
)
from server.engine.outputs import AttributedOutputProcessor, TokenTexts, check_agreement
from server.engine.process import MortalEngine
from server.errors import InvalidRequest, RequestError, Unavailable
from server.kernels import STAGING
from server.kernels.versions import patch
from server.presence import Presence
from server.suspects import Suspects

logger = logging.getLogger("lorry.engine")

_MAX_LEAVING_SHARE = 1 / 4  # of the places: memory that evicted adapters may take beside them

# How vLLM wraps a worker's message: EngineCore._invoke_utility_method and the executors.
_WRAPPING = re.compile(r"^Call to \w+ method failed: (?:Worker failed with error '(.*?)'.*)?", re.S)

_TOO_SLOW = "the engine did not answer in time"
_SHUTTING_DOWN = "Server shutting down"  # EngineCore._reject_utility_in_shutdown


class Engine(MortalEngine):
    """The AdapterEngine of server/engine/interface.py on vLLM; attributes its work to calls.

    Construct it outside the event loop, then call `attach`, `start` in the event loop, and
    `admit_by` before the first call.
    """

    def attach(
        self,
        observer: Observer,
        grammars: Grammars,
        chat_forms: ChatForms,
        presence: Presence,
        suspects: Suspects,
    ) -> None:
        """Attribute outputs to calls, report tokens and steps to `observer`, check grammars."""
        self.grammars = grammars
        self.chat_forms = chat_forms
        self.presence = presence
        self.suspects = suspects
        self.output_processor.__class__ = AttributedOutputProcessor
        self.output_processor.observer = observer
        _remember_token_texts()
        self._drops: set[asyncio.Task[None]] = set()

    @property
    def max_sequences(self) -> int:
        return int(self.scheduler_config.max_num_seqs)

    def admit_by(self, admission: Admission) -> None:
        self._admission = admission
        self.output_processor.admission = admission

    async def generate(
        self,
        prompt: Any,
        sampling_params: Any,
        request_id: str,
        *,
        lora_request: LoRARequest | None = None,
        **options: Any,
    ) -> AsyncGenerator[Any, None]:
        """As in vLLM, once it is the request's turn and its adapter is there.

        If the engine ends while nothing of the answer has left, the request is asked again.
        """
        call = current_call.get()
        if call is None:
            raise RuntimeError("the engine answers calls only")
        check_agreement(call, lora_request)
        try:
            if (form := await self.chat_forms.of(call.version)) is not None:
                form.add_end(sampling_params, self.get_tokenizer())
            await self._settle_grammar(call, sampling_params)
            work = self._work(request_id, prompt, sampling_params)
            while True:
                death, has_begun = self.death, False
                try:
                    async with self._enter(call, work) as request:
                        outputs = super().generate(
                            prompt, sampling_params, request_id, lora_request=request, **options
                        )
                        async with aclosing(outputs):
                            async for output in outputs:
                                has_begun = True
                                yield output
                    return
                except EngineDeadError:
                    if has_begun or call.status:
                        raise
                await asyncio.wait({death})  # it may not have been noticed yet
                _forget_attempt(call, request_id)
                work = replace(work, is_again=True)
        except RequestError as error:
            call.refusal = error
            _note_refusal(call, error)
            raise VLLMValidationError(str(error)) from None

    @asynccontextmanager
    async def _enter(self, call: Call, work: Work) -> AsyncIterator[LoRARequest | None]:
        """Wait for the request's turn; the adapter that it runs with. Raises RequestError."""
        async with self._admission.enter(call, work) as lease, self.suspects.inside(call.digest):
            if lease is not None and lease.lost:  # the engine has ended since then
                raise EngineDeadError
            call.lease = lease
            yield None if lease is None else lease.request

    def _work(self, request_id: str, prompt: Any, params: Any) -> Work:
        tokens = len(prompt.get("prompt_token_ids") or ())
        longest = max(self.model_config.max_model_len - tokens, 0)
        return Work(request_id, tokens, params.n, min(params.max_tokens or longest, longest))

    async def add_request(self, *args: Any, **kwargs: Any) -> Any:
        """As in vLLM, which refuses some requests only here."""
        try:
            if self.is_dead:
                raise EngineDeadError
            return await super().add_request(*args, **kwargs)
        except Exception as error:
            if (call := current_call.get()) is not None:
                _note_refusal(call, error)
            raise

    async def _settle_grammar(self, call: Call, params: Any) -> None:
        """Raises RequestError."""
        if params.structured_outputs is not None:
            params.structured_outputs = await self.grammars.settle(
                params.structured_outputs, call.flow
            )

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
            self.note_life()
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


@patch("0.32")
def _remember_token_texts() -> None:
    logprobs.convert_ids_list_to_tokens = TokenTexts(convert_ids_list_to_tokens)


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
