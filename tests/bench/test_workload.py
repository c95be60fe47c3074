"""The same seed gives the same requests, everywhere; no prompt is used twice."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from bench.workload import BASE, Workload, adapter_names


def test_a_seed_gives_the_same_requests_after_a_trip_through_json():
    workload = Workload(streams=5, prompt_tokens=7, adapters=(BASE, "a"))
    again = Workload.from_json(json.loads(json.dumps(asdict(workload))))
    assert again == workload
    assert again.requests(50, seed=3) == workload.requests(50, seed=3)


def test_another_round_asks_with_other_prompts_of_the_same_shape():
    workload = Workload(streams=4, prompt_tokens=16)
    prompts = [request.prompt for seed in (0, 1) for request in workload.requests(1000, seed)]
    assert len({tuple(prompt) for prompt in prompts}) == 8
    assert {len(prompt) for prompt in prompts} == {16}
    assert all(0 <= token < 1000 for prompt in prompts for token in prompt)


def test_the_prompts_do_not_depend_on_who_answers():
    plain, mixed = Workload(), Workload(adapters=adapter_names(16, 8))
    assert [r.prompt for r in plain.requests(99, 1)] == [r.prompt for r in mixed.requests(99, 1)]


@pytest.mark.parametrize("count", [1, 3, 8])
def test_adapters_take_turns_so_that_all_of_them_are_in_the_batch(count):
    names = adapter_names(16, count)
    used = [request.adapter for request in Workload(adapters=names).requests(9, 0)]
    assert set(used) == set(names)
    assert used[:count] == list(names)


def test_the_warm_up_has_the_batch_of_the_workload_and_is_shorter():
    workload = Workload(streams=24, prompt_tokens=128, output_tokens=32, adapters=("a", "b"))
    warm = workload.warm_up()
    assert (warm.streams, warm.prompt_tokens, warm.adapters) == (24, 128, ("a", "b"))
    assert 1 < warm.output_tokens < workload.output_tokens
    assert Workload(output_tokens=2).warm_up().output_tokens == 2
