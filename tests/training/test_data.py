"""Training sets: two forms are read, anything else is refused with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.data import read_examples, refuse_leak, size_warning
from training.errors import DataInvalid

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


def write(folder: Path, *records: Any) -> Path:
    path = folder / "set.jsonl"
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines))
    return path


def test_each_assistant_turn_is_one_example(tmp_path: Path) -> None:
    chat = {"messages": [USER, ASSISTANT, USER, ASSISTANT]}
    examples = read_examples(write(tmp_path, chat))
    assert [len(example["prompt"]) for example in examples] == [1, 3]
    assert all(example["completion"] == [ASSISTANT] for example in examples)


def test_prompt_and_completion_are_read_as_they_are(tmp_path: Path) -> None:
    pair = {"prompt": "2 + 2 =", "completion": " 4"}
    assert read_examples(write(tmp_path, pair, "", pair)) == [pair, pair]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object"),
        ({"text": "a"}, "neither messages nor prompt"),
        ({"messages": "a"}, "messages is not a list"),
        ({"messages": []}, "no assistant turn"),
        ({"messages": [USER]}, "no assistant turn"),
        ({"messages": [ASSISTANT]}, "starts with an assistant turn"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "assistant has no text"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role is not one of"),
        ({"messages": ["x"]}, "role is not one of"),
        ({"prompt": "a", "completion": ""}, "completion is not a text"),
        ({"prompt": 1, "completion": "b"}, "prompt is not a text"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: Any, said: str) -> None:
    path = write(tmp_path, {"messages": [USER, ASSISTANT]}, line)
    with pytest.raises(DataInvalid, match=rf"line 2: .*{said}"):
        read_examples(path)


def test_many_problems_are_listed_and_then_counted(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"line 10: .* and 5 more"):
        read_examples(write(tmp_path, *["x"] * 15))


def test_mixed_forms_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, {"messages": [USER, ASSISTANT]}, {"prompt": "a", "completion": "b"})
    with pytest.raises(DataInvalid, match="mixed"):
        read_examples(path)


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match="no examples"):
        read_examples(write(tmp_path, "", " "))


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"absent\.jsonl: No such file"):
        read_examples(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("count", "said"), [(199, "WARNING: ONLY 199"), (200, "warning: 200"), (499, "warning: 499")]
)
def test_small_sets_are_warned_about(count: int, said: str) -> None:
    assert said in (size_warning(count) or "")


def test_a_large_enough_set_is_not_warned_about() -> None:
    assert size_warning(500) is None


def test_a_heldout_prompt_that_is_trained_on_is_refused(tmp_path: Path) -> None:
    examples = read_examples(write(tmp_path, {"messages": [USER, ASSISTANT]}))
    with pytest.raises(DataInvalid, match="1 of 1 prompts"):
        refuse_leak(examples, examples, tmp_path / "heldout.jsonl")
