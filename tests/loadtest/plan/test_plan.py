"""A plan depends on the seed alone, call by call, and is bounded."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.errors import ScenarioInvalid
from loadtest.plan import draws
from loadtest.plan.plan import Call, closed_call, digest, plan_phase, reseeded
from loadtest.plan.scenario import Scenario

MIXED = {
    "adapters": {"first": 2, "count": 5},
    "base_share": 0.2,
    "prompt_tokens": {"kind": "lognormal", "median": 30, "sigma": 1, "most": 200},
    "output_tokens": {"kind": "uniform", "least": 1, "most": 9},
    "streaming": 0.7,
    "structured": 0.3,
    "hang_up": 0.5,
}


def scenario(
    traffic: dict[str, Any] | None = None, seconds: float = 60, seed: int = 42, **streams: Any
) -> Scenario:
    streams = streams or {"mixed": MIXED, "plain": {}}
    arrival = {"kind": "poisson", "rate": 20}
    names = ("warm-up", "steady")
    traffic = traffic or dict.fromkeys(streams, arrival)
    return Scenario.model_validate(
        {
            "name": "plans",
            "seed": seed,
            "adapters": 9,
            "streams": streams,
            "phases": [{"name": name, "seconds": seconds, "traffic": traffic} for name in names],
        }
    )


def plan(made: Scenario) -> list[Call]:
    return plan_phase(made, made.phases[-1])


def closed(made: Scenario, calls: int, stream: str = "mixed") -> list[Call]:
    return [closed_call(made, made.phases[-1], stream, number) for number in range(calls)]


def stand_still(call: Call) -> Call:
    return msgspec.structs.replace(call, at=None)


# ---- the seed


@settings(max_examples=25, deadline=None)
@given(seed=st.integers())
def test_the_same_seed_gives_the_same_plan_and_another_round_another(seed):
    made = scenario(seconds=3, seed=seed)
    assert plan(made) == plan(scenario(seconds=3, seed=seed))
    assert plan(made) != plan(reseeded(made, 1))


def test_rounds_differ_from_each_other_and_the_first_is_the_scenario_itself():
    made = scenario()
    assert reseeded(made, 0) == made
    assert reseeded(made, 2) == reseeded(made, 2)
    seeds = [reseeded(scenario(seed=seed), round).seed for seed in (42, 43) for round in range(50)]
    assert len(set(seeds)) == 100
    assert reseeded(made, 1).model_copy(update={"seed": 42}) == made


def test_phases_with_equal_traffic_have_different_calls():
    made = scenario()
    first, second = (plan_phase(made, phase) for phase in made.phases)
    assert [call.at for call in first] != [call.at for call in second]


def test_a_call_does_not_depend_on_its_time_or_on_other_streams():
    together = [stand_still(call) for call in plan(scenario()) if call.stream == "mixed"]
    alone = plan(scenario({"mixed": {"kind": "gamma", "rate": 30, "cv": 3}}, mixed=MIXED))
    shared = min(len(together), len(alone))
    assert shared > 900
    assert sorted(together, key=lambda c: c.number)[:shared] == [
        stand_still(call) for call in alone[:shared]
    ]
    assert closed(scenario(), shared) == together[:shared]


def test_shares_do_not_change_lengths_and_adapters():
    one, other = (
        closed(scenario(mixed=MIXED | {"base_share": 0, "streaming": share}), 50)
        for share in (0.0, 1.0)
    )
    assert [c.streamed for c in one] != [c.streamed for c in other]
    for field in ("prompt_tokens", "output_tokens", "adapter", "structured"):
        assert [getattr(c, field) for c in one] == [getattr(c, field) for c in other]


def test_a_plan_has_known_values_on_every_machine():
    # If this fails, the same scenario yields other calls: raise plan's _EDITION.
    popularity = {"kind": "zipf", "exponent": 0.9}
    stream = MIXED | {"adapters": {"count": 9, "popularity": popularity}}
    made = scenario({"mixed": {"kind": "gamma", "rate": 4, "cv": 2}}, mixed=stream)
    known = [
        (round(call.at or 0, 4), call.adapter, call.prompt_tokens, call.output_tokens)
        for call in plan(made)[:4]
    ]
    assert known == [(1.166, 2, 22, 8), (1.168, 6, 74, 2), (1.2264, 0, 11, 5), (1.4713, 2, 101, 3)]


# ---- calls


def test_calls_are_ordered_by_time_and_numbered_by_stream():
    calls = plan(scenario())
    keys = [(call.at, call.stream, call.number) for call in calls]
    assert keys == sorted(keys)
    for stream in ("mixed", "plain"):
        numbers = [call.number for call in calls if call.stream == stream]
        assert numbers == list(range(len(numbers)))
        assert len(numbers) == pytest.approx(1200, rel=0.1)


def test_simultaneous_calls_are_ordered_by_stream():
    constant = {"kind": "constant", "rate": 1}
    calls = plan(scenario({"plain": constant, "mixed": constant}))
    assert [call.stream for call in calls[:4]] == ["mixed", "plain", "mixed", "plain"]


def test_calls_have_the_given_shares():
    calls = closed(scenario(), 4000)
    streamed = [call for call in calls if call.streamed]
    assert len(streamed) / 4000 == pytest.approx(0.7, abs=0.03)
    assert sum(call.structured for call in calls) / 4000 == pytest.approx(0.3, abs=0.03)
    adapters = Counter(call.adapter for call in calls)
    assert adapters.pop(None) / 4000 == pytest.approx(0.2, abs=0.03)
    assert set(adapters) == {2, 3, 4, 5, 6}
    patient = [call for call in streamed if call.output_tokens > 1]
    hung_up = [call for call in patient if call.hang_up_after]
    assert len(hung_up) / len(patient) == pytest.approx(0.5, abs=0.03)


def test_only_streamed_calls_hang_up_before_the_last_piece():
    calls = closed(scenario(mixed=MIXED | {"hang_up": 1.0}), 1000)
    for call in calls:
        if call.streamed and call.output_tokens > 1:
            assert call.hang_up_after in range(1, call.output_tokens)
        else:
            assert call.hang_up_after is None
    assert {c.hang_up_after for c in calls if c.output_tokens == 9} == {None, *range(1, 9)}


def test_a_stream_without_adapters_calls_the_base():
    calls = closed(scenario(plain={"endpoint": "chat"}), 20, "plain")
    assert {call.adapter for call in calls} == {None}
    assert {call.endpoint for call in calls} == {"chat"}


def test_in_turn_follows_the_calls_number():
    adapters = {"first": 3, "count": 4, "popularity": {"kind": "in-turn"}}
    calls = closed(scenario(mixed={"adapters": adapters}), 6)
    assert [call.adapter for call in calls] == [3, 4, 5, 6, 3, 4]


def test_closed_loops_have_no_planned_calls():
    made = scenario({"mixed": {"kind": "closed", "concurrency": 3}})
    assert plan(made) == []
    assert closed(made, 3)[2].number == 2


def test_a_traces_fields_override_the_draws(tmp_path):
    file = tmp_path / "calls.jsonl"
    file.write_text(
        '{"at": 1, "adapter": 4, "prompt_tokens": 77, "output_tokens": 88}\n{"at": 2}\n'
    )
    stream = MIXED | {"base_share": 1.0}
    made = scenario({"mixed": {"kind": "trace", "file": str(file), "speed": 4}}, mixed=stream)
    traced, drawn = plan(made)
    assert (traced.at, traced.adapter, traced.prompt_tokens, traced.output_tokens) == (
        0.25,
        6,
        77,
        88,
    )
    assert drawn.at == 0.5
    assert stand_still(drawn) == closed(made, 2)[1]


def test_an_adapter_of_a_trace_must_be_in_the_stream(tmp_path):
    file = tmp_path / "calls.jsonl"
    file.write_text('{"at": 1, "adapter": 0}\n')
    with pytest.raises(ScenarioInvalid, match="line 1"):
        plan(scenario({"plain": {"kind": "trace", "file": str(file)}}))


def test_the_calls_of_a_phase_are_bounded(monkeypatch):
    monkeypatch.setattr(draws, "MOST_CALLS", 100)
    constant = {"kind": "constant", "rate": 1}
    assert len(plan(scenario({"mixed": constant}, seconds=100))) == 100
    with pytest.raises(ScenarioInvalid, match="phase steady plans more than 100 calls"):
        plan(scenario({"mixed": constant}, seconds=101))
    with pytest.raises(ScenarioInvalid, match="phase steady"):
        plan(scenario({"mixed": constant, "plain": constant}, seconds=51))


# ---- the digest


def changed(made: Scenario, **fields: Any) -> Scenario:
    return Scenario.model_validate(made.model_dump() | fields)


def test_the_digest_depends_on_the_traffic_alone():
    made = scenario()
    others = [
        changed(made, seed=1),
        changed(made, vocabulary=99),
        changed(made, adapters=10),
        scenario(seconds=61),
        scenario({"mixed": {"kind": "poisson", "rate": 21}}),
        scenario(mixed=MIXED | {"streaming": 0.6}),
        reseeded(made, 1),
    ]
    assert len({digest(each) for each in [made, *others]}) == len(others) + 1
    phases = made.model_dump()["phases"]
    phases[0] |= {"measured": False, "actions": [{"do": "stop-server", "at": 1}]}
    same = changed(made, name="another", about="x", timeout_seconds=9, phases=phases)
    assert same != made
    assert digest(same) == digest(made)


def test_the_digest_depends_on_a_traces_content_and_not_on_its_path(tmp_path):
    files = [tmp_path / name for name in ("a", "b", "c")]
    for file, at in zip(files, (1, 1, 2), strict=True):
        file.write_text(f'{{"at": {at}}}\n')
    one, same, other = (
        digest(scenario({"mixed": {"kind": "trace", "file": str(file)}})) for file in files
    )
    assert one == same != other
    with pytest.raises(ScenarioInvalid, match="can't read the trace"):
        digest(scenario({"mixed": {"kind": "trace", "file": str(tmp_path / "none")}}))


def test_planning_does_not_touch_the_global_random_state():
    random.seed(1)
    before = random.getstate()
    plan(scenario(seconds=1))
    assert random.getstate() == before
