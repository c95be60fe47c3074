"""One call through the server, with a stand-in for vLLM's app and engine."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from opentelemetry.trace import format_trace_id
from standin_server import Stats, send_json

from server.call import Sequence, current_call
from server.engine.interface import EngineGone, EngineRefusal
from server.errors import Unavailable
from server.http.middleware import select
from server.lifecycle import Phase
from server.paths import INFERENCE_PATHS

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def error_of(response: Any) -> dict[str, Any]:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


async def test_headers_log_span_and_metrics_name_the_adapter_that_answered(house):
    response = await house.chat("red", headers={"traceparent": TRACE, "x-request-id": "mine-1"})

    assert response.status_code == 200
    assert response.json() == {"model": "red@1"}
    assert response.headers["x-request-id"] == "mine-1"
    assert response.headers["x-lorry-adapter"] == "red@1"
    assert response.headers["x-lorry-base"] == "tiny"
    assert response.headers["x-lorry-replica"] == "left"
    digest = response.headers["x-lorry-adapter-digest"]

    (line,) = house.log
    assert (line["adapter"], line["version"], line["digest"]) == ("red", 1, digest)
    assert line["request_id"] == "mine-1"
    assert line["outcome"] == "ok"
    assert (line["prompt_tokens"], line["generation_tokens"]) == (5, 3)

    house.tracing.provider.force_flush()
    span = next(s for s in house.spans.get_finished_spans() if s.kind.name == "SERVER")
    assert span.name == "chat red"
    assert format_trace_id(span.context.trace_id) == TRACE.split("-")[1] == line["trace_id"]
    assert span.attributes["gen_ai.response.model"] == "red@1"
    assert span.attributes["lorry.adapter.digest"] == digest
    assert span.attributes["lorry.adapter.cold_start"] is True
    assert span.attributes["gen_ai.usage.output_tokens"] == 3

    labels = {"adapter": "red", "version": "1"}
    endpoint = {"endpoint": "/v1/chat/completions", "outcome": "ok"}
    assert house.count("lorry_requests_total", **labels, **endpoint) == 1
    assert house.count("lorry_generation_tokens_total", **labels) == 3
    assert house.count("lorry_requests_in_flight", **labels) == 0


async def test_a_base_call_says_base_and_has_no_digest(house):
    response = await house.chat("tiny")

    assert response.headers["x-lorry-adapter"] == "base"
    assert "x-lorry-adapter-digest" not in response.headers
    assert response.json() == {"model": "tiny"}
    assert house.log[0]["adapter"] == "base"
    assert house.engine.asked == []


async def test_every_form_of_a_name_means_the_same_version(house):
    forms = ["red", "red@1", "red@stable", "tiny:red", "tiny:red@1"]
    served = {form: (await house.chat(form)).headers["x-lorry-adapter"] for form in forms}

    assert served == dict.fromkeys(forms, "red@1")


@pytest.mark.parametrize(
    "model", ["nobody", "red@2", "red@nightly", "../red", "x" * 10_000, "other:red", "", " ", "é"]
)
async def test_an_unknown_name_is_never_answered_by_the_base(house, model):
    response = await house.chat(model)

    assert response.status_code in (400, 404)
    assert error_of(response)["type"] == "invalid_request_error"
    assert error_of(response)["code"] in ("model_not_found", "missing_model")
    assert len(response.content) < 1000
    assert house.inner.seen == []
    assert house.log[0]["adapter"] == "_unresolved"
    assert len(house.log[0]["model"] or "") <= 512


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"x": ' + b"[" * 5000, "invalid_json"),
        (b"[]", "invalid_request"),
        (b"null", "invalid_request"),
        (b'{"model": 5}', "invalid_request"),
        (b'{"model": ["red"]}', "invalid_request"),
        (b'{"model": "red", "stream": "maybe"}', "invalid_request"),
        (b"{}", "missing_model"),
        (b'{"model": null}', "missing_model"),
        (b'{"model": "red", "model": ""}', "missing_model"),
    ],
)
async def test_a_body_that_names_no_model_is_a_400(house, body, code):
    response = await house.client.post("/v1/completions", content=body)

    assert response.status_code == 400
    assert error_of(response)["code"] == code
    assert house.log[0]["outcome"] == "client_error"
    assert house.inner.seen == []


@pytest.mark.parametrize(
    "field", ['"background": true', '"request_id": "x"', '"use_beam_search": true']
)
async def test_fields_that_run_outside_the_call_are_refused(house, field):
    body = b'{"model": "red", "store": "false", ' + field.encode() + b"}"
    response = await house.client.post("/v1/responses", content=body)

    assert response.status_code == 400
    assert error_of(response)["code"] == "unsupported"
    assert house.inner.seen == []


ERROR_EVENT = b'data: {"error": {"message": "no", "type": "BadRequestError", "code": 400}}\n\n'


def stream(house, *, begun, late_status=0, refusal=None):
    """vLLM's app sends an error event, after a first piece or instead of it."""

    async def answer(scope, receive, send):
        call = current_call.get()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if begun:
            call.sequences.append(Sequence("r", 1, Stats()))
            await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        call.late_status, call.refusal = late_status, refusal
        await send({"type": "http.response.body", "body": ERROR_EVENT, "more_body": True})
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    house.inner.answer = answer


@pytest.mark.parametrize(("status", "outcome"), [(400, "client_error"), (503, "rejected")])
async def test_an_error_inside_a_stream_is_in_openais_form_and_recorded(house, status, outcome):
    stream(house, begun=True, late_status=status)
    response = await house.chat("red")

    assert response.status_code == 200
    _, event, done = response.text.strip().split("\n\n")
    error = json.loads(event.removeprefix("data: "))["error"]
    assert (error["code"], error["type"]) == ("invalid_request", "invalid_request_error")
    assert done == "data: [DONE]"
    assert house.log[0]["outcome"] == outcome


async def test_a_stream_that_would_begin_with_an_error_is_a_plain_error(house):
    stream(house, begun=False)
    response = await house.chat("red")

    assert response.status_code == 400
    assert response.json()["error"]["message"] == "no"
    assert (house.log[0]["status"], house.log[0]["outcome"]) == (400, "client_error")


async def test_a_refusal_below_vllm_answers_instead_of_what_vllm_makes_of_it(house):
    refusal = Unavailable("Not now.", code="grammars_busy", retry_after=7)
    stream(house, begun=False, refusal=refusal)
    response = await house.chat("red")

    assert (response.status_code, response.headers["retry-after"]) == (503, "7")
    assert error_of(response)["code"] == "grammars_busy"
    assert house.log[0]["error_code"] == "grammars_busy"


async def test_a_stream_begins_once_the_engine_has_taken_it(house):
    seen = []

    async def answer(scope, receive, send):
        call = current_call.get()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        seen.append(call.status)
        call.sequences.append(Sequence("r", 1, Stats()))
        await send({"type": "http.response.body", "body": b"data: b\n\n", "more_body": True})
        seen.append(call.status)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    house.inner.answer = answer
    response = await house.chat("red")
    assert seen == [0, 200]
    assert response.text == "data: a\n\ndata: b\n\ndata: [DONE]\n\n"


@pytest.mark.parametrize("path", ["/v1/responses", "/tokenize"])
async def test_a_body_of_too_many_objects_is_refused_before_it_is_parsed(house, path):
    many = [{}] * 7_000
    response = await house.client.post(path, json={"model": "red", "input": many})

    assert response.status_code == 413
    assert "max_body_objects" in error_of(response)["message"]
    assert house.inner.seen == []


def test_select_reads_the_last_of_duplicate_keys_as_vllm_does():
    body = b'{"model": "a", "mod\\u0065l": "b"}'
    assert select(body).model == json.loads(body)["model"] == "b"


def test_select_decodes_no_user_that_is_no_text():
    """msgspec takes 13 us for each of these numbers, on the event loop."""
    body = json.dumps({"model": "a", "user": [1e300] * 200_000}).encode()
    started = time.perf_counter()
    selection = select(body)
    assert time.perf_counter() - started < 1
    assert selection.model == "a"


async def test_a_body_over_the_limit_is_refused_before_it_is_read_whole(house):
    response = await house.client.post("/v1/completions", content=b"x" * 60_000)

    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


async def test_headers_that_control_vllm_do_not_reach_it(house):
    sent = {
        "X-Amzn-SageMaker-Adapter-Identifier": "green",
        "X-Vllm-Priority": "-9",
        "X-Session-ID": "s",
        "traceparent": TRACE,
        "X-Request-Id": "mine",
        "X-Harmless": "stays",
    }
    await house.chat("red", headers=sent)

    scope, _ = house.inner.seen[0]
    seen = dict(scope["headers"])
    assert seen[b"x-harmless"] == b"stays"
    assert seen[b"x-request-id"] not in (b"mine", b"")
    for name in sent:
        if name not in ("X-Harmless", "X-Request-Id"):
            assert name.lower().encode() not in seen


async def test_an_invalid_request_id_is_replaced(house):
    invalid = ["a b", "x" * 129, "né", "", "a\x7fb"]
    answers = [await house.chat("tiny", headers={"x-request-id": i.encode()}) for i in invalid]

    lengths = {i: len(a.headers["x-request-id"]) for i, a in zip(invalid, answers, strict=True)}
    assert lengths == dict.fromkeys(invalid, 32)


async def test_vllms_error_bodies_become_openais(house):
    async def answer(scope, receive, send):
        body = {"error": {"message": "no good", "type": "BadRequestError", "code": 400}}
        start = {"type": "http.response.start", "status": 400, "headers": []}
        await send(start)
        for part in (json.dumps(body).encode()[:10], json.dumps(body).encode()[10:]):
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body"})

    house.inner.answer = answer
    response = await house.chat("red")

    expected = {"message": "no good", "type": "invalid_request_error", "param": None}
    assert error_of(response) == {**expected, "code": "invalid_request"}
    assert response.headers["x-lorry-adapter"] == "red@1"
    assert house.log[0]["error_code"] == "invalid_request"


async def test_an_exception_is_a_500_without_its_text(house):
    async def answer(scope, receive, send):
        raise RuntimeError("secret path /root")

    house.inner.answer = answer
    response = await house.chat("red")

    assert response.status_code == 500
    assert "secret" not in response.text
    assert error_of(response)["code"] == "internal_error"
    assert house.log[0]["outcome"] == "error"
    assert (await house.chat("tiny")).status_code == 500  # and the server still answers


@pytest.mark.parametrize(
    ("phase", "code"), [(Phase.DRAINING, "draining"), (Phase.DEAD, "engine_dead")]
)
async def test_a_server_that_is_not_ready_answers_503_with_retry_after(house, phase, code):
    house.lifecycle.advance(phase)
    response = await house.chat("red")

    assert response.status_code == 503
    assert error_of(response)["code"] == code
    assert int(response.headers["retry-after"]) > 0
    assert house.log[0]["outcome"] == "rejected"


async def test_a_refused_adapter_is_a_422_and_an_engine_that_is_gone_a_503(house):
    house.engine.failures = [EngineRefusal("rank too large"), EngineGone("the engine ended")]
    refused, lost = await house.chat("red"), await house.chat("red")

    assert refused.status_code == 422
    assert error_of(refused)["code"] == "adapter_unusable"
    assert "rank too large" in error_of(refused)["message"]
    assert lost.status_code == 503
    assert error_of(lost)["code"] == "adapter_load_failed"
    for line, response in zip(house.log, (refused, lost), strict=True):
        assert line["adapter"] == "red"
        assert line["digest"] == response.headers["x-lorry-adapter-digest"]
    assert (await house.chat("red")).status_code == 200


async def test_a_call_during_which_the_engine_dies_ends_with_engine_dead(house):
    async def answer(scope, receive, send):
        current_call.get().engine_error = "EngineDeadError"
        await send_json(send, 500, {"error": {"message": "EngineCore encountered an issue."}})

    house.inner.answer = answer
    response = await house.chat("red")
    assert (response.status_code, error_of(response)["code"]) == (503, "engine_dead")
    assert int(response.headers["retry-after"]) > 0
    assert (house.log[0]["error_code"], house.log[0]["outcome"]) == ("engine_dead", "error")


async def test_inference_paths_take_post_only(house):
    found = {}
    for path in INFERENCE_PATHS:
        response = await house.client.get(path)
        allowed, code = response.headers.get("allow"), error_of(response)["code"]
        found[path] = (response.status_code, allowed, code)

    assert found == dict.fromkeys(INFERENCE_PATHS, (405, "POST", "method_not_allowed"))


async def test_other_paths_of_vllms_app_are_not_served(house):
    paths = ["/invocations", "/start_profile", "/v2/x", "/pooling"]
    found = {}
    for path in paths:
        response = await house.client.post(path, json={"model": "red"})
        found[path] = (response.status_code, error_of(response)["code"])

    assert found == dict.fromkeys(paths, (404, "unknown_url"))
    assert house.inner.seen == []


async def test_what_is_held_back_is_bounded(house):
    async def answer(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(20):
            await send({"type": "http.response.body", "body": b"data: a\n\n", "more_body": True})
        began.append(current_call.get().status)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    began = []
    house.inner.answer = answer
    response = await house.chat("red")
    assert began == [200]
    assert response.text == "data: a\n\n" * 20 + "data: [DONE]\n\n"
