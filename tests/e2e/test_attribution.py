"""Client, metrics, spans and log count and name the same; also for calls that end badly."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from typing import Any

import httpx2
import pytest
from otlp_receiver import attributes
from shop import ADAPTERS, BASE_NAME

MODELS = (BASE_NAME, *ADAPTERS)
PATH = "/v1/chat/completions"


def body_of(model: str, stream: bool = False, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "two blue lamps to Oslo"}]
    return {"model": model, "messages": messages, "max_tokens": 12, "stream": stream, **more}


def trace_of(headers: Any) -> str:
    return headers["traceresponse"].split("-")[1]


def samples_of(name: str, samples: dict[str, float]) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of each sample of a metric."""
    return [
        (dict(re.findall(r'(\w+)="([^"]*)"', series)), value)
        for series, value in samples.items()
        if series.startswith(name + "{")
    ]


def requests_by_model(samples: dict[str, float]) -> Counter[tuple[str, str]]:
    """{(NAME@VERSION, outcome): calls} of lorry_requests_total."""
    counts: Counter[tuple[str, str]] = Counter()
    for labels, value in samples_of("lorry_requests_total", samples):
        label = "@".join(filter(None, (labels["adapter"], labels["version"])))
        counts[label, labels["outcome"]] += int(value)
    return counts


async def test_client_metrics_spans_and_log_agree_on_every_call(server, receiver):
    before = requests_by_model(server.metrics())
    seen: list[tuple[str, Any]] = []

    async def call(client: httpx2.AsyncClient, model: str, stream: bool) -> None:
        response = await client.post(PATH, json=body_of(model, stream))
        seen.append((model, response))

    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        asked = [*MODELS * 6, "nobody", "nobody"]
        await asyncio.gather(*(call(client, m, i % 3 == 0) for i, m in enumerate(asked)))

    traces = {trace_of(response.headers) for _, response in seen}
    await until(lambda: [True] if traces <= {line["trace_id"] for line in server.calls()} else [])
    after = server.metrics()
    made = requests_by_model(after) - before
    served = Counter(
        (r.headers.get("x-lorry-adapter", "_unresolved"),
         "ok" if r.status_code == 200 else "client_error")
        for _, r in seen
    )  # fmt: skip
    assert made == served
    assert sum(made.values()) == len(asked)

    told = {labels["adapter"]: labels for labels, _ in samples_of("lorry_adapter_info", after)}

    spans = receiver.wait_for(traces)
    lines = {line["trace_id"]: line for line in server.calls() if line["trace_id"] in traces}
    assert set(spans) == set(lines) == traces
    for model, response in seen:
        trace = trace_of(response.headers)
        span, line = attributes(spans[trace]), lines[trace]
        assert line["model"] == model
        digest = response.headers.get("x-lorry-adapter-digest")
        assert digest == line["digest"] == span.get("lorry.adapter.digest")
        assert line["outcome"] == span["lorry.outcome"]
        assert line["generation_tokens"] == span["gen_ai.usage.output_tokens"]
        if response.status_code == 200:
            assert span["gen_ai.request.model"] == model
            assert line["served_model"] == span["gen_ai.response.model"]
            assert f'"model":"{line["served_model"]}"' in response.text
        if model in ADAPTERS:
            assert response.headers["x-lorry-adapter"] == f"{model}@1" == line["served_model"]
            assert span["lorry.adapter.version"] == line["version"] == 1
            assert (told[model]["version"], told[model]["digest"]) == ("1", digest)


async def test_tokens_and_ids_are_those_that_the_answer_reports(server, receiver):
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        before = server.metrics()
        response = await client.post(PATH, json=body_of("orders-json", n=2))
    answer, trace = response.json(), trace_of(response.headers)
    # The record is written when the answer is out: a moment after the caller has it.
    line = await until(lambda: [line for line in server.calls() if line["trace_id"] == trace])
    usage = answer["usage"]
    assert line["prompt_tokens"] == usage["prompt_tokens"]
    assert line["generation_tokens"] == usage["completion_tokens"]
    assert line["response_id"] == answer["id"]
    assert 0 < line["ttft_seconds"] < line["duration_seconds"]
    after, labels = server.metrics(), '{adapter="orders-json",version="1"}'
    grown = {
        name: after[name + labels] - before.get(name + labels, 0)
        for name in (
            "lorry_prompt_tokens_total",
            "lorry_generation_tokens_total",
            "lorry_inter_token_latency_seconds_count",
            "lorry_time_to_first_token_seconds_count",
        )
    }
    made = usage["completion_tokens"]
    assert list(grown.values()) == [usage["prompt_tokens"], made, made - 2, 1]


@pytest.mark.parametrize("stream", [True, False])
async def test_a_caller_that_hangs_up_stops_the_engine_and_is_recorded_as_aborted(
    server, receiver, stream
):
    sent = f"{'s' if stream else 'n'}-{time.time_ns()}"
    # Several answers of the greatest length: none is done before the caller has hung up.
    body = body_of("orders-sql", stream, ignore_eos=True) | {"max_tokens": 900, "n": 8}
    before = requests_by_model(server.metrics())["orders-sql@1", "aborted"]
    headers = {"x-request-id": sent}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        if stream:
            async with client.stream("POST", PATH, json=body, headers=headers) as response:
                async for _ in response.aiter_lines():
                    break
        else:
            made = 'lorry_inter_token_latency_seconds_count{adapter="orders-sql",version="1"}'
            at_first = server.metrics().get(made, 0)
            call = asyncio.create_task(client.post(PATH, json=body, headers=headers))
            await until(lambda: [True] if server.metrics().get(made, 0) > at_first else [])
            call.cancel()  # closes the connection
            await asyncio.gather(call, return_exceptions=True)
    line = await until(lambda: [x for x in server.calls() if x["request_id"] == sent])
    assert line["outcome"] == "aborted"
    assert 0 < line["generation_tokens"] < 8 * 900
    span = attributes(receiver.wait_for({line["trace_id"]})[line["trace_id"]])
    assert span["lorry.outcome"] == span["error.type"] == "aborted"
    assert span["lorry.adapter.digest"] == line["digest"]
    assert requests_by_model(server.metrics())["orders-sql@1", "aborted"] == before + 1
    running = f'vllm:num_requests_running{{engine="0",model_name="{BASE_NAME}"}}'
    await until(lambda: server.metrics()[running] == 0 and [True])


async def until(find: Any, seconds: float = 10) -> Any:
    """The first thing that `find` finds; what is awaited happens in another process."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.05)
    return found[0]


async def test_the_callers_trace_goes_on_and_its_parent_is_kept(server, receiver):
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        response = await client.post(PATH, json=body_of("support-tone"), headers=headers)
    assert trace_of(response.headers) == trace
    span = receiver.wait_for({trace})[trace]
    assert span.parent_span_id.hex() == parent
    assert span.name == "chat support-tone"
