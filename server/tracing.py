"""One OpenTelemetry span per call, with the engine's phases as children.

Configured by the standard `OTEL_*` variables alone. Attribute names follow the GenAI semantic
conventions (github.com/open-telemetry/semantic-conventions-genai) plus our own `lorry.*`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from opentelemetry.propagators.textmap import default_getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from server.call import TOLD_SEQUENCES, Call

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


def take_exporter(environ: MutableMapping[str, str]) -> SpanExporter | None:
    """The OTLP exporter that the variables ask for, or None when they ask for none.

    Takes the traces endpoint out of `environ`: vLLM's child processes would read it too and
    start to export spans of their own (vllm.tracing.otel).
    """
    endpoint = environ.pop(_TRACES_ENDPOINT, None) or None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if environ.get("OTEL_TRACES_EXPORTER", "otlp") != "otlp":
        return None
    general = environ.get(_ENDPOINT) or None
    if endpoint is None and general is None:
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        target = endpoint or general or ""
        # The protocol's rule: a plain http:// address means no TLS.
        return grpc.OTLPSpanExporter(endpoint=target, insecure=not target.startswith("https://"))
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    return http.OTLPSpanExporter(endpoint=endpoint or f"{str(general).rstrip('/')}/v1/traces")


class Tracing:
    """Starts and ends the spans of calls."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        name = os.environ.get("OTEL_SERVICE_NAME", "lorry")
        self._provider = TracerProvider(
            resource=Resource.create({SERVICE_NAME: name}), shutdown_on_exit=False
        )
        if exporter is not None:
            self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lorry")
        self._propagator = TraceContextTextMapPropagator()

    def start(self, operation: str, headers: Mapping[str, str]) -> Span:
        """Start a call's span, under the caller's `traceparent` if it sent a valid one."""
        parent = self._propagator.extract(headers, getter=default_getter)
        return self._tracer.start_span(operation, context=parent, kind=SpanKind.SERVER)

    def end(self, call: Call) -> None:
        span = call.span
        if call.requested_model and call.resolved:
            span.update_name(f"{call.operation} {call.requested_model}")
        span.set_attributes(_attributes(call))
        if call.outcome in ("error", "aborted", "rejected", "client_error"):
            span.set_attribute("error.type", _error_type(call))
        if call.outcome == "error":
            span.set_status(StatusCode.ERROR, call.engine_error or call.error_code)
        self._add_phases(call)
        span.end()

    def _add_phases(self, call: Call) -> None:
        """Child spans with the engine's true times, moved from its clock to the wall's."""
        offset = time.time_ns() - time.monotonic_ns()

        def child(name: str, start: float | None, end: float | None) -> None:
            if not start or not end or end < start:
                return
            context = set_span_in_context(call.span)
            span = self._tracer.start_span(
                name, context=context, start_time=int(start * 1e9) + offset
            )
            span.end(int(end * 1e9) + offset)

        child("adapter.load", call.load_started, call.load_ended)
        for sequence in call.sequences[:TOLD_SEQUENCES]:
            stats = sequence.stats
            child("queue", stats.queued_ts, stats.scheduled_ts)
            child("prefill", stats.scheduled_ts, stats.first_token_ts)
            child("decode", stats.first_token_ts, stats.last_token_ts)

    def close(self) -> None:
        """Send what is left; bounded by the exporter's own timeout."""
        self._provider.shutdown()


def _error_type(call: Call) -> str:
    if call.outcome == "aborted":
        return "aborted"
    return call.error_code or call.engine_error or "internal_error"


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
