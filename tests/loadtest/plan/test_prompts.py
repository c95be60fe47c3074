"""Bodies follow the plan, with words or token ids, and all prompts differ."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadtest.plan.plan import Call
from loadtest.plan.prompts import STRUCTURE, WORDS, body, path
from loadtest.plan.scenario import Scenario

CALL = Call(
    phase="steady",
    stream="mixed",
    number=3,
    at=None,
    adapter=None,
    endpoint="completions",
    prompt_tokens=12,
    output_tokens=5,
    streamed=False,
    structured=False,
    hang_up_after=None,
)


def scenario(vocabulary: int | None = None, seed: int = 42, **stream: Any) -> Scenario:
    phase = {"name": "steady", "seconds": 1, "traffic": {"mixed": {"kind": "poisson", "rate": 1}}}
    return Scenario.model_validate(
        {
            "name": "prompts",
            "seed": seed,
            "vocabulary": vocabulary,
            "streams": {"mixed": stream},
            "phases": [phase],
        }
    )


def call(**changed: Any) -> Call:
    return msgspec.structs.replace(CALL, **changed)


def test_a_plain_body_requests_greedy_tokens_only():
    asked = body(CALL, "a@1", scenario(ignore_eos=False))
    prompt = asked.pop("prompt")
    assert asked == {"model": "a@1", "temperature": 0, "max_tokens": 5}
    assert len(prompt.split()) == 12
    assert set(prompt.split()) <= set(WORDS)


def test_calls_divide_among_the_streams_callers():
    of_three = scenario(callers=3)
    users = [body(call(number=number), "a", of_three)["user"] for number in range(5)]
    assert users == ["mixed-0", "mixed-1", "mixed-2", "mixed-0", "mixed-1"]
    assert "user" not in body(CALL, "a", scenario())


def test_a_streamed_call_requests_usage():
    asked = body(call(streamed=True), "a", scenario())
    assert asked["stream"] is True
    assert asked["stream_options"] == {"include_usage": True}


def test_ignore_eos_is_optional_and_never_set_for_json():
    assert body(CALL, "a", scenario())["ignore_eos"] is True
    assert "ignore_eos" not in body(CALL, "a", scenario(ignore_eos=False))
    structured = body(call(structured=True), "a", scenario())
    assert "ignore_eos" not in structured
    assert structured["response_format"] == STRUCTURE


@settings(deadline=None)
@given(
    vocabulary=st.integers(16, 200_000),
    tokens=st.integers(1, 300),
    number=st.integers(0, 10**6),
)
def test_a_prompt_has_the_planned_number_of_token_ids(vocabulary, tokens, number):
    asked = body(call(prompt_tokens=tokens, number=number), "a", scenario(vocabulary=vocabulary))
    assert len(asked["prompt"]) == tokens
    assert all(vocabulary // 2 <= token < vocabulary for token in asked["prompt"])


@pytest.mark.parametrize("vocabulary", [None, 1000])
def test_chat_prompts_are_words(vocabulary):
    asked = body(call(endpoint="chat"), "a", scenario(vocabulary=vocabulary))
    assert "prompt" not in asked
    [message] = asked["messages"]
    assert message["role"] == "user"
    assert len(message["content"].split()) == 12


@pytest.mark.parametrize("vocabulary", [None, 1000])
def test_each_call_has_its_own_prompt_drawn_from_the_seed(vocabulary):
    variants = [{}, {"number": 4}, {"stream": "mixed", "phase": "other"}]
    prompts = [
        body(call(**variant), "a", scenario(vocabulary, seed))["prompt"]
        for variant in variants
        for seed in (42, 43)
    ]
    assert len({str(prompt) for prompt in prompts}) == 6
    assert body(CALL, "another", scenario(vocabulary))["prompt"] == prompts[0]


def test_prompts_have_known_values_on_every_machine():
    # If this fails, the same scenario yields other calls: raise plan's _EDITION.
    assert body(CALL, "a", scenario(1000))["prompt"][:5] == [595, 562, 785, 666, 934]
    assert body(CALL, "a", scenario())["prompt"].startswith("boat bear father ")


def test_the_words_are_many_short_and_lower_case():
    assert len(set(WORDS)) == len(WORDS) >= 150
    assert all(word.isalpha() and word.islower() and len(word) <= 8 for word in WORDS)


def test_paths_are_those_of_the_openai_api():
    assert path(CALL) == "/v1/completions"
    assert path(call(endpoint="chat")) == "/v1/chat/completions"
