"""One OpenTelemetry span per call, with the engine's phases as children, and their OTLP export.

Attribute names follow the GenAI semantic conventions as they are now
(github.com/open-telemetry/semantic-conventions-genai) plus our own `lorry.*`.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, MutableMapping
from typing import Any

from opentelemetry.context import Context
from opentelemetry.propagators.textmap import default_getter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from adapters.sums import parts_of
from server.call import MAX_RECORDED_SEQUENCES, Call
from server.content import Content, is_captured

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_CLOSE_SECONDS = 3.0


class Tracing:
    """Starts, ends and exports the spans of calls; `environ` holds the `OTEL_*` variables."""

    def __init__(
        self, exporter: SpanExporter | None, environ: Mapping[str, str] = os.environ
    ) -> None:
        self._exporter = exporter
        self.provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        if exporter is not None:
            self.provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self.provider.get_tracer("lorry")
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
        """A collector of the call's texts; None unless its span is to have them."""
        return Content(body) if self._captures and call.span.is_recording() else None

    def end(self, call: Call) -> None:
        span = call.span
        if call.requested_model and call.resolved:
            span.update_name(f"{call.operation} {call.requested_model}")
        span.set_attributes(_attributes(call))
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
        """Child spans with the engine's own times, shifted from its clock to Unix time."""
        offset = time.time_ns() - time.monotonic_ns()
        context = set_span_in_context(call.span)

        def child(name: str, start: float, end: float) -> None:
            span = self._tracer.start_span(
                name, context=context, start_time=int(start * 1e9) + offset
            )
            span.end(int(end * 1e9) + offset)

        if call.load_started is not None and call.load_ended is not None:
            child("adapter.load", call.load_started, call.load_ended)
        if call.queued is not None and call.ended is not None and not call.sequences:
            child("queue", call.queued, call.ended)  # it has left without its turn
        for sequence in call.sequences[:MAX_RECORDED_SEQUENCES]:
            for phase in sequence.phases():
                child(*phase)

    def close(self) -> None:
        """Export the remaining spans, for seconds at most: the collector may be unreachable."""
        export = threading.Thread(target=self.provider.shutdown, daemon=True)
        export.start()
        export.join(_CLOSE_SECONDS)
        if export.is_alive() and self._exporter is not None:
            self._exporter.shutdown()  # ends its retries


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
        "gen_ai.response.finish_reasons": call.finish_reasons[:MAX_RECORDED_SEQUENCES] or None,
        "gen_ai.usage.input_tokens": call.prompt_tokens,
        "gen_ai.usage.output_tokens": call.generation_tokens,
        "gen_ai.usage.cache_read.input_tokens": call.cached_tokens,
        "gen_ai.response.time_to_first_chunk": call.time_to_first_token,
        "http.response.status_code": call.status or None,
        "url.path": call.endpoint,
        "lorry.request.id": call.request_id,
        "lorry.outcome": call.outcome,
        "lorry.base.model": call.base,
        "lorry.replica": call.replica or None,
        "lorry.key": call.key.name if call.key else None,
        "lorry.adapter.cold_start": call.load_started is not None,
    }
    if call.version is not None:
        attributes |= {
            "lorry.adapter.name": call.version.name,
            "lorry.adapter.version": call.version.version or None,
            "lorry.adapter.digest": call.version.digest,
            "lorry.adapter.rank": call.version.rank,
        }
        if parts := parts_of(call.version):
            attributes |= {
                "lorry.adapter.parts": [part.version.label for part in parts],
                "lorry.adapter.part_digests": [part.version.digest for part in parts],
                "lorry.adapter.part_weights": [float(part.weight) for part in parts],
            }
    elif call.resolved:
        attributes["lorry.adapter.name"] = call.adapter_label
    return {key: value for key, value in attributes.items() if value is not None}


def take_exporter(environ: MutableMapping[str, str]) -> SpanExporter | None:
    """The OTLP exporter that the variables configure, or None.

    Removes the traces endpoint from `environ`: with it, vLLM's child processes would export spans
    of their own (vllm.tracing.otel).
    """
    endpoint = environ.pop(_TRACES_ENDPOINT, None) or None
    general = environ.get(_ENDPOINT) or None
    chosen = environ.get("OTEL_TRACES_EXPORTER") or None
    if environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return None
    if "otlp" not in (chosen or "otlp").split(",") or not (endpoint or general or chosen):
        return None
    protocol = environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    if protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc

        target = endpoint or general
        # The OTLP specification: http:// means no TLS, whatever other variables say.
        is_plain = target is not None and target.startswith("http://")
        return grpc.OTLPSpanExporter(endpoint=target, insecure=True if is_plain else None)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    if endpoint is None and general is not None:
        endpoint = f"{general.rstrip('/')}/v1/traces"
    return http.OTLPSpanExporter(endpoint=endpoint)


def _resource() -> Resource:
    """OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, with `lorry` as the default name."""
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "lorry"}))
    return resource
