"""The spans of a call, and their export."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as Grpc
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as Http
from otlp_receiver import OtlpReceiver, attributes
from standin_server import Stats

from server.call import Sequence, current_call
from server.engine.interface import EngineRefusal
from server.telemetry.logs import configure_logging
from server.telemetry.tracing import Tracing, take_exporter

GENERAL = "OTEL_EXPORTER_OTLP_ENDPOINT"
TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
PROTOCOL = "OTEL_EXPORTER_OTLP_PROTOCOL"


async def test_the_engines_phases_are_child_spans_with_its_own_times(house):
    async def answer(scope, receive, send):
        call = current_call.get()
        at = call.started
        stats = Stats(2, at + 0.01, at + 0.02, at + 0.05, at + 0.09)
        call.sequences.append(Sequence("chatcmpl-x", 5, stats, finish_reason="stop"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    house.inner.answer = answer
    await house.chat("red")
    house.tracing.provider.force_flush()
    spans = {span.name: span for span in house.spans.get_finished_spans()}

    assert set(spans) == {"chat red", "adapter.load", "queue", "prefill", "decode"}
    parent = spans.pop("chat red")
    assert all(span.parent.span_id == parent.context.span_id for span in spans.values())
    lengths = {name: (s.end_time - s.start_time) / 1e9 for name, s in spans.items()}
    assert lengths["queue"] == pytest.approx(0.01, abs=1e-4)
    assert lengths["prefill"] == pytest.approx(0.03, abs=1e-4)
    assert lengths["decode"] == pytest.approx(0.04, abs=1e-4)
    assert abs(spans["queue"].start_time - parent.start_time - 10_000_000) < 500_000_000


async def test_an_unsampled_trace_leaves_no_span_and_no_exemplar(house):
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = {"traceparent": f"00-{trace}-b7ad6b7169203331-00"}
    response = await house.chat("red", headers=header)
    accept = {"accept": "application/openmetrics-text"}
    house.tracing.provider.force_flush()

    assert response.headers["traceresponse"].endswith("-00")
    assert trace not in (await house.client.get("/metrics", headers=accept)).text
    assert house.spans.get_finished_spans() == ()
    assert house.log[0]["trace_id"] == trace


@pytest.mark.parametrize(("model", "error"), [("nobody", "model_not_found"), ("", "missing_model")])
async def test_a_refused_call_has_a_span_without_the_callers_text_in_its_name(house, model, error):
    await house.chat(model)
    house.tracing.provider.force_flush()
    (span,) = house.spans.get_finished_spans()

    assert span.name == "chat"
    assert span.attributes["error.type"] == error
    assert span.attributes["lorry.outcome"] == "client_error"
    assert "gen_ai.request.model" not in span.attributes


async def test_a_failed_load_is_a_child_span_and_names_the_error_of_the_call(house):
    house.engine.failures = [EngineRefusal("no")]
    await house.chat("red")
    house.tracing.provider.force_flush()
    spans = {span.name: span for span in house.spans.get_finished_spans()}

    assert set(spans) == {"chat red", "adapter.load", "queue"}
    assert spans["chat red"].attributes["error.type"] == "adapter_unusable"
    assert spans["chat red"].attributes["lorry.adapter.cold_start"] is True


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
        assert TRACES not in environ  # vLLM's child processes would read it
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
    ("name", "value", "shown"),
    [
        ("OTEL_SERVICE_NAME", "mine", "mine"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=ours", "ours"),
    ],
)
def test_the_variables_set_the_service_name(monkeypatch, name, value, shown):
    monkeypatch.setenv(name, value)
    tracing = Tracing(None)
    assert tracing.provider.resource.attributes["service.name"] == shown
    tracing.close()


def test_traceparent_is_ignored_without_its_propagator():
    header = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    tracing = Tracing(None, environ={"OTEL_PROPAGATORS": "none"})
    assert tracing.start("chat", header).parent is None
    assert Tracing(None, environ={}).start("chat", header).parent is not None


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_an_unreachable_collector_costs_a_warning_and_no_time(stream, monkeypatch, protocol):
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
    assert spent < 2  # a millisecond each, even on a busy machine
    assert closed < 5
