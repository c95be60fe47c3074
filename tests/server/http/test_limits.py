"""Limits and usage of a whole server: what callers are told, and what is counted of them."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
import pytest
from api_keys import bearer, make_key
from sockets import Served, served
from standin_answers import Stream
from standin_server import BASE, TOKEN, House, Stats, send_json
from starlette.types import Receive, Scope, Send

from adapters.catalog.limits import RuleId
from adapters.keys import Budget, RateLimits
from server.call import Sequence, current_call

EPOCH = datetime(2020, 1, 1, tzinfo=UTC)
RESERVED = 5 + 16  # of a call to the stand-in: its prompt and the most that it may answer


@pytest.fixture
async def site(house: House) -> AsyncIterator[Served]:
    async with served(house.app) as site:
        yield site


def limit(house: House, adapter: str = "red", **limits: Any) -> None:
    house.catalog.limits.put(RuleId("", adapter), RateLimits(**limits), actor="test")
    house.parts.quotas.set_rules(house.catalog.limits.all())


def left(response: httpx2.Response) -> dict[str, str]:
    prefix = "x-ratelimit-"
    return {k.removeprefix(prefix): v for k, v in response.headers.items() if prefix in k}


async def test_every_answer_says_what_is_left(house):
    limit(house, requests_per_minute=3, tokens_per_minute=100)
    said = left(await house.chat("red"))
    assert re.fullmatch(r"59\.\d+s|1m0s", said.pop("reset-requests"))
    assert re.fullmatch(r"1m[01](\.\d+)?s", said.pop("reset-tokens"))
    assert said == {
        "limit-requests": "3",
        "remaining-requests": "2",
        "limit-tokens": "100",
        "remaining-tokens": str(100 - RESERVED),
    }
    bad = {"model": "red", "messages": "none"}

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 400, {"error": {"message": "no"}})

    house.inner.answer = refuse
    answer = await house.client.post("/v1/chat/completions", json=bad)
    assert answer.status_code == 400
    assert left(answer)["remaining-requests"] == "1"
    assert left(await house.chat("green")) == {}
    assert left(await house.client.get("/v1/models")) == {}


async def test_a_sum_meets_the_limits_of_each_of_its_parts(house):
    """Else whoever writes `red*1.0001` would have as much of `red` as he likes."""
    limit(house, requests_per_minute=2)
    assert (await house.chat("green+red*0.5")).status_code == 200
    assert (await house.chat("red*1.0001")).status_code == 200
    for model in ("red", "red*0.5", "green*2+red*0.0001"):
        answer = await house.chat(model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert (await house.chat("green*0.5")).status_code == 200


async def test_the_use_of_sums_is_written_by_their_parts_and_bounded(house):
    for weight in range(1, 9):
        await house.chat(f"red*0.{weight}")
        await house.chat(f"red*0.{weight}+green")
    await house.parts.sharing.close()
    rows = house.catalog.usage.report(["adapter"], EPOCH)
    assert {each["adapter"]: each["calls"] for each in rows} == {"green+red": 8, "red": 8}


async def test_a_callers_own_deadline_does_not_give_its_request_back(house, site):
    limit(house, requests_per_minute=2)
    house.inner.answer = wait_for_ever
    body = {"model": "red", "prompt": "x"}
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{site.port}") as client:
        for status in (504, 504, 429):
            headers = {"x-request-timeout": "0.2"}
            answer = await client.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == status


async def wait_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
    """As vLLM's handlers do, it ends when its caller is gone; the deadline looks like that."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def test_a_refusal_is_openais_and_says_when_to_come_again(house):
    limit(house, requests_per_minute=1)
    await house.chat("red")
    answer = await house.chat("red")
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert "The adapter `red` may have 1 requests a minute, of which 0 are left" in error["message"]
    assert 59_000 < int(answer.headers["retry-after-ms"]) <= 60_000
    assert answer.headers["retry-after"] == "60"
    assert answer.headers["x-should-retry"] == "true"
    assert left(answer)["remaining-requests"] == "0"
    assert house.log[-1]["outcome"] == "rejected"
    assert house.count("lorry_limit_refusals_total", reason="requests") == 1
    assert len(house.inner.seen) == 1, "the second one never reached vLLM"


async def test_tokens_are_refused_where_the_prompt_is_known(house):
    limit(house, tokens_per_minute=RESERVED)
    house.inner.answer = Stream()
    async with asyncio.timeout(30):
        first = asyncio.create_task(house.chat("red"))
        while not any(each.held for rule in house.parts.quotas.rules() for each in rule.running):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        answer = await house.chat("red")
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert answer.headers["x-lorry-adapter"] == "red@1"
    first.cancel()
    limit(house, tokens_per_minute=RESERVED - 1)
    answer = await house.chat("red")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "request_exceeds_limit")
    assert "retry-after" not in answer.headers


async def test_openais_client_comes_again_when_it_was_told(house, site):
    limit(house, in_flight=1)
    go = asyncio.Event()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        house.inner.answer = None
        await go.wait()
        await send_json(send, 200, {"model": "red@1"})

    house.inner.answer = answer
    url = f"http://127.0.0.1:{site.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        message = [{"role": "user", "content": "x"}]
        first = asyncio.create_task(client.chat.completions.create(model="red", messages=message))
        while not house.metrics.is_busy():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        second = asyncio.create_task(client.chat.completions.create(model="red", messages=message))
        while not house.log:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        go.set()
        assert {(await each).model for each in (first, second)} == {"red@1"}
    assert [each["status"] for each in house.log] == [429, 200, 200]


async def test_openais_client_does_not_come_again_for_a_budget(house, site):
    limit(house, budget=Budget(10, "month"))
    url = f"http://127.0.0.1:{site.port}/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="none") as client:
        house.parts.quotas.shared = frozenset()  # the file of the usage is not read here
        limit(house, budget=Budget(RESERVED, "month"))
        message = [{"role": "user", "content": "x"}]
        await client.chat.completions.create(model="red", messages=message)
        with pytest.raises(openai.RateLimitError) as refusal:
            await client.chat.completions.create(model="red", messages=message)
    assert refusal.value.code == "insufficient_quota"
    assert len(house.log) == 2


class Mixed:
    """vLLM's app, as it answers, fails, streams, or loses its caller; by the prompt of a call."""

    def __init__(self) -> None:
        self.told: Counter[str] = Counter()  # tokens, as the callers got to see them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = current_call.get()
        assert call is not None
        how, made = call.user.split()
        stats = Stats(int(made), first_token_ts=call.started, last_token_ts=call.started)
        sequence = Sequence(f"chatcmpl-{call.engine_id}", 5, stats, cached_tokens=2)
        if how == "bad":
            await send_json(send, 400, {"error": {"message": "no"}})
            return
        call.sequences.append(sequence)
        self.told[call.adapter_label] += int(made)
        if how == "killed":
            call.engine_error = sequence.finish_reason = "error"
            await send_json(send, 500, {"error": {"message": "EngineDeadError"}})
            return
        if how == "gone":
            await Stream(is_taken=False)(scope, receive, send)
            return
        sequence.finish_reason = "stop"
        await send_json(send, 200, {"model": call.response_model})


async def test_usage_agrees_with_the_metrics_and_with_what_callers_saw(house, site):
    """Over answers, failures, refusals, kills of the engine, and callers that hang up."""
    limit(house, "green", requests_per_minute=20)
    house.inner.answer = mixed = Mixed()
    draw = random.Random(7)
    statuses: Counter[tuple[str, int]] = Counter()
    url = f"http://127.0.0.1:{site.port}"

    async def one(client: httpx2.AsyncClient, model: str, how: str, made: int) -> None:
        body = {"model": model, "prompt": "x", "user": f"{how} {made}"}
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_bytes():
                if how == "gone":
                    break
        is_gone = how == "gone" and answer.status_code == 200
        statuses[model, 0 if is_gone else answer.status_code] += 1

    kinds = ("ok", "ok", "ok", "bad", "killed", "gone")
    async with httpx2.AsyncClient(base_url=url, timeout=120) as client, asyncio.timeout(120):
        await asyncio.gather(
            *(
                one(client, draw.choice((BASE, "red", "green")), draw.choice(kinds), number % 9 + 1)
                for number in range(120)
            )
        )
        while house.lifecycle.in_flight:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    await house.parts.sharing.close()
    found = {each["adapter"]: each for each in house.catalog.usage.report(["adapter"], EPOCH)}
    assert statuses["green", 429] > 0 < sum(n for (_, status), n in statuses.items() if not status)
    for model, version in ((BASE, ""), ("red", "1"), ("green", "1")):
        adapter = "base" if model == BASE else model
        of_model = {status: n for (name, status), n in statuses.items() if name == model}
        usage = found[adapter]
        assert usage["calls"] == sum(of_model.values())
        assert usage["failed"] == usage["calls"] - of_model[200]
        assert usage["generation_tokens"] == mixed.told[adapter]
        labels = {"adapter": adapter, "version": version}
        for name in ("prompt_tokens", "generation_tokens", "cached_prompt_tokens"):
            assert usage[name] == house.count(f"lorry_{name}_total", **labels), name
        registry = house.metrics.registry.collect()
        calls = sum(
            sample.value
            for family in registry
            for sample in family.samples
            if sample.name == "lorry_requests_total" and sample.labels["adapter"] == adapter
        )
        assert calls == usage["calls"]
        logged = [each for each in house.log if each["adapter"] == adapter]
        assert sum(each["generation_tokens"] for each in logged) == usage["generation_tokens"]


async def test_each_key_has_its_own_limits_and_sees_its_own_usage(house):
    catalog = house.catalog
    ann = make_key(catalog, "ann", limits=RateLimits(requests_per_minute=2))
    bob = make_key(catalog, "bob", adapters=("*",), base=True)
    catalog.limits.put(RuleId("bob", "green"), RateLimits(requests_per_minute=1), actor="test")
    house.parts.quotas.set_rules(catalog.limits.all())
    for headers, model, statuses in (
        (ann, "red", [200, 200, 429]),
        (bob, "red", [200, 200, 200]),
        (bob, "green", [200, 429]),
        (bob, BASE, [200]),
    ):
        found = [await house.chat(model, headers=headers) for _ in statuses]
        assert [each.status_code for each in found] == statuses
    refusal = (await house.chat("red", headers=ann)).json()["error"]["message"]
    assert "The key `ann` may have 2 requests a minute" in refusal
    assert "x-ratelimit-limit-requests" not in (await house.chat("red", headers=bob)).headers
    await house.parts.sharing.close()

    async def usage(headers: dict[str, str], **params: str) -> list[tuple[Any, ...]]:
        answer = await house.client.get("/v1/usage", headers=headers, params=params)
        return [(each["adapter"], each["calls"], each["failed"]) for each in answer.json()["data"]]

    assert await usage(ann) == [("red", 4, 2)]
    assert await usage(bob) == [("base", 1, 0), ("green", 2, 1), ("red", 4, 0)]
    assert await usage(ann, key="bob") == [("red", 4, 2)], "never another's"
    assert (await house.client.get("/v1/usage")).status_code == 401
    admin = await house.client.get("/admin/usage?by=key", headers=bearer(TOKEN))
    assert [(each["key"], each["calls"]) for each in admin.json()["data"]] == [
        ("ann", 4),
        ("bob", 7),
    ]
    assert (await house.client.get("/admin/usage", headers=ann)).status_code == 403
    assert house.count("lorry_key_requests_total", key="ann", outcome="ok") == 2
    assert house.count("lorry_key_requests_total", key="ann", outcome="rejected") == 2
    assert house.count("lorry_key_tokens_total", key="bob", kind="generation") == 6 * 3
    assert house.count("lorry_limit_refusals_total", reason="requests") == 3


async def test_an_adapter_that_a_key_may_not_use_tells_nothing_of_its_limits(house):
    limit(house, "green", requests_per_minute=1)
    headers = make_key(house.catalog, "ann")
    for _ in range(3):
        answer = await house.chat("green", headers=headers)
        assert answer.status_code == 404
        assert not left(answer)


async def test_the_admin_api_sets_lists_and_removes_limits(house):
    async def ask(method: str, path: str, **given: Any) -> tuple[int, Any]:
        path = f"/admin/limits{path}"
        answer = await house.client.request(method, path, headers=bearer(TOKEN), **given)
        return answer.status_code, answer.json()

    make_key(house.catalog, "ann")
    budget = {"tokens": 1000, "period": "day"}
    status, rule = await ask("PUT", "/red", json={"in_flight": 2, "budget": budget})
    nothing = {"requests_per_minute": None, "tokens_per_minute": None}
    assert rule == {"adapter": "red", "key": None, "in_flight": 2, "budget": budget} | nothing
    assert (await ask("PUT", "/red/ann", json={"tokens_per_minute": 5}))[0] == 200
    assert (await ask("PUT", "/base", json={"in_flight": 1}))[0] == 200
    _, listed = await ask("GET", "")
    assert [(each["adapter"], each["key"]) for each in listed["data"]] == [
        ("base", None),
        ("red", None),
        ("red", "ann"),
    ]
    for method, path, body, status, code in (
        ("PUT", "/red", {}, 400, "invalid_request"),
        ("PUT", "/red", {"in_flight": 0}, 400, "invalid_request"),
        ("PUT", "/red", {"in_flight": 1, "x": 1}, 400, "invalid_request"),
        ("PUT", "/red", {"budget": {"tokens": 1, "period": "year"}}, 400, "invalid_request"),
        ("PUT", "/nobody", {"in_flight": 1}, 404, "adapter_not_found"),
        ("PUT", "/red/nobody", {"in_flight": 1}, 404, "key_not_found"),
        ("DELETE", "/green", None, 404, "limit_not_found"),
    ):
        found, answer = await ask(method, path, json=body)
        assert (found, answer["error"]["code"]) == (status, code), (method, path, body)
    assert (await ask("DELETE", "/red/ann"))[0] == 200
    actions = [event.action for event in house.catalog.list_events("red")]
    assert actions[-3:] == ["limits_set", "limits_set", "limits_removed"]
    answer = await house.client.get("/admin/usage?since=long+ago", headers=bearer(TOKEN))
    assert answer.json()["error"]["code"] == "bad_moment"
    answer = await house.client.get("/admin/usage?by=colour", headers=bearer(TOKEN))
    assert answer.json()["error"]["code"] == "bad_field"


async def test_without_keys_usage_is_of_all_callers(house):
    assert json.loads((await house.client.get("/v1/usage")).text)["data"] == []
    await house.chat("red")
    await house.parts.sharing.close()
    answer = (await house.client.get("/v1/usage", params={"by": "adapter,version"})).json()
    assert answer["by"] == ["adapter", "version"]
    assert answer["data"] == [
        {
            "adapter": "red",
            "version": 1,
            "calls": 1,
            "failed": 0,
            "prompt_tokens": 5,
            "generation_tokens": 3,
            "cached_prompt_tokens": 0,
            "engine_seconds": 0.0,
        }
    ]
