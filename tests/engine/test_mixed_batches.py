"""A request in a batch of many adapters gets the same answer as alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_process import EngineProcess, assert_same, requests_to

# Below and above a KV block (32 tokens) and a step of the cramped engine (64).
LENGTHS = (9, 75)


def test_answers_in_a_batch_equal_answers_alone(engine: EngineProcess) -> None:
    requests = requests_to((None, *engine.fitting), LENGTHS)
    alone = engine.run_each_alone(requests)
    assert_same(alone, engine.run(requests))
    assert_same(alone[::-1], engine.run(requests[::-1]))


def test_models_differ_in_most_tokens_so_that_a_mix_up_shows(engine: EngineProcess) -> None:
    requests = requests_to((None, *engine.fitting), LENGTHS)
    alone = dict(zip(requests, engine.run_each_alone(requests), strict=True))
    for request, answer in alone.items():
        for model in {None, *engine.fitting} - {request.adapter}:
            other = alone[replace(request, adapter=model)]
            pairs = list(zip(answer.tokens, other.tokens, strict=True))
            assert sum(ours == theirs for ours, theirs in pairs) <= len(pairs) / 3


def test_requests_that_join_during_decode_change_no_answer(engine: EngineProcess) -> None:
    requests = [
        replace(request, arrives=2 * place)
        for place, request in enumerate(requests_to((*engine.fitting, None), LENGTHS))
    ]
    assert_same(engine.run_each_alone(requests), engine.run(requests))


def test_prompt_logprobs_of_several_requests_are_correct(engine: EngineProcess) -> None:
    # Includes four rows of prompt log-probabilities beside four sampled ones: equal counts.
    requests = [
        *requests_to((None, *engine.fitting[:2]), (5, 70), prompt_logprobs=True, tokens=4),
        *requests_to((None, engine.fitting[0]), (1, 33), seed=1, tokens=4),
    ]
    assert_same(engine.run_each_alone(requests), engine.run(requests))


@pytest.mark.slow
def test_prefixes_cached_in_a_mixed_batch_are_correct_for_later_requests(
    plain: EngineProcess,
) -> None:
    requests = requests_to((None, *plain.fitting), (75,))
    alone = plain.run_each_alone(requests)
    assert [answer.cached for answer in plain.run(requests)] == [0] * len(requests)

    again = plain.run(requests)
    one_by_one = [plain.run([request])[0] for request in requests]
    for answers in (again, one_by_one):
        assert [answer.cached for answer in answers] == [64] * len(requests)
        assert_same(alone, answers)


def test_chunked_prefill_shared_by_two_adapters_changes_no_answer(
    cramped: EngineProcess,
) -> None:
    # 150 tokens are two steps of 64 and a rest that shares its step with the next adapter.
    requests = requests_to((None, "ash", "birch"), (150, 101), tokens=6)
    assert_same(cramped.run_each_alone(requests), cramped.run(requests))


def test_preempted_requests_get_their_full_answer(cramped: EngineProcess) -> None:
    # Five fit into the KV cache until they need a fourth block.
    requests = requests_to(("ash", None, "birch"), (90, 88, 86), tokens=30)
    alone = cramped.run_each_alone(requests)
    before = cramped.counter("vllm:num_preemptions")
    assert_same(alone, cramped.run(requests))
    assert cramped.counter("vllm:num_preemptions") > before


@pytest.mark.slow
def test_answers_are_correct_without_the_compiled_kernels(portable: EngineProcess) -> None:
    requests = requests_to((None, *portable.fitting), LENGTHS)
    assert_same(portable.run_each_alone(requests), portable.run(requests))
    assert "bitsandbytes' own serve" in portable.log()
