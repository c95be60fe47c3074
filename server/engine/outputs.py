"""vLLM's output processor, which also tells each call what the engine did for it.

vLLM's own metrics and traces know neither the adapter of a request nor a request that was
aborted. Every sequence passes here, so here its call hears of it. An exception in this class
would end vLLM's output loop and with it the engine: what of ours runs there is `harmless`.
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

from server.call import Call, Observer, Sequence, current_call

logger = logging.getLogger("lorry.engine.outputs")
_BROKEN = (
    "The adapter {} computes values that are not finite or far too large, so it can't answer: "
    "publish a repaired version."
)
_UNFIT = HTTPStatus.UNPROCESSABLE_ENTITY


def harmless(note: Callable[..., None]) -> Callable[..., None]:
    """For what is only noted: a fault in it is logged, and vLLM goes on."""

    @wraps(note)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            note(*args, **kwargs)
        except Exception:
            logger.exception("what the engine did could not be attributed")

    return guarded


class AttributedOutputProcessor(OutputProcessor):
    """Put in place by assigning `__class__`: vLLM builds its processor by name."""

    observer: Observer

    def add_request(
        self,
        request: Any,
        prompt: str | None,
        parent_req: Any = None,
        request_index: int = 0,
        queue: Any = None,
    ) -> None:
        # Still in the call's own task: vLLM calls this before its first await.
        call = current_call.get()
        if call is not None:
            _check_agreement(call, request.lora_request)
        super().add_request(request, prompt, parent_req, request_index, queue)
        state = self.request_states.get(request.request_id)
        if call is not None and state is not None:
            self._tie(state, call, request_index)

    @harmless
    def _tie(self, state: Any, call: Call, request_index: int) -> None:
        sequence = Sequence(
            engine_request_id=state.external_req_id or state.request_id,
            prompt_tokens=state.prompt_len,
            stats=state.stats,
            shares_prompt=request_index > 0,
        )
        call.sequences.append(sequence)
        state.lorry = (call, sequence)

    def _update_stats_from_output(
        self, req_state: Any, engine_core_output: Any, timestamp: float | None, stats: Any
    ) -> None:
        last = req_state.stats.last_token_ts if req_state.stats is not None else 0.0
        super()._update_stats_from_output(req_state, engine_core_output, timestamp, stats)
        self._tell(req_state, engine_core_output, timestamp, last)

    @harmless
    def _tell(self, state: Any, output: Any, timestamp: float | None, last: float) -> None:
        if (told := getattr(state, "lorry", None)) is None:
            return
        call, sequence = told
        if output.prefill_stats is not None:
            sequence.cached_tokens = output.prefill_stats.num_cached_tokens
        if output.num_nans_in_logits:
            self._end_broken(state, call, output.num_nans_in_logits)
        if last and timestamp and output.new_token_ids:
            self.observer.token_made(call, timestamp - last)

    def _end_broken(self, state: Any, call: Call, repaired: int) -> None:
        """End a request whose adapter computes nonsense (server/kernels/slots.py counts it)."""
        call.repaired_values = repaired
        if call.lease is not None:
            call.lease.repaired_values = repaired
        call.engine_error = "AdapterUnhealthy"
        if state.queue is not None:  # each of a call's sequences has, or shares, one
            name = call.version.label if call.version is not None else state.lora_name
            # In this wrapping, vLLM's generate() aborts the request and raises what is in it.
            state.queue.put(InputStreamError(GracefulHTTPError(_BROKEN.format(name), _UNFIT)))

    def _update_stats_from_finished(
        self, req_state: Any, finish_reason: Any, iteration_stats: Any
    ) -> None:
        super()._update_stats_from_finished(req_state, finish_reason, iteration_stats)
        self._note_end(req_state, str(finish_reason))

    @harmless
    def _note_end(self, state: Any, reason: str) -> None:
        if (told := getattr(state, "lorry", None)) is not None:
            told[1].finish_reason = reason

    def abort_requests(self, request_ids: Any, internal: bool) -> list[str]:
        ids = list(request_ids)
        if internal:
            self._note_aborts(ids)
        aborted: list[str] = super().abort_requests(ids, internal)
        return aborted

    @harmless
    def _note_aborts(self, ids: list[str]) -> None:
        for request_id in ids:
            if (told := getattr(self.request_states.get(request_id), "lorry", None)) is not None:
                told[1].finish_reason = "error" if told[0].repaired_values else "abort"

    def propagate_error(self, e: Exception) -> None:
        self._note_error(type(e).__name__)
        super().propagate_error(e)

    @harmless
    def _note_error(self, name: str) -> None:
        for state in self.request_states.values():
            if (told := getattr(state, "lorry", None)) is not None:
                told[0].engine_error = name
                told[1].finish_reason = "error"

    def update_scheduler_stats(self, scheduler_stats: Any) -> None:
        super().update_scheduler_stats(scheduler_stats)
        self._note_step(scheduler_stats)

    @harmless
    def _note_step(self, stats: Any) -> None:
        if stats is not None:
            self.observer.step_made(stats.num_running_reqs)


def _check_agreement(call: Call, lora_request: Any) -> None:
    """Raises when vLLM read another `model` off the body than we did, as from a doubled key."""
    wanted = call.lease.engine_name if call.lease is not None else None
    found = lora_request.lora_name if lora_request is not None else None
    if wanted != found:
        raise VLLMValidationError("The request names its `model` in two ways.", parameter="model")
