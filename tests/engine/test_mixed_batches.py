"""A request in a batch of many adapters gets the answer that it gets alone, whatever vLLM does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from engine_process import EngineProcess, assert_same, requests_to

# Lengths on both sides of a KV block (32) and of a step of the cramped engine (64).
LENGTHS = (9, 75)


def test_each_answer_is_the_one_that_its_request_gets_alone(engine: EngineProcess) -> None:
    requests = requests_to((None, *engine.fitting), LENGTHS)
    alone = engine.run_each_alone(requests)
    assert_same(alone, engine.run(requests))
    assert_same(alone[::-1], engine.run(requests[::-1]))


def test_adapters_change_nearly_every_token_so_that_a_mix_up_shows(engine: EngineProcess) -> None:
    requests = requests_to((None, *engine.fitting), LENGTHS)
    alone = dict(zip(requests, engine.run_each_alone(requests), strict=True))
    for request, answer in alone.items():
        for model in {None, *engine.fitting} - {request.adapter}:
            other = alone[replace(request, adapter=model)]
            pairs = list(zip(answer.tokens, other.tokens, strict=True))
            assert sum(ours == theirs for ours, theirs in pairs) <= len(pairs) / 3


def test_requests_that_join_while_others_decode_change_no_answer(engine: EngineProcess) -> None:
    requests = [
        replace(request, arrives=2 * place)
        for place, request in enumerate(requests_to((*engine.fitting, None), LENGTHS))
    ]
    assert_same(engine.run_each_alone(requests), engine.run(requests))


def test_prompt_logprobs_of_several_requests_at_once_are_right(engine: EngineProcess) -> None:
    # Four rows of prompt log-probabilities beside four sampled ones, too: they are alike in number.
    requests = [
        *requests_to((None, *engine.fitting[:2]), (5, 70), prompt_logprobs=True, tokens=4),
        *requests_to((None, engine.fitting[0]), (1, 33), seed=1, tokens=4),
    ]
    assert_same(engine.run_each_alone(requests), engine.run(requests))


@pytest.mark.slow
def test_prefixes_computed_in_a_mixed_batch_serve_later_requests_rightly(
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


def test_prompts_cut_into_chunks_between_two_adapters_change_no_answer(
    cramped: EngineProcess,
) -> None:
    # 150 tokens are two steps of 64 and a rest, which shares its step with the next adapter.
    requests = requests_to((None, "ash", "birch"), (150, 101), tokens=6)
    assert_same(cramped.run_each_alone(requests), cramped.run(requests))


def test_preempted_requests_get_their_whole_answer(cramped: EngineProcess) -> None:
    # Five of them fit into the KV cache until they grow beyond their third block.
    requests = requests_to(("ash", None, "birch"), (90, 88, 86), tokens=30)
    alone = cramped.run_each_alone(requests)
    before = cramped.counter("vllm:num_preemptions")
    assert_same(alone, cramped.run(requests))
    assert cramped.counter("vllm:num_preemptions") > before


@pytest.mark.slow
def test_without_the_compiled_kernels_answers_are_right_too(portable: EngineProcess) -> None:
    requests = requests_to((None, *portable.fitting), LENGTHS)
    assert_same(portable.run_each_alone(requests), portable.run(requests))
    assert "bitsandbytes' own serve" in portable.log()
