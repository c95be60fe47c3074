"""Adapters are isolated: nothing leaks from a freed slot, a broken adapter harms no other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_process import EngineProcess, Request, assert_same, requests_to


def requests_to_base_and(*adapters: str) -> list[Request]:
    return requests_to((None, *adapters), (9, 75))


def test_an_unloaded_adapter_leaves_zeros_in_its_slot(engine: EngineProcess) -> None:
    for adapter in engine.fitting:
        engine.load(adapter)
        slot = engine.slots().index(adapter)
        assert engine.slot_ranks()[slot] > 0
        engine.unload(adapter)
        assert engine.slots()[slot] is None
        assert engine.slot_ranks()[slot] == 0


def test_an_evicted_adapter_leaves_nothing_in_its_reused_slot(
    engine: EngineProcess, ranks: dict[str, int]
) -> None:
    for adapter in (*engine.fitting, *reversed(engine.fitting)):
        engine.run(requests_to_base_and(adapter))
        slot = engine.slots().index(adapter)
        assert engine.slot_ranks()[slot] == ranks[adapter]


def test_answers_do_not_depend_on_the_slot(engine: EngineProcess) -> None:
    requests = requests_to_base_and(*engine.fitting)
    alone = engine.run_each_alone(requests)
    for order in (engine.fitting, engine.fitting[::-1]):
        engine.unload_all()
        for adapter in order:
            engine.load(adapter)
        engine.forget_prefixes()
        assert_same(alone, engine.run(requests))


def test_nan_in_free_slots_changes_no_answer(engine: EngineProcess) -> None:
    requests = requests_to_base_and(*engine.fitting)
    alone = engine.run_each_alone(requests)
    engine.unload_all()
    engine.load(*engine.fitting[:2])
    engine.unload(engine.slots()[0])
    assert engine.poison_free_slots() >= 1
    left = [slot for slot in engine.slots() if slot]

    some = [request for request in requests if request.adapter in (None, *left)]
    assert_same(engine.run_each_alone(some), engine.run(some))
    assert engine.slots()[0] is None
    engine.forget_prefixes()
    assert_same(alone, engine.run(requests))  # also from the poisoned slots
    assert engine.non_finite_values_in_kv_cache() == 0


@pytest.mark.parametrize("broken", ["nan", "infinite", "huge", "loud"])
def test_a_broken_adapter_changes_no_other_answer(engine: EngineProcess, broken: str) -> None:
    requests = requests_to_base_and(*engine.fitting[:2])
    alone = engine.run_each_alone(requests)
    before = engine.counter("vllm:corrupted_requests")
    # Its requests end while others run; later ones reuse its KV cache blocks.
    spoilers = requests_to([broken], (40, 70), tokens=5)
    others = [replace(each, arrives=4 * place) for place, each in enumerate(requests)]
    assert_same(alone, engine.run([*spoilers, *others])[len(spoilers) :])
    assert engine.non_finite_values_in_kv_cache() == 0

    engine.forget_prefixes()
    assert_same(alone, engine.run(requests))  # it is still in its slot, idle
    engine.unload(broken)
    engine.forget_prefixes()
    assert_same(alone, engine.run(requests))
    assert engine.non_finite_values_in_kv_cache() == 0
    assert engine.counter("vllm:corrupted_requests") == before + len(spoilers)
