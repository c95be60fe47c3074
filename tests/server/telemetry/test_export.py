"""Where spans go: which exporter the OTEL_ variables ask for, and what reaches a collector."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
from otlp_receiver import OtlpReceiver, attributes

from server.telemetry.logs import configure_logging
from server.telemetry.tracing import Tracing, take_exporter

GENERAL = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


@pytest.mark.parametrize(
    ("environ", "kind", "endpoint"),
    [
        ({}, None, None),
        ({GENERAL: "http://c:4317"}, Grpc, "c:4317"),
        ({TRACES: "http://t:4317", GENERAL: "http://c:4317"}, Grpc, "t:4317"),
        ({GENERAL: "http://c:4318/", PROTOCOL: "http/protobuf"}, Http, "http://c:4318/v1/traces"),
        ({TRACES: "http://c:4318/x", PROTOCOL: "http/protobuf"}, Http, "http://c:4318/x"),
        ({GENERAL: "", TRACES: ""}, None, None),
        ({GENERAL: "http://c:4317", "OTEL_SDK_DISABLED": "true"}, None, None),
        ({GENERAL: "http://c:4317", "OTEL_TRACES_EXPORTER": "none"}, None, None),
    ],
)
def test_the_standard_variables_choose_the_exporter(environ, kind, endpoint):
    exporter = take_exporter(environ)
    try:
        assert type(exporter) is (kind or type(None))
        assert getattr(exporter, "_endpoint", None) == endpoint
        assert TRACES not in environ  # vLLM's own processes would read it
    finally:
        if exporter is not None:
            exporter.shutdown()


@pytest.fixture
def receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    yield receiver
    receiver.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_spans_reach_a_collector_over_both_protocols(receiver, monkeypatch, protocol):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    port = receiver.port if protocol == "grpc" else receiver.http_port
    tracing = Tracing(take_exporter({GENERAL: f"http://127.0.0.1:{port}", PROTOCOL: protocol}))
    span = tracing.start("chat", {})
    span.set_attribute("x", "y")
    span.end()
    tracing.close()

    (sent,) = receiver.calls()
    assert attributes(sent) == {"x": "y"}
    resource = receiver.resources[0]
    assert (resource["service.name"], resource["deployment.environment.name"]) == ("lorry", "test")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("OTEL_SERVICE_NAME", "mine", "mine"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours", "ours"),
    ],
)
def test_the_service_has_the_name_it_is_given(monkeypatch, name, value, told):
    monkeypatch.setenv(name, value)
    tracing = Tracing(None)
    assert tracing._pipeline.provider.resource.attributes["service.name"] == told
    tracing.close()


def test_a_caller_is_not_followed_where_the_variables_say_so():
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    tracing = Tracing(None, environ={"OTEL_PROPAGATORS": "none"})
    assert tracing.start("chat", header).parent is None
    assert Tracing(None, environ={}).start("chat", header).parent is not None


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_is_away_costs_a_warning_and_no_time(stream, monkeypatch, protocol):
    configure_logging("json", stream)
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "512")
    tracing = Tracing(take_exporter({GENERAL: "http://127.0.0.1:9", PROTOCOL: protocol}))
    began = time.perf_counter()
    for _ in range(2000):
        tracing.start("chat", {}).end()
    spent = time.perf_counter() - began
    time.sleep(0.5)
    began = time.perf_counter()
    tracing.close()
    closed = time.perf_counter() - began

    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == 1
    assert lines[0]["level"] in ("warning", "error")
    assert spent < 2  # a millisecond each, on the busiest machine
    assert closed < 5
