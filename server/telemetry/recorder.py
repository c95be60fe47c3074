"""Says of one call, in all four places, which adapter served it.

Response headers, metrics, span and log line are all read off the same `Call`.
"""

from __future__ import annotations

import logging
from typing import Any

from opentelemetry.trace import format_span_id, format_trace_id

from server.call import TOLD_SEQUENCES, Call
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
    if call.resolved:
        headers["x-lorry-base"] = call.base
        headers["x-lorry-adapter"] = call.version.label if call.version else call.adapter_label
        if call.version is not None:
            headers["x-lorry-adapter-digest"] = call.version.digest
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


def describe(call: Call) -> dict[str, Any]:
    """The call as one flat record: the log line."""
    version = call.version
    first = call.time_to_first_token
    return {
        "request_id": call.request_id,
        "response_id": call.response_id,
        "trace_id": format_trace_id(call.span.get_span_context().trace_id),
        "endpoint": call.endpoint,
        "model": call.requested_model,
        "served_model": call.response_model,
        "adapter": call.adapter_label,
        "version": version.version if version else None,
        "digest": version.digest if version else None,
        "base": call.base,
        "stream": call.stream,
        "status": call.status,
        "outcome": call.outcome,
        "error_code": call.error_code,
        "finish_reasons": call.finish_reasons[:TOLD_SEQUENCES],
        "prompt_tokens": call.prompt_tokens,
        "generation_tokens": call.generation_tokens,
        "cached_prompt_tokens": call.cached_tokens,
        "ttft_seconds": round(first, 6) if first is not None else None,
        "duration_seconds": round(call.duration, 6),
        "cold_start": call.load_started is not None,
    }


class Recorder:
    """Writes a call that ended to metrics, span and log."""

    def __init__(self, metrics: Metrics, tracing: Tracing) -> None:
        self.metrics = metrics
        self.tracing = tracing

    def begin(self, call: Call) -> None:
        """The call knows its adapter: it is in flight until `record`."""
        self.metrics.begin(call, _trace_of(call))

    def record(self, call: Call) -> None:
        """Never raises: a fault in telling must not hurt the call that is told of."""
        try:
            if call.disconnected:
                _end_sequences(call)
            record = describe(call)
            self.metrics.record(call, _trace_of(call))
            self.tracing.end(call)
            write_call(record)
        except Exception:
            logger.exception("a call could not be recorded")
        finally:
            self.metrics.forget(call)


def _trace_of(call: Call) -> dict[str, str] | None:
    """What an exemplar says: it points at a trace, so only at one that is kept."""
    context = call.span.get_span_context()
    return {"trace_id": format_trace_id(context.trace_id)} if context.trace_flags.sampled else None


def _end_sequences(call: Call) -> None:
    """vLLM ends what its caller left only after we are done with the call."""
    for sequence in call.sequences:
        sequence.finish_reason = sequence.finish_reason or "abort"
