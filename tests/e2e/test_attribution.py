"""Response headers, metrics, spans and log agree on every call, whatever its outcome."""

from __future__ import annotations

import asyncio
import json
import random
import re
import shutil
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import httpx2
import pytest
from agreement import SPAN
from otlp_receiver import OtlpReceiver, attributes
from safetensors.torch import load_file, save_file
from server_process import ServerProcess
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

    infos = {labels["adapter"]: labels for labels, _ in samples_of("lorry_adapter_info", after)}

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
            assert (infos[model]["version"], infos[model]["digest"]) == ("1", digest)


async def test_tokens_and_ids_equal_those_of_the_response(server, receiver):
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        before = server.metrics()
        response = await client.post(PATH, json=body_of("orders-json", n=2))
    answer, trace = response.json(), trace_of(response.headers)
    # The server writes the record just after the caller has the response.
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
async def test_a_disconnect_stops_the_engine_and_is_recorded_as_aborted(server, receiver, stream):
    sent = f"{'s' if stream else 'n'}-{time.time_ns()}"
    # Long answers: none is complete before the disconnect.
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
    await nothing_runs(server)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_deadline_stops_the_engine_and_is_told_to_the_caller(server, receiver, stream):
    sent = f"d{'s' if stream else 'n'}-{time.time_ns()}"
    body = body_of("orders-sql", stream, ignore_eos=True) | {"max_tokens": 900, "n": 8}
    headers = {"x-request-id": sent, "x-request-timeout": "0.8"}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        await client.post(PATH, json=body_of("orders-sql"))  # it is resident
        answer = await client.post(PATH, json=body, headers=headers)
    line = await until(lambda: [x for x in server.calls() if x["request_id"] == sent])
    assert 0.8 <= line["duration_seconds"] < 1.8
    assert (line["outcome"], line["error_code"]) == ("rejected", "deadline_exceeded")
    assert 0 < line["generation_tokens"] < 8 * 900
    assert line["finish_reasons"] == ["abort"] * 8
    if stream:
        assert answer.status_code == line["status"] == 200
        *_, error, done, rest = answer.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        assert json.loads(error.removeprefix("data: "))["error"]["code"] == "deadline_exceeded"
    else:
        assert answer.status_code == line["status"] == 504
        assert answer.headers["x-should-retry"] == "false"
        assert answer.json()["error"]["code"] == "deadline_exceeded"
    span = attributes(receiver.wait_for({line["trace_id"]})[line["trace_id"]])
    assert (span["lorry.outcome"], span["error.type"]) == ("rejected", "deadline_exceeded")
    await nothing_runs(server)


async def nothing_runs(server: ServerProcess) -> None:
    """Waits until neither the engine nor the server has a call, and none holds its adapter."""
    running = f'vllm:num_requests_running{{engine="0",model_name="{BASE_NAME}"}}'
    await until(lambda: server.metrics()[running] == 0 and [True])
    assert httpx2.get(f"{server.url}/readyz").json()["in_flight"] == 0
    in_flight = samples_of("lorry_requests_in_flight", server.metrics())
    assert sum(value for _, value in in_flight) == 0


@pytest.mark.slow  # half a minute: each caller sees the engine work before it leaves
async def test_two_hundred_callers_that_hang_up_leave_nothing_behind(server, admin):
    before = sum(requests_by_model(server.metrics()).values())
    body = body_of("", ignore_eos=True) | {"max_tokens": 900}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        for number in range(200):
            call = body | {"model": MODELS[number % 4], "stream": number % 8 < 4}
            if call["stream"]:
                async with client.stream("POST", PATH, json=call) as response:
                    await anext(response.aiter_lines())
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(client.post(PATH, json=call), 0.05)
    await until(lambda: sum(requests_by_model(server.metrics()).values()) >= before + 200 and [1])
    await nothing_runs(server)
    listed = admin.http.get("/admin/adapters").json()["data"]
    assert {each["leases"] for adapter in listed for each in adapter["versions"]} == {0}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        for model in MODELS:
            assert (await client.post(PATH, json=body_of(model))).status_code == 200


async def until(find: Any, seconds: float = 10) -> Any:
    """Polls until `find` returns a list that is not empty; returns its first item."""
    deadline = time.monotonic() + seconds
    while not (found := find()):
        assert time.monotonic() < deadline, f"nothing found within {seconds} s"
        await asyncio.sleep(0.05)
    return found[0]


async def test_the_span_continues_the_callers_trace(server, receiver):
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{parent}-01"}
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        response = await client.post(PATH, json=body_of("support-tone"), headers=headers)
    assert trace_of(response.headers) == trace
    span = receiver.wait_for({trace})[trace]
    assert span.parent_span_id.hex() == parent
    assert span.name == "chat support-tone"


COUNTED = {  # counter: log field
    "lorry_prompt_tokens_total": "prompt_tokens",
    "lorry_generation_tokens_total": "generation_tokens",
    "lorry_cached_prompt_tokens_total": "cached_prompt_tokens",
}
KINDS = ("chat", "stream", "two", "refused", "unknown", "leaves", "leaves", "lost")


class Callers:
    """Makes calls of each kind: answered, refused, unknown model, lost files, disconnected."""

    def __init__(self, client: httpx2.AsyncClient, lost: str) -> None:
        self.client = client
        self.lost = lost
        self.dice = random.Random(7)
        self.ids: set[str] = set()
        self.answers: list[httpx2.Response] = []

    async def call(self, kind: str) -> None:
        model = {"unknown": "nobody", "lost": self.lost}.get(kind, self.dice.choice(MODELS))
        body = body_of(model, stream=kind == "stream")
        body |= {"two": {"n": 2}, "refused": {"max_tokens": -1}}.get(kind, {})
        if kind == "leaves":
            body |= {"max_tokens": 900, "ignore_eos": True}
        request_id = f"mixed-{time.time_ns()}-{kind}"
        self.ids.add(request_id)
        call = self.client.post(PATH, json=body, headers={"x-request-id": request_id})
        try:
            patience = self.dice.random() if kind == "leaves" else 120
            self.answers.append(await asyncio.wait_for(call, patience))
        except TimeoutError:
            assert kind == "leaves"


@pytest.fixture
def lost(admin, shop, tmp_path) -> str:
    """A version whose files are missing in the store."""
    folder = tmp_path / "lost"
    shutil.copytree(admin.object(shop.digests["orders-sql"]), folder, copy_function=shutil.copyfile)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[next(iter(tensors))] *= 1.5
    save_file(tensors, weights, metadata={"format": "pt"})
    published = admin.upload("lost", folder)
    shutil.rmtree(admin.object(published["digest"]))
    return str(published["label"])


async def unload_repeatedly(client: httpx2.AsyncClient, headers: dict[str, str]) -> None:
    while True:
        for name in ADAPTERS:
            await client.post(f"/admin/adapters/{name}/unload", headers=headers)
            await asyncio.sleep(0.3)


async def test_headers_metrics_spans_and_log_agree_over_a_mixed_run_with_failures(
    server, receiver, admin, lost
):
    before = server.metrics()
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        callers = Callers(client, lost)
        headers = {"authorization": admin.http.headers["authorization"]}
        unloading = asyncio.create_task(unload_repeatedly(client, headers))
        for _ in range(8):
            await asyncio.gather(*(callers.call(kind) for kind in KINDS))
        unloading.cancel()
        await asyncio.gather(unloading, return_exceptions=True)

    def logged() -> list[dict[str, Any]]:
        return [line for line in server.calls() if line["request_id"] in callers.ids]

    await until(lambda: len(logged()) >= len(callers.ids) and [True])
    lines = {line["trace_id"]: line for line in logged()}
    assert len(lines) == len(logged()) == len(callers.ids) == 8 * len(KINDS)
    outcomes = Counter(line["outcome"] for line in lines.values())
    assert set(outcomes) >= {"ok", "client_error", "rejected", "aborted"}

    for response in callers.answers:
        line = lines[trace_of(response.headers)]
        assert response.status_code == line["status"]
        assert response.headers["x-request-id"] == line["request_id"]
        assert response.headers.get("x-lorry-adapter-digest") == line["digest"]
        named = line["adapter"] if line["version"] is None else line["served_model"]
        assert response.headers.get("x-lorry-adapter", "_unresolved") == named

    spans = receiver.wait_for(set(lines))
    assert set(spans) == set(lines)
    for trace, span in spans.items():
        assert_agreement(receiver, span, lines[trace])
    assert_growth(before, server.metrics(), list(lines.values()))


def assert_agreement(receiver: OtlpReceiver, span: Any, line: dict[str, Any]) -> None:
    found = attributes(span)
    for name, field in SPAN.items():
        assert found.get(name) == line[field], (name, line)
    assert found.get("gen_ai.response.finish_reasons", []) == line["finish_reasons"]
    assert ("error.type" in found) == (line["outcome"] != "ok")
    children = receiver.children(span)
    assert ("adapter.load" in children) == line["cold_start"]
    assert ("prefill" in children) == (line["ttft_seconds"] is not None)
    slack = 5_000_000  # ns; another process takes the times of the phases, and rounds them
    for child in children.values():
        assert span.start_time_unix_nano - slack <= child.start_time_unix_nano
        assert child.start_time_unix_nano <= child.end_time_unix_nano
        assert child.end_time_unix_nano <= span.end_time_unix_nano + slack


def assert_growth(
    before: dict[str, float], after: dict[str, float], lines: list[dict[str, Any]]
) -> None:
    """The growth of the counters equals the sums over the log lines, by version."""

    def grown(name: str, *names: str) -> Counter[tuple[str, ...]]:
        total: Counter[tuple[str, ...]] = Counter()
        for sign, samples in ((1, after), (-1, before)):
            for labels, value in samples_of(name, samples):
                total[tuple(labels[each] for each in names)] += sign * int(value)
        return +total

    def key(line: dict[str, Any]) -> tuple[str, str]:
        return line["adapter"], str(line["version"] or "")

    calls = Counter((*key(line), line["outcome"]) for line in lines)
    assert grown("lorry_requests_total", "adapter", "version", "outcome") == calls
    for series, field in COUNTED.items():
        wanted: Counter[tuple[str, str]] = Counter()
        for line in lines:
            wanted[key(line)] += line[field]
        assert grown(series, "adapter", "version") == +wanted, series
    reasons = Counter((*key(x), reason) for x in lines for reason in x["finish_reasons"])
    assert grown("lorry_finished_sequences_total", "adapter", "version", "reason") == reasons
    firsts = Counter(key(line) for line in lines if line["ttft_seconds"] is not None)
    assert grown("lorry_time_to_first_token_seconds_count", "adapter", "version") == firsts


async def test_engine_slots_and_waiting_calls_are_reported(server):
    async with httpx2.AsyncClient(base_url=server.url, timeout=120) as client:
        for model in ADAPTERS * 2:  # three adapters take turns in two slots
            await client.post(PATH, json=body_of(model))
    assert server.metrics()['lorry_adapter_places{tier="device"}'] == 2

    def on_device() -> list[str]:
        found = samples_of("lorry_adapter_resident", server.metrics())
        names = [labels["adapter"] for labels, _ in found if labels["tier"] == "device"]
        return names if ADAPTERS[-1] in names and len(names) == 2 else []

    await until(on_device)
    samples = server.metrics()
    displaced = samples_of("lorry_adapter_evictions_total", samples)
    assert sum(value for labels, value in displaced if labels["tier"] == "device") >= 4
    assert samples["lorry_engine_up"] == 1
    assert samples["lorry_oldest_waiting_seconds"] == 0
    assert sum(value for _, value in samples_of("lorry_requests_waiting", samples)) == 0
