"""Whole sets: several sources, repeats, leaks, mixtures, sizes."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.data.sets import find_leaks, inspect_set, read_set, refuse_leaks, size_warning
from training.errors import DataInvalid

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
CHAT = {"messages": [USER, ASSISTANT]}
PAIR = {"prompt": "a", "completion": "b"}


def write(path: Path, *records: Any) -> str:
    lines = (record if isinstance(record, str) else json.dumps(record) for record in records)
    path.write_text("\n".join(lines))
    return str(path)


def test_a_list_of_files_in_different_forms_is_one_set(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", CHAT, CHAT)
    two = write(tmp_path / "two.csv", "instruction,output,id", "hi,hello,1")
    found = read_set([one, two])
    assert found.forms == {"messages": 2, "instruction": 1}
    assert found.unused == {"id": 1}
    assert len(found.examples) == found.records == 3


def test_the_digest_is_of_what_is_learnt(tmp_path: Path) -> None:
    lines = read_set([write(tmp_path / "one.jsonl", CHAT)])
    table = read_set([write(tmp_path / "two.csv", "instruction,output", "hi,hello")])
    other = read_set([write(tmp_path / "three.csv", "instruction,output", "hi,hallo")])
    assert lines.digest() == table.digest() != other.digest()
    assert lines.digest().startswith("sha256:")


def test_each_source_names_its_own_lines(tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", CHAT, "{", "{")
    two = write(tmp_path / "two.jsonl", {"text": "a"})
    with pytest.raises(DataInvalid) as raised:
        read_set([one, two])
    said = str(raised.value)
    assert said.startswith(f"{one}: lines 2 and 3: not JSON | {two}: line 1: none of these: ")


def test_repeats_are_named_and_only_warned_about(tmp_path: Path) -> None:
    found = read_set([write(tmp_path / "set.jsonl", CHAT, PAIR | CHAT, CHAT)])
    assert [place.number for place in found.repeats()] == [2, 3]
    assert any("2 of 3 examples repeat an earlier one" in line for line in found.warnings())


def test_what_is_not_learnt_is_reported(tmp_path: Path) -> None:
    found = read_set([write(tmp_path / "set.jsonl", CHAT | {"id": 1}, CHAT | {"id": 2})])
    assert "not learnt: id (2)" in found.warnings()


def test_chats_and_plain_text_are_not_mixed(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"line 2: chats and plain .* are mixed"):
        read_set([write(tmp_path / "set.jsonl", CHAT, PAIR)])


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"set\.jsonl: no examples"):
        read_set([write(tmp_path / "set.jsonl", "", " ")])


def test_a_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataInvalid, match=r"absent\.jsonl: No such file"):
        read_set([str(tmp_path / "absent.jsonl")])


def test_a_prompt_in_both_sets_is_a_leak(tmp_path: Path) -> None:
    train = read_set([write(tmp_path / "train.jsonl", CHAT)])
    other = [USER | {"content": "ho"}, ASSISTANT]
    heldout = inspect_set([write(tmp_path / "heldout.jsonl", {"messages": other}, CHAT)])
    assert [place.number for place in find_leaks(train, heldout)] == [2]
    with pytest.raises(DataInvalid, match=r"1 of 2 prompts .*heldout\.jsonl: line 2"):
        refuse_leaks(train, heldout)


@pytest.mark.parametrize(
    ("count", "said"), [(199, "WARNING: ONLY 199"), (200, "warning: 200"), (499, "warning: 499")]
)
def test_small_sets_are_warned_about(count: int, said: str) -> None:
    assert said in (size_warning(count) or "")


def test_a_large_enough_set_is_not_warned_about() -> None:
    assert size_warning(500) is None
