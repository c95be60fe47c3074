"""The order of calls into the engine: its rules one by one, then over any order of events."""

from __future__ import annotations

import pytest
from engine_model import EngineModel
from hypothesis import example, given, settings
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
        queue.end(entered[0], 0.0)
    assert order[:4] == [flood[0], quiet[0], flood[1], quiet[1]]
    assert order[4:] == flood[2:]


def test_those_who_share_a_flow_take_turns_in_it():
    queue = FairQueue(limits(sequences=1))
    flood = [entry(member="flood") for _ in range(6)]
    quiet = [entry(member="quiet") for _ in range(2)]
    join(queue, *flood[:5], *quiet, entry("other flow"))
    order = [enter_and_end(queue) for _ in range(4)]
    assert [each.flow for each in order].count("other flow None") == 1
    join(queue, late := entry(member="late"), flood[5])
    order += [enter_and_end(queue) for _ in range(6)]
    own = [each for each in order if each.flow == "a None"]
    assert own[:3] == [flood[0], quiet[0], flood[1]]
    assert own.index(late) < own.index(flood[3])
    assert [each for each in own if each.member == "flood"] == flood


@given(st.lists(st.tuples(st.sampled_from("xyz"), st.booleans()), max_size=40))
def test_an_entry_waits_behind_as_many_of_each_other_member_as_wait_of_its_own(steps):
    queue = FairQueue(limits(sequences=1))
    for member, enters in steps:
        before = list(queue.waiting())
        join(queue, each := entry(member=member))
        waiting = list(queue.waiting())
        assert [other for other in waiting if other is not each] == before
        own = sum(other.member == member for other in before)
        ahead = waiting[: waiting.index(each)]
        assert sum(other.member == member for other in ahead) == own
        for other in set("xyz") - {member}:
            assert sum(one.member == other for one in ahead) <= own + 1
        if enters:
            enter_and_end(queue)


def test_a_short_call_does_not_wait_behind_a_crowd_of_long_ones():
    queue = FairQueue(limits(sequences=1))
    join(queue, *(entry(f"crowd {number}", prompt=50) for number in range(50)))
    join(queue, entry("short"))
    assert enter_and_end(queue).flow == "short None"


def test_a_flow_that_was_away_gets_no_credit_for_it():
    queue = FairQueue(limits(sequences=1))
    join(queue, *(entry("busy") for _ in range(40)))
    for _ in range(20):
        queue.end(enter(queue)[0], 0.0)
    join(queue, *(entry("back") for _ in range(20)))
    first = [enter_and_end(queue).flow for _ in range(10)]
    assert first.count("back None") == 5


@pytest.mark.parametrize(("away", "times"), [(0.5, 7), (1.5, 6)])
def test_a_flow_that_was_idle_for_a_moment_keeps_what_it_was_due(away, times):
    queue = FairQueue(limits(sequences=1, credit=20.0))
    join(queue, entry("back"), *(entry("busy") for _ in range(40)))
    assert enter_and_end(queue).flow == "back None"
    for _ in range(20):
        assert enter_and_end(queue).flow == "busy None"
    join(queue, *(entry("back") for _ in range(20)), now=away)
    served = [enter_and_end(queue).flow for _ in range(12)]
    assert served.count("back None") == times


def enter_and_end(queue: FairQueue) -> Entry:
    (found,) = enter(queue)
    queue.end(found, 0.0)
    return found


def test_what_was_served_counts_although_nobody_waits_or_runs_for_a_moment():
    queue = FairQueue(limits(sequences=1))
    for _ in range(100):
        join(queue, entry("old", prompt=100))
        enter_and_end(queue)
    join(queue, *(entry("new", prompt=100) for _ in range(60)))
    join(queue, *(entry("old", prompt=100) for _ in range(60)))
    first = [enter_and_end(queue).flow for _ in range(40)]
    assert first.count("old None") >= 15


def test_newcomers_enter_in_the_order_in_which_they_came():
    queue = FairQueue(limits(sequences=1))
    join(queue, *(entry("busy", prompt=100) for _ in range(100)))
    for _ in range(50):
        enter_and_end(queue)
    new = [entry(f"new {number}", prompt=100) for number in range(20)]
    join(queue, *new)
    assert [each for _ in range(30) if (each := enter_and_end(queue)) in new] == new


def test_a_weight_of_two_gets_twice_as_much():
    queue = FairQueue(limits(sequences=1))
    join(queue, *(entry("heavy", weight=2.0) for _ in range(60)))
    join(queue, *(entry("light") for _ in range(60)))
    served = [enter_and_end(queue).flow for _ in range(60)]
    assert served.count("heavy None") == pytest.approx(40, abs=1)


def test_prompts_enter_in_portions_and_a_long_one_alone():
    queue = FairQueue(limits(sequences=10, prefill_tokens=25))
    join(queue, *(entry("a", prompt=10) for _ in range(4)), entry("b", prompt=400))
    portions = []
    while queue.calls:
        portion = []
        while (found := queue.dispatch(0.0)) is not None:
            portion.append(found)
        for each in portion:
            each.prefilling = False
        portions.append([each.prompt for each in portion])
    assert portions == [[10, 10], [10, 10], [400]]


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
    queue.end(ended[0], 0.0)
    assert {each.adapter for each in enter(queue, now=0.7)} == {"x"}  # none of y's
    for each in ended[1:]:
        queue.end(each, 0.0)
    assert z in enter(queue, now=0.8)


def test_an_adapter_whose_load_took_long_keeps_its_slot_for_a_while_too():
    queue = FairQueue(limits(adapters=1))
    join(queue, first := entry("x", "x"), entry("z", "z"))
    queue.bring_in(0.0)
    queue.loaded("x")
    assert enter(queue, now=2.0) == [first]
    join(queue, later := entry("x", "x"), now=2.1)
    assert enter(queue, now=2.1) == [later]


def test_a_slot_drains_no_more_once_nobody_waits_for_one():
    queue = FairQueue(limits(sequences=8, adapters=1))
    join(queue, entry("a", "x"))
    enter(queue)
    join(queue, z := entry("z", "z"))
    enter(queue, now=1.0)
    join(queue, later := entry("b", "x"), now=1.1)
    assert enter(queue, now=1.1) == []
    queue.leave(z)
    assert enter(queue, now=1.2) == [later]


def test_a_pinned_adapter_takes_no_place_of_the_others():
    queue = FairQueue(
        limits(adapters=3, is_pinned=lambda adapter: adapter == "pinned", unpinned=lambda: 1)
    )
    join(queue, *(entry(adapter=name) for name in ("x", "y", "pinned")))
    assert sorted(each.adapter for each in enter(queue)) == ["pinned", "x"]


def is_sum(adapter: str) -> bool:
    return adapter.startswith("sum")


def test_sums_take_few_of_the_slots_and_one_drains_for_another_sum_only():
    queue = FairQueue(limits(sequences=9, adapters=3, sums=1, is_sum=is_sum))
    x, first, second = entry("x", "x"), entry("a", "sum a"), entry("b", "sum b")
    join(queue, x, first, second)
    assert set(enter(queue)) == {x, first}  # a slot is free, but not for a sum
    first_again, x_again = entry("a", "sum a"), entry("x", "x")
    join(queue, first_again, x_again, now=1.0)
    assert x_again in enter(queue, 1.0)
    y = entry("y", "y")
    join(queue, y, now=1.0)
    assert enter(queue, 1.0) == [y]  # an adapter does not wait behind the sum
    queue.end(first, 2.0)
    queue.end(first_again, 2.0)
    assert enter(queue, 2.0) == [second]
    assert {each.adapter for each in queue.inside} == {"x", "y", "sum b"}


def test_whoever_is_not_served_for_too_long_has_every_second_turn():
    queue = FairQueue(limits(sequences=1, wait_seconds=5))
    join(queue, *(entry("slow", weight=0.01) for _ in range(2)))
    join(queue, *(entry("fast") for _ in range(1000)))
    times = [now / 10 for now in range(120) if enter_at(queue, now / 10) == "slow None"]
    assert times == [5.0, 10.0]


def test_a_crowd_that_waits_for_long_does_not_keep_a_newcomer_waiting():
    queue = FairQueue(limits(sequences=1, wait_seconds=5))
    join(queue, *(entry(f"crowd {number}") for number in range(50) for _ in range(3)))
    for now in range(100):
        if now == 70:
            join(queue, entry("newcomer"), now=70.0)
        if enter_at(queue, float(now)) == "newcomer None":
            break
    assert now <= 72


def enter_at(queue: FairQueue, now: float) -> str:
    (found,) = enter(queue, now)
    queue.end(found, 0.0)
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
    assert str(full.value) == "calls"


def test_what_was_inside_an_engine_that_ended_goes_first_in_its_flow_and_is_never_refused():
    queue = FairQueue(limits(sequences=1, calls=2))
    was_inside, *waiting = [entry("a") for _ in range(3)]
    join(queue, was_inside)
    assert enter(queue) == [was_inside]
    join(queue, *waiting)
    queue.end(was_inside, 0.0)
    again = entry("a")
    with pytest.raises(QueueFull):
        queue.join(entry("a"), 0.0)
    queue.rejoin(again, 0.0)
    assert queue.calls == 3
    assert enter(queue) == [again]


def test_tokens_bound_the_queue_too_but_one_call_may_always_wait():
    queue = FairQueue(limits(tokens=50))
    join(queue, entry("a", prompt=500))
    with pytest.raises(QueueFull) as full:
        queue.join(entry("a", prompt=1), 0.0)
    assert str(full.value) == "tokens"


def test_a_flow_with_more_calls_makes_room_for_a_long_prompt_as_far_as_it_can():
    queue = FairQueue(limits(tokens=50))
    flood = [entry("flood", prompt=10) for _ in range(4)]
    join(queue, *flood)
    assert queue.join(entry("quiet", prompt=45), 0.0) == [flood[3], flood[2], flood[1]]
    assert queue.calls == 2


def test_who_lets_the_most_tokens_wait_makes_room_for_tokens():
    queue = FairQueue(limits(tokens=1000))
    long = [entry("long", prompt=450) for _ in range(2)]
    join(queue, *long, *(entry("short", prompt=5) for _ in range(20)))
    with pytest.raises(QueueFull):
        queue.join(entry("long", prompt=1), 0.0)
    assert queue.join(entry("quiet", prompt=50), 0.0) == [long[1]]


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


@given(
    events=EVENTS,
    adapters=st.integers(1, 3),
    sequences=st.integers(1, 6),
    sums=st.integers(1, 4),
)
@settings(deadline=None)
def test_no_call_is_lost_doubled_or_kept_from_a_free_place(events, adapters, sequences, sums):
    model = EngineModel(
        limits(
            adapters=adapters,
            sequences=sequences,
            prefill_tokens=80,
            sums=sums,
            is_sum=lambda adapter: adapter in "yz",
        )
    )
    for event in events:
        model.happen(*event)
        model.check_bounds()
        model.check_work_conserving()
    model.finish()
    assert sorted(model.ended + model.hung_up + model.failed) == sorted(model.joined)


@example(prompts=(7, 1), outputs=(1, 1), sequences=4)
@example(prompts=(7, 2), outputs=(1, 1), sequences=6)
@given(
    prompts=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    outputs=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    sequences=st.integers(1, 6),
)
@settings(deadline=None)
def test_two_backlogged_flows_are_never_far_apart(prompts, outputs, sequences):
    model = EngineModel(limits(sequences=sequences, prefill_tokens=80))
    before = None
    for _ in range(300):
        for caller in (0, 1):
            while model.waiting_of(caller) < 2 * sequences:
                model.happen("join", caller, None, prompts[caller], outputs[caller], 1)
        before = before or dict(model.service)  # the first began alone
        model.happen("step")
    gained = [model.service[caller] - before.get(caller, 0) for caller in (0, 1)]
    # Theorem 4.4 of the paper (twice the larger of one prompt and all that runs at once), and a
    # call of each, which finish tags look ahead.
    most = max(max(prompts), OUTPUT_TOKEN * sequences * max(outputs))
    call = max(prompts) + OUTPUT_TOKEN * max(outputs)
    assert abs(gained[0] - gained[1]) <= 2 * (most + call)


def test_newcomers_do_not_keep_a_flow_waiting_that_was_served_before():
    model = EngineModel(limits(adapters=4, sequences=8, wait_seconds=60.0))

    def run(tenants: range, steps: int) -> None:
        for _ in range(steps):
            for tenant in tenants:
                while model.calls_of(tenant) < 2:
                    model.happen("join", tenant, f"adapter-{tenant}", 10, 5, 1)
            model.happen("step")
            model.happen("load")

    run(range(4), 400)
    before = [model.service[tenant] for tenant in range(4)]
    run(range(16), 200)  # 10 s
    gained = [model.service[tenant] - before[tenant] for tenant in range(4)]
    newcomers = [model.service[tenant] for tenant in range(4, 16)]
    assert min(gained) >= 0.5 * sum(gained + newcomers) / 16


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


@given(sums=st.integers(1, 2), outputs=st.integers(1, 20))
@settings(deadline=None)
def test_a_flood_of_sums_leaves_adapters_their_turns_and_has_its_own(sums, outputs):
    model = EngineModel(limits(adapters=4, sequences=8, wait_seconds=2.0, sums=sums, is_sum=is_sum))
    names = [*(f"sum {number}" for number in range(12)), "x", "y", "z"]
    for _ in range(2000):
        for tenant, name in enumerate(names):
            while model.calls_of(tenant) < 4:
                model.happen("join", tenant, name, 10, outputs, 1)
        model.happen("step")
        model.happen("load")
    shares = [model.service[tenant] for tenant in range(len(names))]
    assert min(shares[12:]) >= 0.5 * sum(shares) / len(names)
    assert min(shares[:12]) >= 0.5 * sum(shares[:12]) / 12
