"""One OpenTelemetry span per call, with the engine's phases as children.

Attribute names follow the GenAI semantic conventions as they are now
(github.com/open-telemetry/semantic-conventions-genai) plus our own `lorry.*`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import default_getter
from opentelemetry.sdk.trace.export import SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.call import TOLD_SEQUENCES, Call
from server.telemetry.content import Content, is_captured
from server.telemetry.exporting import Pipeline


class Tracing:
    """Starts and ends the spans of calls.

    `legacy` adds names that the conventions have given up, for dashboards that still ask for
    them. `environ` holds the `OTEL_*` variables.
    """

    def __init__(
        self,
        exporter: SpanExporter | None,
        legacy: bool = False,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self._pipeline = Pipeline(exporter)
        self._tracer = self._pipeline.provider.get_tracer("lorry")
        self._legacy = legacy
        self._captures = is_captured(environ)
        propagators = environ.get("OTEL_PROPAGATORS") or "tracecontext"
        self._continues = "tracecontext" in propagators.split(",")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, operation: str, headers: Mapping[str, str]) -> Span:
        """Start a call's span, under the caller's `traceparent` if it sent a valid one."""
        parent = Context()
        if self._continues:
            parent = self._propagator.extract(headers, parent, getter=default_getter)
        return self._tracer.start_span(operation, context=parent, kind=SpanKind.SERVER)

    def capture(self, call: Call, body: bytes) -> Content | None:
        """Where the call's texts go, if its span is to carry them."""
        return Content(body) if self._captures and call.span.is_recording() else None

    def end(self, call: Call) -> None:
        span = call.span
        if call.requested_model and call.resolved:
            span.update_name(f"{call.operation} {call.requested_model}")
        span.set_attributes(_attributes(call))
        if self._legacy:
            span.set_attributes(_legacy_attributes(call))
        if call.content is not None:
            span.set_attributes(call.content.attributes())
        if call.outcome != "ok":
            span.set_attribute("error.type", _error_type(call))
        if call.outcome == "error":
            span.set_status(StatusCode.ERROR, call.engine_error or call.error_code)
        if span.is_recording():
            self._add_phases(call)
        span.end()

    def _add_phases(self, call: Call) -> None:
        """Child spans with the engine's true times, moved from its clock to the wall's."""
        offset = time.time_ns() - time.monotonic_ns()
        context = set_span_in_context(call.span)

        def child(name: str, start: float, end: float) -> None:
            span = self._tracer.start_span(
                name, context=context, start_time=int(start * 1e9) + offset
            )
            span.end(int(end * 1e9) + offset)

        if call.load_started is not None and call.load_ended is not None:
            child("adapter.load", call.load_started, call.load_ended)
        for sequence in call.sequences[:TOLD_SEQUENCES]:
            for phase in sequence.phases():
                child(*phase)

    def close(self) -> None:
        """Send what is left, within seconds."""
        self._pipeline.close()


def _error_type(call: Call) -> str:
    if call.outcome == "aborted":
        return "aborted"
    return call.error_code or call.engine_error or "internal_error"


def _legacy_attributes(call: Call) -> dict[str, Any]:
    return {
        "gen_ai.system": "vllm",
        "gen_ai.usage.prompt_tokens": call.prompt_tokens,
        "gen_ai.usage.completion_tokens": call.generation_tokens,
    }


def _attributes(call: Call) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": call.operation,
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": call.requested_model if call.resolved else None,
        "gen_ai.request.stream": call.stream,
        "gen_ai.response.model": call.response_model,
        "gen_ai.response.id": call.response_id,
        "gen_ai.response.finish_reasons": call.finish_reasons[:TOLD_SEQUENCES] or None,
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.generation_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
        "gen_ai.response.time_to_first_chunk": call.time_to_first_token,
        "http.response.status_code": call.status or None,
        "url.path": call.endpoint,
        "lorry.request.id": call.request_id,
        "lorry.outcome": call.outcome,
        "lorry.base.model": call.base,
        "lorry.adapter.cold_start": call.load_started is not None,
    }
    if call.version is not None:
        attributes |= {
            "lorry.adapter.name": call.version.name,
            "lorry.adapter.version": call.version.version,
            "lorry.adapter.digest": call.version.digest,
            "lorry.adapter.rank": call.version.rank,
        }
    elif call.resolved:
        attributes["lorry.adapter.name"] = call.adapter_label
    return {key: value for key, value in attributes.items() if value is not None}
