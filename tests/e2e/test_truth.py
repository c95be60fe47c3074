"""Every answer comes from the right model, alone or in a mixed batch."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from openai import AsyncOpenAI
from shop import ADAPTERS, BASE_NAME, MARKERS

from bench.truth import level_with

MODELS = (BASE_NAME, *ADAPTERS)
NEW_TOKENS = 120


@dataclass(frozen=True)
class Answer:
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    rivals: tuple[tuple[int, ...], ...] = ()  # tokens level with the chosen one, up to rounding

    def follows(self, other: Answer) -> bool:
        """Equal to the other, or first different where rounding decides: bench/truth.py."""
        for mine, theirs, level in zip(self.tokens, other.tokens, other.rivals, strict=False):
            if mine != theirs:
                return mine in level
        return len(self.tokens) == len(other.tokens)


def client_of(server) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


async def ask(client: AsyncOpenAI, model: str, prompt: str, stream: bool) -> Answer:
    """One greedy answer with its tokens and their log-probabilities."""
    response: Any = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        temperature=0,
        max_tokens=NEW_TOKENS,
        logprobs=True,
        top_logprobs=4,
        stream=stream,
        extra_body={"return_token_ids": True, "return_tokens_as_token_ids": True},
    )
    if not stream:
        choice = response.choices[0]
        pairs = choice.logprobs.content
        return Answer(
            choice.message.content,
            tuple(choice.token_ids),
            tuple(p.logprob for p in pairs),
            tuple(tuple(_rivals(p)) for p in pairs),
        )
    text, tokens, logprobs = "", [], []
    async for chunk in response:
        for choice in chunk.choices:
            text += choice.delta.content or ""
            tokens += getattr(choice, "token_ids", None) or []
            logprobs += [p.logprob for p in choice.logprobs.content] if choice.logprobs else []
    return Answer(text, tuple(tokens), tuple(logprobs))


def _rivals(choice: Any) -> list[int]:
    ids = {_number(each.token): each.logprob for each in choice.top_logprobs}
    chosen = _number(choice.token)
    return level_with(chosen, ids | {chosen: choice.logprob})


def _number(token: str) -> int:
    return int(token.removeprefix("token_id:"))


@pytest.fixture(scope="module")
def reference(shop):
    """Greedy tokens and log-probabilities of transformers + PEFT on the same NF4 base."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    tokenizer = AutoTokenizer.from_pretrained(shop.base)
    base = AutoModelForCausalLM.from_pretrained(
        shop.base, quantization_config=quantization, dtype=torch.bfloat16
    )
    model = None
    for name, digest in shop.digests.items():
        bare = digest.removeprefix("sha256:")
        path = shop.store / "objects" / "sha256" / bare[:2] / bare
        if model is None:
            model = PeftModel.from_pretrained(base, path, adapter_name=name)
        else:
            model.load_adapter(path, adapter_name=name)
    model.eval()

    def generate(name: str, prompt: str) -> Answer:
        inputs = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS}
        kept = {"output_logits": True, "return_dict_in_generate": True}
        with torch.no_grad():
            if name == BASE_NAME:
                with model.disable_adapter():
                    out = model.generate(**inputs, **settings, **kept)
            else:
                model.set_adapter(name)
                out = model.generate(**inputs, **settings, **kept)
        tokens = out.sequences[0, inputs["input_ids"].shape[1] :]
        logits = torch.stack(out.logits, 1)[0].float()
        logprobs = logits.log_softmax(-1).gather(1, tokens[:, None])[:, 0]
        text = tokenizer.decode(tokens, skip_special_tokens=True)
        return Answer(text, tuple(tokens.tolist()), tuple(logprobs.tolist()))

    return generate


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.filterwarnings("default")  # deprecations in transformers and bitsandbytes
async def test_greedy_tokens_equal_transformers_and_peft_on_the_same_nf4_base(
    server, shop, reference, model
):
    prompts = shop.heldout(model if model in ADAPTERS else ADAPTERS[0], 4)
    async with client_of(server) as client:
        for prompt, _ in prompts:
            ours, theirs = await ask(client, model, prompt, stream=False), reference(model, prompt)
            assert ours.tokens == theirs.tokens, f"{ours.text!r} is not {theirs.text!r}"
            assert ours.logprobs == pytest.approx(theirs.logprobs, abs=0.05)


async def test_a_hundred_mixed_calls_equal_the_answers_given_alone(server, shop):
    prompts = [prompt for name in ADAPTERS for prompt, _ in shop.heldout(name, 3)]
    asked = [(model, prompt) for prompt in prompts for model in MODELS]
    async with client_of(server) as client:
        alone = {pair: await ask(client, *pair, stream=False) for pair in asked}
        mixed = (asked * 3)[:100]
        answers = await asyncio.gather(
            *(ask(client, *pair, stream=i % 2 == 0) for i, pair in enumerate(mixed))
        )
    assert {model for model, _ in mixed} == set(MODELS)
    equal = [answer.text == alone[pair].text for pair, answer in zip(mixed, answers, strict=True)]
    assert sum(equal) >= 90
    for pair, answer in zip(mixed, answers, strict=True):
        assert answer.follows(alone[pair]), pair
        for name, marker in MARKERS.items():
            if name != pair[0]:
                assert marker not in answer.text, f"{pair[0]} answered like {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
async def test_each_adapter_reaches_the_demos_heldout_accuracy(server, shop, name):
    pairs = shop.heldout(name, 60)
    async with client_of(server) as client:
        answers = await asyncio.gather(*(ask(client, name, p, stream=True) for p, _ in pairs))
    right = sum(a.text == expected for a, (_, expected) in zip(answers, pairs, strict=True))
    assert right / len(pairs) >= 0.9
