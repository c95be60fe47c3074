"""Placement: stable, bounded, and never without an answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.placement import ALWAYS_FREE, choose, load_limit


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    in_flight: int = 0
    capacity: float = 24.0


NAMES = st.text(min_size=1, max_size=12)
SERVERS = st.builds(Server, NAMES, st.integers(0, 200), st.floats(0.5, 512))
FLEETS = st.lists(SERVERS, min_size=1, max_size=12, unique_by=lambda each: each.name)
BOUNDS = st.floats(1, 4)


def idle(count: int, capacity: float = 24.0) -> list[Server]:
    return [Server(f"replica-{number:03}", 0, capacity) for number in range(count)]


def emptied(fleet: Sequence[Server]) -> list[Server]:
    return [replace(each, in_flight=0) for each in fleet]


def order_of(adapter: str, fleet: Sequence[Server]) -> list[str]:
    """The adapter's whole order: its first choice, then that without the first, and so on."""
    left, names = emptied(fleet), []
    while left:
        first = choose(adapter, left)
        names.append(first.name)
        left.remove(first)
    return names


@given(NAMES, FLEETS, st.randoms(use_true_random=False))
def test_the_same_facts_in_any_order_give_the_same_replica(adapter, fleet, rng) -> None:
    shuffled = rng.sample(fleet, len(fleet))
    assert choose(adapter, fleet) == choose(adapter, shuffled)
    assert choose(None, fleet) == choose(None, shuffled)


@given(NAMES, FLEETS, SERVERS)
def test_a_replica_that_comes_takes_adapters_and_moves_no_others(adapter, fleet, new) -> None:
    assume(new.name not in {each.name for each in fleet})
    before, after = order_of(adapter, fleet), order_of(adapter, [*fleet, new])
    assert [name for name in after if name != new.name] == before


@given(NAMES, FLEETS)
def test_a_replica_that_goes_moves_only_its_own_adapters_to_their_second_choices(
    adapter, fleet
) -> None:
    order = order_of(adapter, fleet)
    for gone in fleet:
        left = [each for each in fleet if each is not gone]
        assert order_of(adapter, left) == [name for name in order if name != gone.name]


def test_one_of_ten_replicas_takes_a_tenth_of_the_adapters_with_it() -> None:
    adapters = [f"adapter-{number}" for number in range(5000)]
    fleet = idle(10)
    homes = {each: choose(each, fleet).name for each in adapters}
    moved = [each for each in adapters if choose(each, fleet[1:]).name != homes[each]]
    assert all(homes[each] == fleet[0].name for each in moved)
    assert len(moved) == pytest.approx(500, rel=0.15)


@given(NAMES, FLEETS, BOUNDS)
def test_no_replica_takes_a_call_beyond_its_bound_however_full_all_are(
    adapter, fleet, bound
) -> None:
    taken = choose(adapter, fleet, bound)
    calls = sum(each.in_flight for each in fleet) + 1
    share = taken.capacity / sum(each.capacity for each in fleet)
    allowed = max(ALWAYS_FREE * taken.capacity, bound * calls * share)
    assert taken.in_flight < allowed * (1 + 1e-9)


@given(st.lists(NAMES, min_size=1, max_size=5), st.integers(1, 12), st.integers(1, 150))
def test_calls_that_never_end_leave_no_replica_far_above_the_mean(adapters, count, calls) -> None:
    fleet = {each.name: each for each in idle(count, capacity=4.0)}
    for number in range(calls):
        taken = choose(adapters[number % len(adapters)], list(fleet.values()))
        fleet[taken.name] = replace(taken, in_flight=taken.in_flight + 1)
    most = max(each.in_flight for each in fleet.values())
    assert most <= max(2, math.ceil(1.25 * calls / count))


def test_on_quiet_replicas_the_calls_of_an_adapter_stay_together() -> None:
    """The mean is next to nothing then: bounded by it alone, each call would go somewhere else."""
    fleet = {each.name: each for each in idle(100)}
    for _ in range(13):
        taken = choose("orders", list(fleet.values()))
        fleet[taken.name] = replace(taken, in_flight=taken.in_flight + 1)
    assert sorted(each.in_flight for each in fleet.values())[-3:] == [0, 1, 12]


@given(NAMES, FLEETS)
def test_the_first_choice_stays_while_it_has_room(adapter, fleet) -> None:
    first = order_of(adapter, fleet)[0]
    limit = load_limit(fleet)
    has_room = next(each.in_flight < limit * each.capacity for each in fleet if each.name == first)
    assert (choose(adapter, fleet).name == first) == has_room


@given(NAMES, st.integers(2, 12), st.integers(1, 300))
def test_a_hot_adapter_has_the_first_of_its_order_as_many_as_its_load_fills(
    adapter, count, calls
) -> None:
    fleet = {each.name: each for each in idle(count)}
    order = order_of(adapter, list(fleet.values()))
    most = 1
    for _ in range(calls):
        taken = choose(adapter, list(fleet.values()))
        most = max(most, 1 + order.index(taken.name))
        fleet[taken.name] = replace(taken, in_flight=taken.in_flight + 1)
    used = {name for name in order if fleet[name].in_flight}
    assert used == set(order[:most])
    # Half its capacity fits on each; beyond that 80 % of the replicas, at 1.25 times the mean, do.
    assert most <= max(math.ceil(calls / 12), math.ceil(count / 1.25) + 1)
    # Its calls end: nothing else is needed for it to be back on its first choice.
    assert choose(adapter, emptied(list(fleet.values()))).name == order[0]


def test_adapters_are_shared_out_by_capacity() -> None:
    fleet = [Server("small", 0, 8), Server("large", 0, 24)]
    homes = Counter(choose(f"adapter-{number}", fleet).name for number in range(4000))
    assert homes["large"] / 4000 == pytest.approx(0.75, abs=0.03)


def test_capacity_changes_move_adapters_only_towards_the_one_that_grew() -> None:
    before = idle(5)
    after = [replace(before[0], capacity=48.0), *before[1:]]
    for number in range(500):
        old, new = choose(f"a{number}", before).name, choose(f"a{number}", after).name
        assert new in {old, before[0].name}


def test_base_calls_go_where_the_load_is_least_for_the_capacity() -> None:
    fleet = [Server("a", 6, 8), Server("b", 12, 24), Server("c", 13, 24)]
    assert choose(None, fleet).name == "b"


def test_versions_of_servers_agree_on_where_an_adapter_is() -> None:
    """During an upgrade old and new routers run beside each other: the hash must not change."""
    fleet = idle(8)
    names = ("orders", "support", "sql", "größe", "\ud800")
    assert "".join(choose(name, fleet).name[-1] for name in names) == "37040"


@pytest.mark.parametrize("bound", [0.99, 0, -1, math.nan])
def test_a_bound_that_could_leave_a_call_without_a_replica_is_refused(bound) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        choose("orders", idle(2), bound)


@pytest.mark.parametrize("adapter", ["orders", None])
def test_without_replicas_there_is_an_error_and_no_answer(adapter) -> None:
    with pytest.raises(ValueError, match="no replica"):
        choose(adapter, [])
