"""Preferences: a prompt and two answers, in the forms that people have, and their tokens."""

from pathlib import Path
from typing import Any

import pytest

from training.data.forms import Example, parse_record
from training.data.problems import Place
from training.data.sets import DataSet, read_set
from training.data.tokens import encode_set, load_tokenizer
from training.data.turns import Malformed
from training.errors import DataInvalid

PLACE = Place("set.jsonl", 1)
USER = {"role": "user", "content": "two"}
GOOD = {"role": "assistant", "content": "2 lamps"}
BAD = {"role": "assistant", "content": "3 lamps"}
WANTED = Example(PLACE, [USER], [GOOD], rejected=[BAD])


def parse(record: dict[str, Any]) -> Example:
    (found,) = parse_record(record, PLACE, "dpo").examples
    return found


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"prompt": "two", "chosen": [USER, GOOD], "rejected": [USER, BAD]},  # UltraFeedback
        {"prompt": "two", "chosen": [GOOD], "rejected": [BAD]},
        {"instruction": "two", "input": "", "chosen": "2 lamps", "rejected": "3 lamps"},
        {"messages": [USER], "chosen": GOOD, "rejected": BAD},
        {
            "conversations": [{"from": "human", "value": "two"}],
            "chosen": {"from": "gpt", "value": "2 lamps"},
            "rejected": {"from": "gpt", "value": "3 lamps"},
        },
    ],
)
def test_each_form_says_the_same(record: dict[str, Any]) -> None:
    assert parse(record) == WANTED


def test_plain_texts_stay_plain_and_a_system_column_is_a_turn() -> None:
    plain = {"prompt": "two ->", "chosen": " 2", "rejected": " 3"}
    assert parse(plain) == Example(PLACE, "two ->", " 2", rejected=" 3")
    found = parse({"system": "be brief", "prompt": [USER], "chosen": [GOOD], "rejected": [BAD]})
    assert found.prompt == [{"role": "system", "content": "be brief"}, USER]


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({"messages": [USER, GOOD]}, "no chosen and rejected"),
        ({"prompt": "a", "chosen": "b"}, "no chosen and rejected"),
        ({"prompt": "a", "chosen": "b", "rejected": "b"}, "the same answer"),
        ({"prompt": "a", "chosen": "b", "rejected": [BAD]}, "differ in form"),
        ({"chosen": [USER, GOOD], "rejected": [USER, USER, BAD]}, "differ before their last turn"),
        ({"chosen": [USER], "rejected": [BAD]}, "chosen does not end with an assistant turn"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "beside no prompt"),
        ({"chosen": 3, "rejected": 4, "prompt": "a"}, "not a list"),
    ],
)
def test_what_is_no_preference_is_refused(record: dict[str, Any], cause: str) -> None:
    with pytest.raises(Malformed, match=cause):
        parse(record)


def test_imitation_refuses_preferences_and_says_which_method_takes_them(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(DataInvalid, match="method: dpo"):
        read_set([str(path)])
    assert len(read_set([str(path)], "dpo").examples) == 1


def test_both_answers_follow_the_same_prompt_and_end_their_turn(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base, "tiny")
    encoded = encode_set(DataSet(("set.jsonl",), [WANTED]), tokenizer, 64)
    (row,) = encoded.rows
    assert set(row) == {"prompt_ids", "chosen_ids", "rejected_ids"}
    chat = tokenizer.inner.apply_chat_template(
        [USER], add_generation_prompt=True, return_dict=True, tokenize=True
    )
    assert row["prompt_ids"] == chat["input_ids"]
    assert tokenizer.inner.decode(row["chosen_ids"]).startswith("2 lamps")
    assert tokenizer.inner.decode(row["rejected_ids"]).startswith("3 lamps")
    assert {row["chosen_ids"][-1], row["rejected_ids"][-1]} <= tokenizer.ends
    assert encoded.tokens == sum(len(ids) for ids in row.values())


def test_answers_that_the_cut_makes_equal_are_refused(tiny_base: Path) -> None:
    tokenizer = load_tokenizer(tiny_base, "tiny")
    long = "lamps and " * 40
    example = Example(PLACE, "two", f"{long}a", rejected=f"{long}b")
    encoded = encode_set(DataSet(("set.jsonl",), [example]), tokenizer, 16)
    assert "cuts chosen and rejected to the same answer" in str(encoded.problems)
