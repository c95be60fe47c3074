"""The order of calls into the engine: its rules one by one, then over any order of events."""

from __future__ import annotations

import pytest
from engine_model import EngineModel
from hypothesis import given, settings
from hypothesis import strategies as st

from server.gate.queue import OUTPUT_TOKEN, Entry, FairQueue, Limits, QueueFull


def limits(**given) -> Limits:
    return Limits(**{"sequences": 4, "adapters": 2, "prefill_tokens": 100} | given)


def entry(flow: str = "a", adapter: str | None = None, prompt: int = 10, **given) -> Entry:
    return Entry(f"{flow} {adapter}", adapter, prompt, left=20, **given)


def join(queue: FairQueue, *entries: Entry, now: float = 0.0) -> None:
    for each in entries:
        queue.join(each, now)


def enter(queue: FairQueue, now: float = 0.0) -> list[Entry]:
    """All that enter now; their adapters are there at once."""
    entered = []
    while True:
        released = queue.release_idle()
        if (cold := queue.bring_in(now)) is not None:
            queue.loaded(cold.adapter)
        elif (found := queue.dispatch(now)) is not None:
            found.prefilling = False
            entered.append(found)
        elif not released:
            return entered


def test_the_flow_that_was_served_least_is_next():
    queue = FairQueue(limits(sequences=1))
    flood = [entry("flood") for _ in range(5)]
    quiet = [entry("quiet") for _ in range(2)]
    join(queue, *flood, *quiet)
    order = []
    while entered := enter(queue):
        order += entered
        queue.charge(entered[0], OUTPUT_TOKEN * 5)
        queue.end(entered[0])
    assert order[:4] == [flood[0], quiet[0], flood[1], quiet[1]]
    assert order[4:] == flood[2:]


def test_a_flow_that_was_away_gets_little_credit_for_it():
    queue = FairQueue(limits(sequences=1, credit=20.0))
    join(queue, *(entry("busy") for _ in range(40)))
    for _ in range(20):
        queue.end(enter(queue)[0])
    join(queue, *(entry("back") for _ in range(20)))
    first = [enter_and_end(queue).flow for _ in range(12)]
    assert first[:2] == ["back None"] * 2
    assert first[2:].count("back None") == 5


def enter_and_end(queue: FairQueue) -> Entry:
    (found,) = enter(queue)
    queue.end(found)
    return found


def test_a_weight_of_two_gets_twice_as_much():
    queue = FairQueue(limits(sequences=1))
    join(queue, *(entry("heavy", weight=2.0) for _ in range(60)))
    join(queue, *(entry("light") for _ in range(60)))
    served = [enter_and_end(queue).flow for _ in range(60)]
    assert served.count("heavy None") == pytest.approx(40, abs=1)


def test_prompts_enter_in_portions_and_a_long_one_alone():
    queue = FairQueue(limits(sequences=10, prefill_tokens=25))
    join(queue, *(entry("a", prompt=10) for _ in range(4)), entry("b", prompt=400))
    first = []
    while (found := queue.dispatch(0.0)) is not None:
        first.append(found)
    assert [each.prompt for each in first] == [10]  # then it is the long one's turn
    first[0].prefilling = False
    assert queue.dispatch(0.0).prompt == 400
    assert queue.dispatch(0.0) is None


def test_never_more_adapters_inside_than_slots_and_the_base_needs_none():
    queue = FairQueue(limits())
    join(queue, *(entry(adapter=name) for name in "xyz"), entry(adapter=None))
    assert sorted(str(each.adapter) for each in enter(queue)) == ["None", "x", "y"]


def test_a_slot_drains_for_a_flow_that_waits_and_its_runs_end():
    queue = FairQueue(limits(sequences=8))
    x, y = [entry("x", "x") for _ in range(9)], [entry("y", "y") for _ in range(9)]
    join(queue, *x, *y)
    inside = enter(queue)
    for each in inside:
        each.left = 5 if each.adapter == "y" else 50
        queue.charge(each, 100)
    z = entry("z", "z")
    join(queue, z)
    assert enter(queue, now=0.2) == []  # neither has had its slot for long enough
    assert enter(queue, now=0.6) == []  # y drains: it has the least left
    ended = [each for each in inside if each.adapter == "y"]
    queue.end(ended[0])
    assert {each.adapter for each in enter(queue, now=0.7)} == {"x"}  # none of y's
    for each in ended[1:]:
        queue.end(each)
    assert z in enter(queue, now=0.8)


def test_a_pinned_adapter_takes_no_place_of_the_others():
    queue = FairQueue(
        limits(adapters=3, is_pinned=lambda adapter: adapter == "pinned", unpinned=lambda: 1)
    )
    join(queue, *(entry(adapter=name) for name in ("x", "y", "pinned")))
    assert sorted(each.adapter for each in enter(queue)) == ["pinned", "x"]


def test_whoever_is_not_served_for_too_long_goes_first():
    queue = FairQueue(limits(sequences=1, wait_seconds=5))
    slow = entry("slow", weight=0.01)
    join(queue, slow, entry("slow", weight=0.01), *(entry("fast") for _ in range(1000)))
    times = [now / 10 for now in range(120) if enter_at(queue, now / 10) == "slow None"]
    assert times == [0.0, 5.0]


def enter_at(queue: FairQueue, now: float) -> str:
    (found,) = enter(queue, now)
    queue.end(found)
    return found.flow


def test_a_full_queue_refuses_the_longest_flow_not_a_stranger():
    queue = FairQueue(limits(calls=4))
    flood = [entry("flood") for _ in range(4)]
    join(queue, *flood)
    assert queue.room_for("flood None") == "calls"
    with pytest.raises(QueueFull):
        queue.join(entry("flood"), 0.0)
    assert queue.room_for("quiet None") is None
    assert queue.join(entry("quiet"), 0.0) == [flood[-1]]
    assert queue.calls == 4
    assert queue.join(entry("quiet"), 0.0) == [flood[-2]]
    with pytest.raises(QueueFull) as full:
        queue.join(entry("quiet"), 0.0)
    assert full.value.reason == "calls"


def test_tokens_bound_the_queue_too_but_one_call_may_always_wait():
    queue = FairQueue(limits(tokens=50))
    join(queue, entry("a", prompt=500))
    with pytest.raises(QueueFull) as full:
        queue.join(entry("a", prompt=1), 0.0)
    assert full.value.reason == "tokens"


def test_an_adapter_that_does_not_load_fails_those_that_wait_for_it_only():
    queue = FairQueue(limits())
    lost, kept = [entry("a", "x"), entry("b", "x")], entry("a", "y")
    join(queue, *lost, kept)
    assert queue.bring_in(0.0).adapter == "x"
    assert set(queue.not_loaded("x")) == set(lost)
    assert enter(queue) == [kept]
    assert queue.calls == 0


# ---- any order of events

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["join", "hang up", "step", "step", "load", "fail"]),
        st.integers(0, 5),  # the caller
        st.sampled_from([None, "w", "x", "y", "z"]),
        st.integers(1, 60),  # prompt tokens
        st.integers(1, 8),  # output tokens
        st.integers(1, 3),  # sequences
    ),
    max_size=150,
)


@given(events=EVENTS, adapters=st.integers(1, 3), sequences=st.integers(1, 6))
@settings(deadline=None)
def test_no_call_is_lost_doubled_or_kept_from_a_free_place(events, adapters, sequences):
    model = EngineModel(limits(adapters=adapters, sequences=sequences, prefill_tokens=80))
    for event in events:
        model.happen(*event)
        model.check_bounds()
        model.check_work_conserving()
    model.finish()
    assert sorted(model.ended + model.hung_up + model.failed) == sorted(model.joined)


@given(
    prompts=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    outputs=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    sequences=st.integers(1, 6),
)
@settings(deadline=None)
def test_two_backlogged_flows_are_never_far_apart(prompts, outputs, sequences):
    model = EngineModel(limits(sequences=sequences, prefill_tokens=80))
    for _ in range(300):
        for caller in (0, 1):
            while model.waiting_of(caller) < 2 * sequences:
                model.happen("join", caller, None, prompts[caller], outputs[caller], 1)
        model.happen("step")
    # Theorem 4.4 of the paper: twice the larger of one prompt and all that runs at once. The first
    # caller began alone, with all places.
    most = max(max(prompts), OUTPUT_TOKEN * sequences * max(outputs))
    assert abs(model.service[0] - model.service[1]) <= 3 * most


@given(adapters=st.integers(1, 4), tenants=st.integers(2, 16), outputs=st.integers(1, 20))
@settings(deadline=None)
def test_more_adapters_than_slots_are_all_served_in_turn(adapters, tenants, outputs):
    model = EngineModel(limits(adapters=adapters, sequences=8, wait_seconds=2.0))
    for _ in range(2000):
        for tenant in range(tenants):
            while model.calls_of(tenant) < 4:
                model.happen("join", tenant, f"adapter-{tenant}", 10, outputs, 1)
        model.happen("step")
        model.happen("load")
    shares = [model.service[tenant] for tenant in range(tenants)]
    assert min(shares) >= 0.5 * sum(shares) / tenants
