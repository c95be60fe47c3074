"""What is learnt, token by token: the answer and its end of turn, as the server will ask for it."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from training.data.forms import Example
from training.data.problems import Place
from training.data.sets import DataSet
from training.data.tokens import (
    IGNORED,
    Encoded,
    Row,
    Tokenizer,
    encode_set,
    load_tokenizer,
    require_encoded,
)
from training.errors import BaseInvalid, DataInvalid

SHOP_BASE = Path("examples/shop/base")
USER = {"role": "user", "content": "two blue lamps"}
ASSISTANT = {"role": "assistant", "content": "2 lamps"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}
LOOP = "{% for m in messages %}<|{{ m.role }}|>BODY{% endfor %}"
ASK = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TEMPLATES = {
    "plain": LOOP.replace("BODY", "{{ m.content }}<|end|>") + ASK,
    "newline": LOOP.replace("BODY", "\n{{ m.content }}<|end|>\n")
    + "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "no end": LOOP.replace("BODY", "{{ m.content }}\n\n") + ASK,
    "thinks": LOOP.replace("BODY", "<think>{{ m.reasoning_content }}</think>{{ m.content }}<|end|>")
    + ASK,
}


@pytest.fixture
def tokenizer() -> Tokenizer:
    return load_tokenizer(SHOP_BASE, "tiny")


def with_template(tokenizer: Tokenizer, name: str) -> Tokenizer:
    tokenizer.inner.chat_template = TEMPLATES[name]
    return tokenizer


def chat(*turns: dict[str, Any], line: int = 1, tools: tuple[Any, ...] = ()) -> Example:
    return Example(Place("set.jsonl", line), [*turns[:-1]], [turns[-1]], tools)


def encode(tokenizer: Tokenizer, *examples: Example, max_length: int = 512) -> Encoded:
    return encode_set(DataSet(("set.jsonl",), list(examples)), tokenizer, max_length)


def learnt(tokenizer: Tokenizer, row: Row) -> str:
    return tokenizer.inner.decode([label for label in row["labels"] if label != IGNORED])  # type: ignore[return-value]


@pytest.mark.parametrize("template", ["plain", "newline"])
def test_the_answer_and_its_end_are_learnt_and_no_more(tokenizer: Tokenizer, template: str) -> None:
    (row,) = encode(with_template(tokenizer, template), chat(USER, ASSISTANT)).rows
    assert learnt(tokenizer, row) == "2 lamps<|end|>"
    assert row["labels"][-1] == tokenizer.inner.eos_token_id
    assert "{% generation" not in tokenizer.inner.chat_template


@pytest.mark.parametrize("template", ["plain", "newline"])
def test_the_prompt_is_what_the_server_makes_of_the_same_call(
    tokenizer: Tokenizer, template: str
) -> None:
    turns = [USER, ASSISTANT, USER]
    (row,) = encode(with_template(tokenizer, template), chat(*turns, ASSISTANT)).rows
    asked = tokenizer.inner.apply_chat_template(turns, add_generation_prompt=True)["input_ids"]
    assert row["input_ids"][: len(asked)] == asked
    assert row["labels"][: len(asked)] == [IGNORED] * len(asked)
    assert row["labels"][len(asked) :] == row["input_ids"][len(asked) :]


def test_the_end_is_learnt_where_pad_and_end_are_the_same(tokenizer: Tokenizer) -> None:
    """TRL's collator must mask what it pads, and not each token that equals the padding."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    inner = tokenizer.inner
    inner.pad_token = inner.eos_token
    long = chat(USER, ASSISTANT | {"content": "2 blue lamps and 3 red lamps"})
    rows = encode(tokenizer, chat(USER, ASSISTANT), long).rows
    labels = DataCollatorForLanguageModeling(pad_token_id=inner.pad_token_id)(rows)["labels"]
    for row, padded in zip(rows, labels.tolist(), strict=True):
        width = len(row["labels"])
        assert padded[:width] == row["labels"]
        assert padded[width - 1] == inner.eos_token_id
        assert set(padded[width:]) <= {IGNORED}


def test_trl_takes_the_rows_as_they_are(tokenizer: Tokenizer) -> None:
    """The columns for which TRL neither renders, tokenizes nor masks again."""
    (row,) = encode(tokenizer, chat(USER, ASSISTANT)).rows
    assert row.keys() == {"input_ids", "labels"}


@pytest.mark.slow
def test_the_rows_are_those_that_trl_makes_of_the_same_examples(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """TRL's own rendering, tokenizing and masking, of chats and of plain text."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import SFTConfig, SFTTrainer

    tools = ({"type": "function", "function": {"name": "f"}},)
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    plain = Example(Place("set.jsonl", 1), "2 + 2 =", " 4")
    for example in (chat(USER, ASSISTANT, USER, ASSISTANT), chat(USER, called, tools=tools), plain):
        row = {"prompt": example.prompt, "completion": example.completion}
        row |= {"tools": list(example.tools)} if example.tools else {}
        trainer = SFTTrainer(
            model=AutoModelForCausalLM.from_pretrained(SHOP_BASE),
            args=SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False),
            train_dataset=Dataset.from_list([row]),
            processing_class=tokenizer.inner,
        )
        (made,) = trainer.train_dataset
        assert encode(tokenizer, example).rows == [
            {key: made[key] for key in ("input_ids", "labels")}
        ]


def test_plain_text_ends_with_the_end_token(tokenizer: Tokenizer) -> None:
    (row,) = encode(tokenizer, Example(Place("set.jsonl", 1), "2 + 2 =", " 4")).rows
    assert learnt(tokenizer, row) == " 4<|end|>"
    assert tokenizer.inner.decode(row["input_ids"]) == "2 + 2 = 4<|end|>"


def test_a_template_without_an_end_is_warned_about_and_gets_one(tokenizer: Tokenizer) -> None:
    found = encode(with_template(tokenizer, "no end"), chat(USER, ASSISTANT))
    assert learnt(tokenizer, found.rows[0]) == "2 lamps\n\n<|end|>"
    (said,) = found.warnings(tokenizer)
    assert said.startswith("WARNING: the chat template of tiny does not end an answer")
    assert "<|end|> is added to each answer" in said


def test_an_end_at_which_no_server_stops_is_no_end(tokenizer: Tokenizer) -> None:
    """A chat template put on a base that ends its texts otherwise, as many raw bases have."""
    ends = frozenset({tokenizer.inner.pad_token_id})
    tokenizer.inner.eos_token = tokenizer.inner.pad_token
    found = encode(replace(tokenizer, ends=ends), chat(USER, ASSISTANT))
    assert learnt(tokenizer, found.rows[0]) == "2 lamps<|end|><|pad|>"
    assert "<|pad|> is added to each answer" in found.warnings(tokenizer)[0]


def test_a_base_without_any_end_is_said_never_to_stop(tokenizer: Tokenizer) -> None:
    tokenizer.inner.eos_token = None
    tokenizer = replace(tokenizer, ends=frozenset())
    found = encode(tokenizer, chat(USER, ASSISTANT))
    assert "never learns to stop" in found.warnings(tokenizer)[0]


def test_the_ends_are_those_at_which_the_server_stops(tmp_path: Path) -> None:
    base = shutil.copytree(SHOP_BASE, tmp_path / "base")
    end = AutoTokenizer.from_pretrained(base).eos_token_id
    (base / "generation_config.json").write_text('{"eos_token_id": [7, 9]}')
    assert load_tokenizer(base, "tiny").ends == {end, 7, 9}
    (base / "generation_config.json").unlink()
    (base / "config.json").write_text('{"eos_token_id": 8, "model_type": "llama"}')
    assert load_tokenizer(base, "tiny").ends == {end, 8}


def test_a_cut_answer_is_counted_and_its_line_named(tokenizer: Tokenizer) -> None:
    long = chat(USER, ASSISTANT | {"content": "2 lamps " * 50}, line=7)
    found = encode(tokenizer, chat(USER, ASSISTANT), long, max_length=64)
    assert not found.problems
    assert [len(row["input_ids"]) for row in found.rows] == [found.lengths[0], 64]
    (said,) = found.warnings(tokenizer)
    assert said.startswith("WARNING: 1 of 2 answers are cut at max_length 64")
    assert f"has {found.lengths[1]} tokens" in said
    assert said.endswith("set.jsonl: line 7")


def test_an_answer_that_just_fits_is_not_cut(tokenizer: Tokenizer) -> None:
    (length,) = encode(tokenizer, chat(USER, ASSISTANT)).lengths
    assert not encode(tokenizer, chat(USER, ASSISTANT), max_length=length).cut
    assert encode(tokenizer, chat(USER, ASSISTANT), max_length=length - 1).cut


def test_a_prompt_that_leaves_nothing_of_the_answer_is_an_error(tokenizer: Tokenizer) -> None:
    long = chat(USER | {"content": "two lamps " * 50}, ASSISTANT, line=7)
    found = encode(tokenizer, long, max_length=64)
    assert not found.rows
    with pytest.raises(DataInvalid, match="line 7: the prompt alone fills max_length 64"):
        require_encoded(found)


def test_chats_on_a_base_without_a_template_are_an_error(tokenizer: Tokenizer) -> None:
    tokenizer.inner.chat_template = None
    with pytest.raises(DataInvalid, match="chats, and the base tiny has no chat template"):
        require_encoded(encode(tokenizer, chat(USER, ASSISTANT)))
    plain = Example(Place("set.jsonl", 1), "a", "b")
    assert encode(tokenizer, plain).rows


def test_tools_and_calls_are_learnt_by_the_template(tokenizer: Tokenizer) -> None:
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    tools = ({"type": "function", "function": {"name": "f"}},)
    (row,) = encode(tokenizer, chat(USER, called, tools=tools)).rows
    assert '"arguments": {"a": 1}' in learnt(tokenizer, row)
    assert "Tools:" in str(tokenizer.inner.decode(row["input_ids"]))


@pytest.mark.parametrize(
    ("example", "feature"),
    [
        (chat(USER, ASSISTANT | {"tool_calls": [CALL]}), "tool_calls"),
        (chat(USER, ASSISTANT, tools=({"name": "f"},)), "tools"),
        (chat(USER, ASSISTANT | {"reasoning_content": "hm"}), "reasoning_content"),
        (chat({"role": "system", "content": "be brief"}, USER, ASSISTANT), "system turns"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_template_ignores_is_refused_in_every_line(
    tokenizer: Tokenizer, example: Example, feature: str
) -> None:
    tokenizer.inner.chat_template = (
        "{% for m in messages if m.role != 'system' %}{{ m.content }}<|end|>{% endfor %}"
    )
    again = replace(example, place=Place("set.jsonl", 2))
    found = encode(tokenizer, example, again, chat(USER, ASSISTANT, line=3))
    assert str(found.problems) == (
        f"set.jsonl: lines 1 and 2: the chat template of tiny ignores {feature}"
    )
    assert len(found.rows) == 1


def test_reasoning_is_learnt_where_the_template_writes_it(tokenizer: Tokenizer) -> None:
    example = chat(USER, ASSISTANT | {"reasoning_content": "hm"})
    (row,) = encode(with_template(tokenizer, "thinks"), example).rows
    assert learnt(tokenizer, row) == "<think>hm</think>2 lamps<|end|>"


def test_what_a_template_refuses_is_named_with_its_words(tokenizer: Tokenizer) -> None:
    tokenizer.inner.chat_template = "{{ raise_exception('roles must alternate') }}"
    found = encode(tokenizer, chat(USER, ASSISTANT, line=4))
    assert str(found.problems).endswith(
        "line 4: the chat template of tiny refuses it: roles must alternate"
    )


def test_a_template_that_writes_the_prompt_otherwise_is_warned_about(tokenizer: Tokenizer) -> None:
    tokenizer.inner.chat_template = TEMPLATES["plain"].replace(
        "<|assistant|>{% endif %}", "<|assistant|>Well, {% endif %}"
    )
    found = encode(tokenizer, chat(USER, ASSISTANT, line=4))
    (said,) = found.warnings(tokenizer)
    assert "writes 1 of 1 prompts otherwise" in said


def test_whole_texts_are_learnt_when_asked_for(tokenizer: Tokenizer) -> None:
    data = DataSet(("set.jsonl",), [chat(USER, ASSISTANT)])
    (row,) = encode_set(data, tokenizer, 512, completion_only=False).rows
    assert row["labels"] == row["input_ids"]


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(BaseInvalid, match="its tokenizer cannot be loaded"):
        load_tokenizer(tmp_path, "x")
