"""Spans as the server exports them, compared with the client's records."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest
from call_records import adapter_call, base_call, failed_call
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.trace import format_trace_id
from standin_server import BASE, Stats, publish

from adapters.catalog import Catalog
from loadtest.errors import OptionsClash
from loadtest.judge.spans import CallSpan, SpanReceiver, spans_agree
from loadtest.records import Agreement, Disagreement
from server.call import Call, Sequence
from server.telemetry.tracing import Tracing, take_exporter

TRACE = "a" * 32
SPAN = CallSpan("orders@1", "orders@1", 3, "")
CALL = adapter_call(trace_id=TRACE)


def faults(record, *spans: CallSpan) -> set[str]:
    return {each.what for each in spans_agree([record], {TRACE: list(spans)}).disagreements}


def test_a_call_has_one_matching_span():
    assert spans_agree([CALL], {TRACE: [SPAN]}) == Agreement(compared=1)
    base = base_call(trace_id=TRACE)
    assert not faults(base, CallSpan("base", "tiny", 3, ""))
    refused = failed_call(404, "nobody", trace_id=TRACE)
    assert not faults(refused, CallSpan("", "", 0, "model_not_found"))


def test_missing_spans_are_counted_by_adapter():
    records = [adapter_call(trace_id=f"{number:032x}") for number in range(10)]
    spans = {record.trace_id: [SPAN] for record in records[1:]}
    (found,) = spans_agree(records, spans).disagreements
    assert found == Disagreement(what="spans, one for each call: orders@1", client=10, server=9)


@pytest.mark.parametrize(
    ("spans", "fault"),
    [
        ([SPAN, SPAN], "spans, one for each call: orders@1"),
        ([CallSpan("orders@2", "orders@1", 3, "")], "spans, the adapter: orders@1"),
        ([CallSpan("orders@1", "tone@1", 3, "")], "spans, the adapter: orders@1"),
        ([CallSpan("orders@1", "orders@1", 4, "")], "spans, output tokens: orders@1"),
        ([CallSpan("orders@1", "orders@1", 3, "aborted")], "spans, how the call ended: orders@1"),
    ],
)
def test_a_different_span_is_a_disagreement(spans, fault):
    assert faults(CALL, *spans) == {fault}


def test_the_span_of_a_call_that_hung_up_has_at_least_the_clients_tokens():
    left = adapter_call(trace_id=TRACE, outcome="hung_up", answered="", output_tokens=2)
    assert not faults(left, SPAN)
    assert not faults(left, CallSpan("orders@1", "orders@1", 9, "aborted"))
    assert faults(left, CallSpan("orders@1", "orders@1", 1, "aborted"))


def test_a_call_that_broke_for_the_client_may_be_ok_on_the_server():
    late = adapter_call(trace_id=TRACE, outcome="failed", reason="timeout", output_tokens=0)
    assert not faults(late, SPAN)
    assert not faults(late, CallSpan("orders@1", "orders@1", 3, "aborted"))


def test_a_begun_stream_with_an_error_event_has_a_failed_span():
    broken = {"outcome": "failed", "reason": "stream_error_engine_dead", "output_tokens": 2}
    call = adapter_call(trace_id=TRACE, **broken)
    assert not faults(call, CallSpan("orders@1", "orders@1", 2, "engine_dead"))
    assert faults(call, SPAN)


def test_failed_calls_without_a_trace_id_are_left_out_with_a_note():
    found = spans_agree([CALL, failed_call(0)], {TRACE: [SPAN]})
    assert found.compared == 1
    assert found.left_out == ("spans: 1 failed calls without a trace id",)


def test_an_answer_without_a_trace_id_is_a_disagreement():
    (found,) = spans_agree([CALL, adapter_call()], {TRACE: [SPAN]}).disagreements
    assert found == Disagreement(
        what="spans, a trace named in the answer: orders@1", client=2, server=1
    )


def make_spans(tracing: Tracing, folder, count: int) -> list[str]:
    """Spans of calls of three tokens each, each with a child span; returns their trace ids."""
    with Catalog.open(folder) as catalog:
        version = publish(catalog, "orders")
    traces = []
    for number in range(count):
        span = tracing.start("completions", {})
        call = Call("r", "e", "/v1/completions", "completions", BASE, span, resolved=True)
        call.version, call.status, call.response_complete = version, 200, True
        at = call.started
        stats = Stats(3, at, at + 0.01, at + 0.02, at + 0.03)
        call.sequences.append(Sequence(f"cmpl-{number}", 5, stats, finish_reason="stop"))
        tracing.end(call)
        traces.append(format_trace_id(span.get_span_context().trace_id))
    tracing.close()
    return traces


async def test_a_server_exports_its_spans_by_the_receivers_variables(tmp_path):
    async with SpanReceiver() as receiver:
        exporter = take_exporter(dict(receiver.environment))
        traces = await asyncio.to_thread(make_spans, Tracing(exporter), tmp_path, 5)
        await receiver.wait_for(traces)
    assert receiver.spans == {trace: [SPAN] for trace in traces}
    records = [adapter_call(trace_id=trace) for trace in traces]
    assert spans_agree(records, receiver.spans) == Agreement(compared=5)


async def test_compressed_spans_are_accepted(tmp_path):
    async with SpanReceiver() as receiver:
        address = receiver.environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        tracing = Tracing(OTLPSpanExporter(address, compression=Compression.Gzip))
        traces = await asyncio.to_thread(make_spans, tracing, tmp_path, 3)
        await receiver.wait_for(traces)
    assert set(receiver.spans) == set(traces)


async def test_waiting_for_a_missing_span_ends():
    async with SpanReceiver() as receiver:
        await asyncio.wait_for(receiver.wait_for([TRACE], seconds=0.1), timeout=5)
    assert not receiver.spans


async def test_other_bodies_than_spans_are_refused():
    async with SpanReceiver() as receiver, aiohttp.ClientSession() as session:
        address = receiver.environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
        async with session.post(address, data=b"no protobuf") as response:
            assert response.status == 400
    assert not receiver.spans


async def test_an_occupied_port_is_reported():
    async with SpanReceiver() as first:
        port = int(
            first.environment["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"].split(":")[2].split("/")[0]
        )
        with pytest.raises(OptionsClash, match=f"--spans {port}: .* give another"):
            await SpanReceiver(port).__aenter__()
