"""The answer to a single request is correct; the other tests compare with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import pytest
from engine_process import Answer, EngineProcess, Request, assert_same, requests_to

LENGTHS = (9, 75)


@pytest.fixture(scope="module")
def reference(base: Path, adapters: Path) -> Callable[[Request, Answer], list[float]]:
    """Log-probabilities of an answer's tokens by transformers and PEFT, in fp32."""
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def logprobs(request: Request, answer: Answer) -> list[float]:
        model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
        if request.adapter:
            model = PeftModel.from_pretrained(model, adapters / request.adapter)
        ids = torch.tensor([[*request.prompt, *answer.tokens]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(request.prompt) - 1 : -1]
        tokens = torch.tensor(answer.tokens)[:, None]
        return logits.log_softmax(-1).gather(1, tokens)[:, 0].tolist()

    return logprobs


@pytest.mark.filterwarnings("default")  # deprecations in transformers and PEFT
def test_answers_agree_with_transformers_and_peft(
    engine: EngineProcess, reference: Callable[[Request, Answer], list[float]]
) -> None:
    requests = requests_to((None, *engine.fitting), LENGTHS)
    for request, answer in zip(requests, engine.run_each_alone(requests), strict=True):
        pairs = zip(answer.logprobs, reference(request, answer), strict=True)
        # bf16 against fp32; another adapter's answer is several nats away.
        assert fmean(abs(ours - theirs) for ours, theirs in pairs) < 0.2


@pytest.mark.slow
def test_nf4_and_bf16_engines_agree_on_weights_that_nf4_represents_exactly(
    cramped: EngineProcess, open_ended: EngineProcess
) -> None:
    requests = requests_to((None, "ash", "birch"), LENGTHS)
    answers = open_ended.run_each_alone(requests), cramped.run_each_alone(requests)
    # The two kernels round differently, so near ties are more frequent.
    assert_same(*answers, tokens_for_a_tie=20)
