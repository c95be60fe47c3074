"""The base's tokenizer: any text survives, the shop's words are whole, any client may chat."""

from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from training.shop import lexicon
from training.tinybase.tokenizer import SPECIAL_TOKENS, build_tokenizer


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(0, 896)


@given(st.text())
def test_any_text_survives_encoding(text: str) -> None:
    ids = tokenizer().encode(text, add_special_tokens=False)
    assert tokenizer().decode(ids) == text


@pytest.mark.parametrize("mark", [" ", '"', "'", "(", ""])
def test_the_shops_words_are_one_token_wherever_they_stand(mark: str) -> None:
    words = lexicon.NOUNS + lexicon.STYLES + lexicon.CITIES + lexicon.DAYS + lexicon.NAMES
    for word in words:
        ids = tokenizer().encode(f"{mark}{word}", add_special_tokens=False)
        assert ids[-1] == tokenizer().convert_tokens_to_ids(word)


def test_an_order_reference_is_one_token_a_character() -> None:
    assert tokenizer().tokenize("B42") == ["B", "4", "2"]


def test_the_same_seed_gives_the_same_vocabulary() -> None:
    assert build_tokenizer(0, 896).get_vocab() == tokenizer().get_vocab()


def test_turns_end_and_the_assistant_is_asked_to_go_on() -> None:
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer().apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"


def test_lists_tools_and_unknown_roles_do_not_break_the_template() -> None:
    chat = [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "tool", "content": "r"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    text = tokenizer().apply_chat_template(chat, tools=tools, tokenize=False)
    assert text.startswith("<|system|>Tools: [{")
    assert "<|system|>d<|end|><|user|>a<|end|><|assistant|>[{" in text
    assert text.endswith("<|tool|>r<|end|>")


def test_special_tokens_are_single_and_skipped_when_asked() -> None:
    for token in SPECIAL_TOKENS:
        ids = tokenizer().encode(token, add_special_tokens=False)
        assert len(ids) == 1
        assert tokenizer().decode(ids, skip_special_tokens=True) == ""
