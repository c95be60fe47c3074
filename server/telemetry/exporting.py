"""Where spans go, by the standard `OTEL_*` variables; and how they end when nobody takes them.

Knows nothing of calls.
"""

from __future__ import annotations

import threading
from collections.abc import MutableMapping

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_CLOSE_SECONDS = 3.0


def take_exporter(environ: MutableMapping[str, str]) -> SpanExporter | None:
    """The OTLP exporter that the variables ask for, or None when they ask for none.

    Takes the traces endpoint out of `environ`: vLLM's child processes would read it too and
    start to export spans of their own (vllm.tracing.otel).
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
        # The protocol's rule: a plain http:// address means no TLS, whatever else is said.
        is_plain = target is not None and target.startswith("http://")
        return grpc.OTLPSpanExporter(endpoint=target, insecure=True if is_plain else None)
    from opentelemetry.exporter.otlp.proto.http import trace_exporter as http

    if endpoint is None and general is not None:
        endpoint = f"{general.rstrip('/')}/v1/traces"
    return http.OTLPSpanExporter(endpoint=endpoint)


class Pipeline:
    """A tracer provider, and the one exporter behind it if there is one."""

    def __init__(self, exporter: SpanExporter | None) -> None:
        self._exporter = exporter
        self.provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        if exporter is not None:
            self.provider.add_span_processor(BatchSpanProcessor(exporter))

    def close(self) -> None:
        """Send what is left, as long as that does not take long: nobody may be there."""
        sending = threading.Thread(target=self.provider.shutdown, daemon=True)
        sending.start()
        sending.join(_CLOSE_SECONDS)
        if sending.is_alive() and self._exporter is not None:
            self._exporter.shutdown()  # which ends its retries


def _resource() -> Resource:
    """What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say; `lorry` is only the last word."""
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "lorry"}))
    return resource
