"""Greedy answers of a real model: order, ends, limits, and what a prompt and an answer are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shop import BASE

from training.data.forms import Example
from training.data.problems import Place
from training.data.tokens import Tokenizer, load_tokenizer
from training.errors import DataInvalid
from training.evaluation.answers import answer_greedily, encode_prompts, expected_text
from training.qlora import load_base

PROMPTS = ("two lamps", "three blue chairs to Oslo by Friday", "a red table", "hello")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(BASE, "shop-base")


@pytest.fixture(scope="module")
def model() -> Any:
    return load_base(BASE, quantized=False)


def chat(text: str, number: int = 1, tools: tuple[dict[str, Any], ...] = ()) -> Example:
    turns = [{"role": "user", "content": text}]
    return Example(Place("a", number), turns, [{"role": "assistant", "content": "2"}], tools)


def test_answers_in_batches_are_those_one_by_one(model, tokenizer) -> None:
    asked = [chat(text) for text in PROMPTS]
    single = [answer_greedily(model, tokenizer, [each], max_new_tokens=40)[0] for each in asked]
    said: list[str] = []
    batched = answer_greedily(
        model, tokenizer, asked, max_new_tokens=40, batch_size=3, report=said.append
    )
    assert batched == single
    assert said == ["3/4 answers", "4/4 answers"]
    assert len({answer.text for answer in batched}) == len(PROMPTS)


def test_an_answer_ends_at_its_end_or_at_the_limit(model, tokenizer) -> None:
    (whole,) = answer_greedily(model, tokenizer, [chat("two lamps")], max_new_tokens=60)
    assert whole.ended
    assert 1 < whole.tokens < 60
    (cut,) = answer_greedily(model, tokenizer, [chat("two lamps")], max_new_tokens=2)
    assert (cut.ended, cut.tokens) == (False, 2)
    assert whole.text.startswith(cut.text)


def test_plain_text_is_asked_without_the_template(tokenizer) -> None:
    plain = Example(Place("a", 1), "two lamps", " 2")
    (ids,) = encode_prompts(tokenizer, [plain])
    assert ids == tokenizer.inner("two lamps")["input_ids"]
    (templated,) = encode_prompts(tokenizer, [chat("two lamps")])
    assert len(templated) > len(ids)
    assert expected_text(plain, None) == " 2"
    assert expected_text(chat("two lamps"), None) == "2"


def test_prompts_that_do_not_fit_are_refused_with_their_lines(model, tokenizer) -> None:
    long = chat("lamp " * 2_000, 7)
    with pytest.raises(DataInvalid, match="line 7: the prompt and 10 tokens of an answer"):
        answer_greedily(model, tokenizer, [chat("lamp"), long], max_new_tokens=10)


def test_a_base_without_a_template_answers_no_chat(tokenizer) -> None:
    bare = load_tokenizer(BASE, "bare")
    bare.inner.chat_template = None
    with pytest.raises(DataInvalid, match="line 3: a chat, and the base bare has no chat template"):
        encode_prompts(bare, [chat("lamp", 3)])


def test_an_expected_tool_call_is_what_the_template_writes(tmp_path: Path) -> None:
    tools = load_tokenizer(BASE, "tools")
    tools.inner.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{% for c in m.tool_calls %}CALL {{ c.function.name }}{{ c.function.arguments | tojson }}"
        "{% endfor %}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    call = {"type": "function", "function": {"name": "ship", "arguments": {"to": "Oslo"}}}
    asked = Example(
        Place("a", 4),
        [{"role": "user", "content": "lamp"}],
        [{"role": "assistant", "content": "", "tool_calls": [call]}],
    )
    assert expected_text(asked, tools).replace(" ", "") == 'CALLship{"to":"Oslo"}'
    with pytest.raises(DataInvalid, match=r"line 4: the answer is a tool call.* --base"):
        expected_text(asked, None)
