"""vLLM's output processor, which also records on each call what the engine did for it.

vLLM's own metrics and traces show neither the adapter of a request nor aborted requests. Every
sequence passes here, so this class records it. An exception in it would end vLLM's output loop and
with it the engine: our code in that loop is `harmless`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from http import HTTPStatus
from typing import Any

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.v1.engine.async_llm import InputStreamError
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.metrics.stats import LoRARequestStates

from server.call import Call, Observer, Sequence, current_call
from server.engine.interface import Admission, label_of
from server.errors import EXITS

logger = logging.getLogger("lorry.engine.outputs")
_BROKEN = (
    "The adapter {} computes values that are not finite or far too large, so it can't answer: "
    "publish a repaired version."
)
_NO_TEXT = "The answer's tokens can't be decoded."
_UNFIT = HTTPStatus.UNPROCESSABLE_ENTITY


def harmless(record: Callable[..., None]) -> Callable[..., None]:
    """Log exceptions of a method that only records, so that vLLM goes on."""

    @wraps(record)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            record(*args, **kwargs)
        except Exception:
            logger.exception("what the engine did could not be attributed")

    return guarded


def ending_the_call(call: Call, state: Any, update: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap what makes text of a sequence's tokens: what it raises ends the call, not the engine.

    Rust code (tokenizers) panics with a BaseException, at which vLLM's output loop would just end.
    """

    @wraps(update)
    def guarded(*args: Any) -> Any:
        try:
            return update(*args)
        except EXITS:
            raise
        except BaseException as error:  # noqa: BLE001
            call.fault = call.fault or error
            call.engine_error = type(error).__name__
            if state.queue is not None:
                # Wrapped like this, vLLM's generate() aborts the request and raises the inner one.
                state.queue.put(InputStreamError(RuntimeError(_NO_TEXT)))
            return None  # no stop string

    return guarded


class AttributedOutputProcessor(OutputProcessor):
    """Installed by assigning `__class__`: vLLM constructs its processor by name."""

    observer: Observer
    admission: Admission

    def add_request(
        self,
        request: Any,
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: Any = None,
    ) -> None:
        # Still in the call's own task: vLLM gets here before its first await.
        call = current_call.get()
        if call is not None:
            check_agreement(call, request.lora_request)
        super().add_request(request, prompt, parent_req, request_index, queue)
        state = self.request_states.get(request.request_id)
        if call is not None and state is not None:
            self._attach(state, call, request_index)

    @harmless
    def _attach(self, state: Any, call: Call, request_index: int) -> None:
        sequence = Sequence(
            engine_request_id=state.external_req_id or state.request_id,
            prompt_tokens=state.prompt_len,
            stats=state.stats,
            shares_prompt=request_index > 0,
            queued=call.queued,
        )
        call.sequences.append(sequence)
        state.lorry = (call, sequence)
        if state.detokenizer is not None:
            state.detokenizer.update = ending_the_call(call, state, state.detokenizer.update)

    def _update_stats_from_output(
        self, req_state: Any, engine_core_output: Any, timestamp: float | None, stats: Any
    ) -> None:
        last = req_state.stats.last_token_ts if req_state.stats is not None else 0.0
        super()._update_stats_from_output(req_state, engine_core_output, timestamp, stats)
        self._record_output(req_state, engine_core_output, timestamp, last)

    @harmless
    def _record_output(self, state: Any, output: Any, timestamp: float | None, last: float) -> None:
        if (attached := _attached(state)) is None:
            return
        call, sequence = attached
        if output.prefill_stats is not None:
            sequence.cached_tokens = output.prefill_stats.num_cached_tokens
        if output.num_nans_in_logits:
            self._end_broken(state, call, output.num_nans_in_logits)
        if last and timestamp and output.new_token_ids:
            self.observer.token_made(call, timestamp - last)

    def _end_broken(self, state: Any, call: Call, repaired: int) -> None:
        """End a request whose adapter computes broken values (server/kernels/slots.py counts)."""
        call.repaired_values = repaired
        if call.lease is not None:
            call.lease.repaired_values = repaired
        call.engine_error = "AdapterUnhealthy"
        if state.queue is not None:  # sequences of one call may share it
            name = call.version.label if call.version is not None else state.lora_name
            # Wrapped like this, vLLM's generate() aborts the request and raises the inner error.
            state.queue.put(InputStreamError(GracefulHTTPError(_BROKEN.format(name), _UNFIT)))

    def _update_stats_from_finished(
        self, req_state: Any, finish_reason: Any, iteration_stats: Any
    ) -> None:
        super()._update_stats_from_finished(req_state, finish_reason, iteration_stats)
        self._record_end(req_state, str(finish_reason))

    @harmless
    def _record_end(self, state: Any, reason: str) -> None:
        if (attached := _attached(state)) is not None:
            attached[1].finish_reason = reason

    def _finish_request(self, req_state: Any) -> None:
        super()._finish_request(req_state)
        self._record_refusal(req_state)

    @harmless
    def _record_refusal(self, state: Any) -> None:
        """Since vLLM 0.33 the engine may refuse a request that it was given, and no reason follows.
        In any other case the reason comes next."""
        attached = _attached(state)
        if attached is not None and attached[1].finish_reason is None:
            attached[1].finish_reason = "error"

    def abort_requests(self, request_ids: Any, internal: bool) -> list[str]:
        ids = list(request_ids)
        if internal:
            self._record_aborts(ids)
        aborted: list[str] = super().abort_requests(ids, internal)
        return aborted

    @harmless
    def _record_aborts(self, ids: list[str]) -> None:
        for request_id in ids:
            if (attached := _attached(self.request_states.get(request_id))) is not None:
                attached[1].finish_reason = "error" if attached[0].repaired_values else "abort"

    def propagate_error(self, e: Exception) -> None:
        self._record_error(type(e).__name__)
        super().propagate_error(e)

    @harmless
    def _record_error(self, name: str) -> None:
        for state in self.request_states.values():
            if (attached := _attached(state)) is not None:
                attached[0].engine_error = name
                attached[1].finish_reason = "error"

    def calls_inside(self) -> tuple[Call, ...]:
        """The calls with a request in the engine, or in it when it ended."""
        attached = map(_attached, self.request_states.values())
        return tuple({each[0].engine_id: each[0] for each in attached if each}.values())

    def forget(self, error: Exception) -> None:
        """The engine has ended: drop its requests, which end with `error` if they have not yet."""
        super().propagate_error(error)
        self.request_states.clear()
        self.parent_requests.clear()
        self.external_req_ids.clear()
        self.lora_states = LoRARequestStates(self.log_stats)
        self.observer.step_made(0)

    def update_scheduler_stats(self, scheduler_stats: Any) -> None:
        super().update_scheduler_stats(scheduler_stats)
        self._record_step(scheduler_stats)

    @harmless
    def _record_step(self, stats: Any) -> None:
        if stats is not None:
            self.observer.step_made(stats.num_running_reqs)
        self.admission.step_made()


class TokenTexts:
    """vllm.tokenizers.detokenizer_utils.convert_ids_list_to_tokens, which remembers each id's text.

    vLLM decodes every token that logprobs show by itself, on the event loop: twenty for each token
    of each answer. At most one text is kept for each id of the vocabulary.
    """

    def __init__(self, decode: Callable[[Any, list[int]], list[str]]) -> None:
        self._decode = decode
        self._known: dict[int, str] = {}

    def __call__(self, tokenizer: Any, token_ids: list[int]) -> list[str]:
        known = self._known
        new = [each for each in set(token_ids) if each not in known]
        known.update(zip(new, self._decode(tokenizer, new), strict=True))
        return [known[each] for each in token_ids]


def _attached(state: Any) -> tuple[Call, Sequence] | None:
    """What `_attach` put on vLLM's request state; None for a request without a call."""
    attached: tuple[Call, Sequence] | None = getattr(state, "lorry", None)
    return attached


def check_agreement(call: Call, lora_request: Any) -> None:
    """Raises if vLLM read another `model` from the body than we did, as from a duplicate key."""
    wanted = call.version.label if call.version is not None else None
    found = label_of(lora_request.lora_name) if lora_request is not None else None
    if wanted != found:
        raise VLLMValidationError("The request names its `model` in two ways.", parameter="model")
