"""Calls against limits, on a clock of the test: nothing waits, and no call is real."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quota_desk import Desk, make_key

from adapters.catalog.limits import RuleId, period_at
from adapters.keys import Budget, RateLimits
from server.call import Call
from server.engine.interface import Work
from server.errors import InsufficientQuota, RateLimitExceeded, RequestError, RequestExceedsLimit
from server.gate.quotas import as_duration
from server.gate.windows import WINDOW_SECONDS


async def test_a_call_without_limits_takes_nothing_and_says_nothing():
    desk = Desk()
    call = await desk.begin()
    assert call.allowance is None
    desk.end(call)


@given(
    st.integers(1, 600),
    st.integers(20, 12_000),
    st.integers(1, 600),
    st.randoms(use_true_random=False),
)
def test_five_hundred_calls_at_once_never_pass_a_limit(requests, tokens, in_flight, dice):
    """LiteLLM #18730: calls that only count at their end passed its limits six times over."""
    desk = Desk(RateLimits(requests, tokens, in_flight))
    running: set[int] = set()
    admitted = most = 0
    sizes = [(dice.randint(1, 10), dice.randint(1, 10)) for _ in range(500)]

    async def one(number: int, prompt: int, answer: int) -> None:
        nonlocal admitted, most
        try:
            call = await desk.begin(prompt=prompt, most=answer)
        except RateLimitExceeded:
            return
        admitted += 1
        running.add(number)
        most = max(most, len(running))
        for _ in range(dice.randint(0, answer)):
            desk.work(call, 1)
            await asyncio.sleep(0)
        desk.end(call)
        running.discard(number)

    async def all_at_once() -> None:
        await asyncio.gather(*(one(number, *size) for number, size in enumerate(sizes)))

    asyncio.run(all_at_once())
    assert 0 < admitted <= requests
    assert most <= in_flight
    assert desk.most_in_a_minute() <= tokens


actions = st.lists(
    st.tuples(
        st.sampled_from(("begin", "work", "work", "tick", "end", "abort", "wait")),
        st.integers(0, 40),
        st.integers(0, 7),
    ),
    max_size=120,
)


@given(actions, st.integers(20, 200), st.integers(1, 6))
def test_in_any_minute_no_more_tokens_are_made_than_the_limit(actions, tokens, in_flight):
    """Long streams, aborted calls and calls at the edges of windows among them."""

    async def run() -> None:
        desk = Desk(RateLimits(tokens_per_minute=tokens, in_flight=in_flight))
        running: list[tuple[Call, int]] = []
        for action, amount, which in actions:
            desk.now += 0.1
            if action == "begin":
                try:
                    running.append((await desk.begin(prompt=amount // 4, most=amount), amount))
                except RequestError:
                    continue
            elif action == "wait":
                desk.now += amount
            elif action == "tick":
                desk.quotas.tick()
            elif running:
                call, most = running[which % len(running)]
                left = most - call.generation_tokens
                if action == "work":
                    desk.work(call, min(amount, left))
                else:
                    running.remove((call, most))
                    desk.end(call)
            assert len(running) <= in_flight
        for call, _ in running:
            desk.end(call)
        assert desk.most_in_a_minute() <= tokens
        desk.now += 2 * WINDOW_SECONDS
        call = await desk.begin(prompt=0, most=tokens)
        assert int(desk.headers(call)["remaining-tokens"]) == 0, "all came back, no more than that"

    asyncio.run(run())


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(1, 60)), max_size=40), st.integers(1, 60))
def test_who_waits_as_long_as_told_gets_in_and_not_before(calls, amount):
    """LiteLLM tells the whole window, whatever is left of it."""

    async def run() -> None:
        desk = Desk(RateLimits(tokens_per_minute=60, requests_per_minute=10))
        for pause, tokens in calls:
            desk.now += pause
            try:
                call = await desk.begin(prompt=0, most=tokens)
            except RateLimitExceeded:
                continue
            desk.work(call, tokens)
            desk.end(call)
        try:
            await desk.begin(prompt=0, most=amount)
        except RateLimitExceeded as refusal:
            began = desk.now
            milliseconds = int(refusal.headers()["retry-after-ms"])
            desk.now = began + max(milliseconds - 12, 0) / 1000
            assert (await desk.refused(prompt=0, most=amount)).code == "rate_limit_exceeded"
            desk.now = began + milliseconds / 1000
            await desk.begin(prompt=0, most=amount)

    asyncio.run(run())


async def test_a_long_stream_holds_what_it_may_still_make_and_counts_what_it_has_made():
    """LiteLLM #41610: streams were not counted."""
    desk = Desk(RateLimits(tokens_per_minute=100))
    stream = await desk.begin(prompt=10, most=80)
    for _ in range(8):
        desk.now += 30
        desk.work(stream, 10)
        desk.quotas.tick()
    # After four minutes 80 tokens are made, of which the last 20 count, and the one at the edge.
    desk.now += 1
    call = await desk.begin(prompt=0, most=1)
    assert int(desk.headers(call)["remaining-tokens"]) == 100 - 20 - 1
    desk.end(stream)
    assert int(desk.headers(call)["remaining-tokens"]) == 100 - 20 - 1


async def test_the_prompt_counts_and_what_is_cached_of_it_does_not():
    """LiteLLM #17664: output only. #18728: cached tokens counted."""
    for count_cached, left in ((False, 100 - 10 - 3), (True, 100 - 40 - 3)):
        desk = Desk(RateLimits(tokens_per_minute=100), count_cached=count_cached)
        call = await desk.begin(prompt=40, most=20)
        assert desk.headers(call)["remaining-tokens"] == "40"
        call.sequences[0].cached_tokens = 30
        desk.work(call, 3)
        desk.end(call)
        assert int(desk.headers(call)["remaining-tokens"]) == left


async def test_what_a_caller_that_hangs_up_got_counts_and_the_rest_comes_back():
    desk = Desk(RateLimits(tokens_per_minute=100, requests_per_minute=10, in_flight=1))
    call = await desk.begin(prompt=10, most=80)
    desk.work(call, 7)
    call.disconnected = True
    desk.end(call)
    assert desk.headers(call)["remaining-tokens"] == "83"
    assert desk.headers(call)["remaining-requests"] == "9"
    await desk.begin(prompt=1, most=1)


async def test_a_refused_call_takes_nothing():
    desk = Desk(RateLimits(tokens_per_minute=100, requests_per_minute=10, in_flight=5))
    first = await desk.begin(prompt=10, most=80)
    for _ in range(20):
        assert (await desk.refused(prompt=10, most=10)).code == "rate_limit_exceeded"
    assert desk.headers(first)["remaining-requests"] == "9"
    assert desk.headers(first)["remaining-tokens"] == "10"


async def test_a_request_that_the_engine_never_saw_is_given_back_where_the_server_failed():
    desk = Desk(RateLimits(requests_per_minute=10))
    for status, left in ((503, "10"), (500, "10"), (400, "9")):
        call = desk.call()
        await desk.quotas.arrive(call)
        call.status = status
        desk.end(call)
        assert desk.headers(call)["remaining-requests"] == left, status


async def test_a_call_that_can_never_fit_is_told_so_at_once():
    desk = Desk(RateLimits(tokens_per_minute=100))
    with pytest.raises(RequestExceedsLimit, match="may use 101 tokens"):
        await desk.begin(prompt=1, most=100)
    call = await desk.begin(prompt=10, most=40)
    assert call.allowance is not None
    with pytest.raises(RequestExceedsLimit, match="may use 110 tokens"):
        await call.allowance.reserve(Work("r", 20, 1, 40))
    assert RequestExceedsLimit("").status == 400, "no client tries a 400 again"


async def test_the_tightest_of_the_rules_that_apply_is_told():
    desk = Desk(RateLimits(requests_per_minute=10, tokens_per_minute=1000))
    desk.quotas.set_rules(
        {
            RuleId("", "base"): RateLimits(requests_per_minute=3),
            RuleId("team-a", "base"): RateLimits(tokens_per_minute=100),
            RuleId("team-b", "base"): RateLimits(in_flight=0),
        }
    )
    call = await desk.begin()
    assert desk.headers(call) == {
        "limit-requests": "3",
        "remaining-requests": "2",
        "reset-requests": "1m0s",
        "limit-tokens": "100",
        "remaining-tokens": "85",
        "reset-tokens": "1m1s",
    }
    for _ in range(2):
        await desk.begin()
    assert "The adapter `base` may have 3 requests a minute" in str(await desk.refused())


async def test_a_limit_of_an_adapter_holds_all_keys_together():
    desk = Desk()
    desk.quotas.set_rules({RuleId("", "base"): RateLimits(in_flight=2)})
    first, _ = [await desk.begin(key=make_key(name)) for name in ("a", "b")]
    refusal = await desk.refused(key=make_key("c"))
    assert 0 < refusal.retry_after <= 2
    desk.end(first)
    await desk.begin(key=make_key("c"))


async def test_a_budget_begins_anew_with_its_period_and_nobody_is_told_to_try_again():
    desk = Desk(RateLimits(budget=Budget(100, "day")))
    call = await desk.begin(prompt=10, most=60)
    desk.work(call, 50)
    desk.end(call)
    assert desk.headers(call)["remaining-tokens"] == "40"
    assert desk.headers(call)["reset-tokens"] == "12h0m0s"
    desk.now += 3600
    refusal = await desk.refused(prompt=10, most=50)
    assert isinstance(refusal, InsufficientQuota)
    assert refusal.type == refusal.code == "insufficient_quota"
    assert refusal.headers() == {
        "retry-after": "39600",
        "retry-after-ms": "39600000",
        "x-should-retry": "false",
    }
    desk.now += 11 * 3600
    await desk.begin(prompt=10, most=50)


async def test_a_month_ends_with_the_calendar():
    assert period_at(Budget(1, "month"), datetime(2026, 12, 31, 23, tzinfo=UTC)) == (
        datetime(2026, 12, 1, tzinfo=UTC),
        datetime(2027, 1, 1, tzinfo=UTC),
    )


async def test_a_changed_limit_is_in_force_with_the_next_call_and_keeps_what_is_used():
    desk = Desk(RateLimits(requests_per_minute=2))
    for _ in range(2):
        await desk.begin()
    await desk.refused()
    more = make_key(limits=RateLimits(requests_per_minute=4, in_flight=9))
    for _ in range(2):
        await desk.begin(key=more)
    await desk.refused(key=more)
    await desk.begin(key=make_key(limits=RateLimits(in_flight=9)))


async def test_calls_that_outlive_a_change_of_limits_settle_what_they_took():
    desk = Desk(RateLimits(in_flight=2, tokens_per_minute=100))
    call = await desk.begin()
    changed = make_key(limits=RateLimits(tokens_per_minute=200))
    await desk.begin(key=changed)
    back = make_key(limits=RateLimits(tokens_per_minute=100, in_flight=1))
    second = await desk.begin(key=back)
    desk.end(call)
    desk.end(second)
    assert (await desk.begin(key=back)).allowance is not None


async def test_refusals_are_counted_by_reason():
    desk = Desk(RateLimits(requests_per_minute=1))
    await desk.begin()
    await desk.refused()
    count = desk.metrics.registry.get_sample_value
    assert count("lorry_limit_refusals_total", {"reason": "requests"}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0ms"), (0.02, "20ms"), (1.5, "1.5s"), (60, "1m0s"), (372.4, "6m12.4s"), (7500, "2h5m0s")],
)
def test_durations_are_written_as_openai_does(seconds, text):
    assert as_duration(seconds) == text
