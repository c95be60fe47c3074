"""Records which adapter served a call: in response headers, metrics, span and log line.

All four are read off the same `Call`, so they agree.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

from opentelemetry.trace import format_span_id, format_trace_id

from adapters.sums import parts_of
from server.call import MAX_RECORDED_SEQUENCES, Call
from server.gate.usage import UsageCounts
from server.telemetry.logs import write_call
from server.telemetry.metrics import Metrics
from server.telemetry.tracing import Tracing

logger = logging.getLogger("lorry.attribution")

Headers = list[tuple[bytes, bytes]]


def response_headers(call: Call) -> Headers:
    """The `x-lorry-*` headers of the contract, and W3C `traceresponse` (Trace Context 2)."""
    context = call.span.get_span_context()
    trace_id, span_id = format_trace_id(context.trace_id), format_span_id(context.span_id)
    trace = f"00-{trace_id}-{span_id}-{int(context.trace_flags):02x}"
    headers = {"x-request-id": call.request_id, "traceresponse": trace}
    if call.replica:
        headers["x-lorry-replica"] = call.replica
    if call.resolved:
        headers["x-lorry-base"] = call.base
        headers["x-lorry-adapter"] = call.version.label if call.version else call.adapter_label
        if call.version is not None:
            headers["x-lorry-adapter-digest"] = call.version.digest
    if call.allowance is not None:
        headers |= call.allowance.headers()
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


def describe(call: Call) -> dict[str, Any]:
    """The call as one flat record: the log line."""
    version = call.version
    first = call.time_to_first_token
    return {
        "request_id": call.request_id,
        "replica": call.replica or None,
        "response_id": call.response_id,
        "trace_id": format_trace_id(call.span.get_span_context().trace_id),
        "key": call.key.name if call.key else None,
        "endpoint": call.endpoint,
        "model": call.requested_model,
        "served_model": call.response_model,
        "adapter": call.adapter_label,
        "version": (version.version or None) if version else None,
        "digest": version.digest if version else None,
        "parts": [part.as_json() for part in parts_of(version)] or None,
        "base": call.base,
        "stream": call.stream,
        "status": call.status,
        "outcome": call.outcome,
        "error_code": call.error_code,
        "finish_reasons": call.finish_reasons[:MAX_RECORDED_SEQUENCES],
        "prompt_tokens": call.prompt_tokens,
        "generation_tokens": call.generation_tokens,
        "cached_prompt_tokens": call.cached_tokens,
        "ttft_seconds": round(first, 6) if first is not None else None,
        "duration_seconds": round(call.duration, 6),
        "cold_start": call.load_started is not None,
    }


class Recorder:
    """Follows calls from `start` through `begin` to `end`, and writes them out there."""

    def __init__(
        self,
        base: str,
        metrics: Metrics,
        tracing: Tracing,
        replica: str = "",
        usage: UsageCounts | None = None,
    ) -> None:
        self._base = base
        self._replica = replica
        self._usage = usage
        self._metrics = metrics
        self._tracing = tracing

    def start(
        self,
        *,
        request_id: str,
        endpoint: str,
        operation: str,
        headers: Mapping[str, str],
        caller: str = "",
    ) -> Call:
        """A call has arrived; its span continues the caller's trace."""
        engine_id = uuid.uuid4().hex
        return Call(
            request_id=request_id or engine_id,
            engine_id=engine_id,
            endpoint=endpoint,
            operation=operation,
            base=self._base,
            replica=self._replica,
            caller=caller,
            span=self._tracing.start(operation, headers),
        )

    def begin(self, call: Call, body: bytes) -> None:
        """The call's adapter is known: it is in flight until `end`."""
        call.content = self._tracing.capture(call, body)
        self._metrics.begin(call, _trace_of(call))

    def end(self, call: Call) -> None:
        """Write the call to metrics, span and log.

        Never raises: a recording error must not fail the request.
        """
        call.ended = time.monotonic()
        try:
            if call.disconnected:
                _end_sequences(call)
            record = describe(call)
            self._metrics.record(call, _trace_of(call))
            if self._usage is not None:
                self._usage.record(call)
            self._tracing.end(call)
            write_call(record)
        except Exception:
            logger.exception("a call could not be recorded")
        finally:
            self._metrics.forget(call)


def _trace_of(call: Call) -> dict[str, str] | None:
    """An exemplar's labels: the trace, if it is sampled and so kept."""
    context = call.span.get_span_context()
    return {"trace_id": format_trace_id(context.trace_id)} if context.trace_flags.sampled else None


def _end_sequences(call: Call) -> None:
    """vLLM ends the sequences of a caller that hung up only after the call has ended here."""
    for sequence in call.sequences:
        sequence.finish_reason = sequence.finish_reason or "abort"
