"""The spans of a call."""

from __future__ import annotations

import pytest
from standin_server import Stats

from server.call import Sequence, current_call
from server.engine.interface import EngineRefusal


async def test_the_engines_phases_are_children_with_its_own_times(house):
    async def answer(scope, receive, send):
        call = current_call.get()
        at = call.started
        stats = Stats(2, at + 0.01, at + 0.02, at + 0.05, at + 0.09)
        call.sequences.append(Sequence("chatcmpl-x", 5, stats, finish_reason="stop"))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    house.inner.answer = answer
    await house.chat("red")
    house.tracing._pipeline.provider.force_flush()
    spans = {span.name: span for span in house.spans.get_finished_spans()}

    assert set(spans) == {"chat red", "adapter.load", "queue", "prefill", "decode"}
    parent = spans.pop("chat red")
    assert all(span.parent.span_id == parent.context.span_id for span in spans.values())
    lengths = {name: (s.end_time - s.start_time) / 1e9 for name, s in spans.items()}
    assert lengths["queue"] == pytest.approx(0.01, abs=1e-4)
    assert lengths["prefill"] == pytest.approx(0.03, abs=1e-4)
    assert lengths["decode"] == pytest.approx(0.04, abs=1e-4)
    assert abs(spans["queue"].start_time - parent.start_time - 10_000_000) < 500_000_000


async def test_a_caller_that_does_not_sample_is_told_so_and_leaves_no_exemplar(house):
    trace = "0af7651916cd43dd8448eb211c80319c"
    header = {"traceparent": f"00-{trace}-b7ad6b7169203331-00"}
    response = await house.chat("red", headers=header)
    accept = {"accept": "application/openmetrics-text"}
    house.tracing._pipeline.provider.force_flush()

    assert response.headers["traceresponse"].endswith("-00")
    assert trace not in (await house.client.get("/metrics", headers=accept)).text
    assert house.spans.get_finished_spans() == ()
    assert house.log[0]["trace_id"] == trace


@pytest.mark.parametrize(("model", "error"), [("nobody", "model_not_found"), ("", "missing_model")])
async def test_a_refused_call_has_a_span_without_the_callers_text_in_its_name(house, model, error):
    await house.chat(model)
    house.tracing._pipeline.provider.force_flush()
    (span,) = house.spans.get_finished_spans()

    assert span.name == "chat"
    assert span.attributes["error.type"] == error
    assert span.attributes["lorry.outcome"] == "client_error"
    assert "gen_ai.request.model" not in span.attributes


async def test_a_load_that_fails_is_a_child_too_and_the_call_an_error_of_that_name(house):
    house.engine.failures = [EngineRefusal("no")]
    await house.chat("red")
    house.tracing._pipeline.provider.force_flush()
    spans = {span.name: span for span in house.spans.get_finished_spans()}

    assert set(spans) == {"chat red", "adapter.load"}
    assert spans["chat red"].attributes["error.type"] == "adapter_unusable"
    assert spans["chat red"].attributes["lorry.adapter.cold_start"] is True
