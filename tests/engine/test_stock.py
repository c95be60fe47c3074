"""vLLM 0.32 without Lorry's kernels fails these tests' checks: they detect the faults."""

from __future__ import annotations

import pytest
from engine_process import EngineFailed, EngineProcess, assert_same, requests_to

pytestmark = pytest.mark.slow

LENGTHS = (9, 75)


def test_stock_vllm_answers_base_requests_with_another_model(stock: EngineProcess) -> None:
    requests = requests_to((None, "ash", "birch"), LENGTHS)
    alone = stock.run_each_alone(requests)
    together = stock.run(requests)
    assert_same(alone[1:3] + alone[4:], together[1:3] + together[4:])
    for right, answer in zip(alone[::3], together[::3], strict=True):
        with pytest.raises(AssertionError):
            assert_same([right], [answer])


def test_a_broken_adapter_leaves_non_finite_values_in_stock_vllms_kv_cache(
    stock: EngineProcess,
) -> None:
    stock.run(requests_to(["nan"], (40,)))
    assert stock.non_finite_values_in_kv_cache() > 0


def test_prompt_logprobs_of_several_requests_crash_stock_vllm(stock: EngineProcess) -> None:
    requests = requests_to((None, "hazel"), (9,), prompt_logprobs=True)
    with pytest.raises(EngineFailed, match="add_lora_logits"):
        stock.run(requests)
