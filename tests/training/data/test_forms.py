"""What a record says: learnt as it is meant, or refused with its cause."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from training.data.forms import Example, Parsed, parse_record
from training.data.problems import Place
from training.data.turns import Malformed

PLACE = Place("set.jsonl", 1)
USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be brief"}
CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
BAD_CALL = {"function": {"name": "f", "arguments": "{"}}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def parse(record: dict[str, Any]) -> Parsed:
    return parse_record(record, PLACE)


def example(*turns: dict[str, Any], tools: tuple[Any, ...] = ()) -> Example:
    return Example(PLACE, [*turns[:-1]], [turns[-1]], tools)


def test_each_assistant_turn_is_one_example() -> None:
    found = parse({"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT]}).examples
    assert found == [
        example(SYSTEM, USER, ASSISTANT),
        example(SYSTEM, USER, ASSISTANT, USER, ASSISTANT),
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ASSISTANT]},
        {"messages": json.dumps([USER, ASSISTANT])},
        {"messages": [USER | {"content": [{"type": "text", "text": "hi"}]}, ASSISTANT]},
        {"messages": [USER | {"name": None}, ASSISTANT | {"tool_calls": []}], "tools": None},
        {"conversations": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"instruction": "hi", "input": "", "output": "hello"},
        {"instruction": "hi", "output": "hello", "system": ""},
        {"instruction": "hi", "context": "", "response": "hello"},
    ],
    ids=lambda record: "+".join(record),
)
def test_one_exchange_is_the_same_in_each_form(record: dict[str, Any]) -> None:
    assert parse(record).examples == [example(USER, ASSISTANT)]


def test_an_instruction_stands_before_its_input() -> None:
    record = {"instruction": "Sum up.", "context": "Long text.", "response": "Short."}
    (found,) = parse(record | {"category": "summarization"}).examples
    assert found.prompt == [{"role": "user", "content": "Sum up.\n\nLong text."}]
    assert parse(record | {"category": "x"}).unused == {"category"}


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [USER, ASSISTANT]},
        {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
        {"instruction": "hi", "output": "hello"},
    ],
)
def test_a_system_column_is_a_system_turn(record: dict[str, Any]) -> None:
    found = parse(record | {"system": "be brief"}).examples
    assert found == [example(SYSTEM, USER, ASSISTANT)]


def test_prompt_and_completion_stay_plain_text() -> None:
    found = parse({"prompt": "2 + 2 =", "completion": " 4"}).examples
    assert found == [Example(PLACE, "2 + 2 =", " 4")]


def test_tools_and_calls_are_kept_as_templates_take_them() -> None:
    turns = [
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ASSISTANT | {"reasoning_content": "three"},
    ]
    call = CALL | {"function": {"name": "f", "arguments": {"a": 1}}}
    for tools in (TOOLS, json.dumps(TOOLS)):
        first, last = parse({"messages": turns, "tools": tools}).examples
        assert first.tools == last.tools == tuple(TOOLS)
        assert first.completion == [{"role": "assistant", "content": "", "tool_calls": [call]}]
        assert last.prompt == [USER, *first.completion, turns[2]]
        assert last.completion == [turns[3]]


def test_a_sharegpt_call_and_its_observation_are_a_call_and_a_tool_turn() -> None:
    called = json.dumps({"name": "f", "arguments": {"a": 1}})
    turns = [("human", "hi"), ("function_call", called), ("observation", "3"), ("gpt", "hello")]
    record = {"conversations": [{"from": who, "value": text} for who, text in turns]}
    _, last = parse(record).examples
    assert [turn["role"] for turn in last.prompt] == ["user", "assistant", "tool"]
    assert last.prompt[1]["tool_calls"][0]["function"]["name"] == "f"  # type: ignore[index]


def test_a_turn_of_weight_zero_is_read_and_not_learnt() -> None:
    found = parse({"messages": [USER, ASSISTANT | {"weight": 0}, USER, ASSISTANT | {"weight": 1}]})
    assert found.examples == [example(USER, ASSISTANT, USER, ASSISTANT)]
    assert found.unused == set()
    greeted = parse({"messages": [ASSISTANT | {"weight": 0}, USER, ASSISTANT]}).examples
    assert greeted == [example(ASSISTANT, USER, ASSISTANT)]


def test_what_nothing_learns_is_named() -> None:
    found = parse({"messages": [USER | {"id": 7}, ASSISTANT], "source": "x", "label": True})
    assert found.unused == {"messages[].id", "source", "label"}


@pytest.mark.parametrize(
    ("record", "cause"),
    [
        ({"text": "a"}, "none of these: messages, conversations, prompt and completion"),
        ({"messages": "a"}, "messages is a text, and not JSON"),
        ({"messages": {}}, "messages is not a list"),
        ({"messages": []}, "no assistant turn to learn"),
        ({"messages": [USER]}, "no assistant turn to learn"),
        ({"messages": [USER, ASSISTANT | {"weight": 0}]}, "no assistant turn to learn"),
        ({"messages": [ASSISTANT]}, "starts with an assistant turn"),
        ({"messages": [USER, ASSISTANT | {"content": " "}]}, "role assistant has no text"),
        (
            {"messages": [USER, ASSISTANT | {"weight": 0.5}]},
            "role assistant has a weight that is not learnt",
        ),
        (
            {"messages": [USER | {"weight": 1}, ASSISTANT]},
            "role user has a weight that is not learnt",
        ),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role is not one of system, user"),
        ({"messages": ["x"]}, "holds something other than turns"),
        ({"messages": [USER | {"content": [{"type": "image_url"}]}]}, "parts other than text"),
        ({"messages": [USER, ASSISTANT | {"function_call": {"name": "f"}}]}, "function_call"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": [{}]}]}, "names no function"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": [BAD_CALL]}]}, "not JSON"),
        ({"messages": [USER, ASSISTANT], "tools": "x"}, "tools is a text, and not JSON"),
        ({"messages": [USER, ASSISTANT], "tools": ["x"]}, "tools is not a list of objects"),
        ({"messages": [SYSTEM, USER, ASSISTANT], "system": "x"}, "beside a system turn"),
        ({"messages": [USER, ASSISTANT], "images": ["x.png"]}, "images are not learnt"),
        ({"messages": [USER, ASSISTANT], "weight": 0.5}, "weight of a whole record"),
        ({"conversations": [{"from": "alien", "value": "x"}]}, "from is not one of system, human"),
        ({"prompt": "a", "completion": ""}, "completion is not a text"),
        ({"prompt": 1, "completion": "b"}, "prompt is not a text"),
        ({"prompt": "a", "completion": "b", "label": False}, "label is false"),
        ({"prompt": "a", "completion": "b", "system": "c"}, "system beside prompt"),
        ({"prompt": "a", "completion": "b", "tools": TOOLS}, "tools beside prompt"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "preferences"),
        ({"instruction": "a", "output": " "}, "output is not a text"),
        ({"instruction": "", "input": "", "output": "b"}, "instruction is not a text"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "input is not a text"),
        ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "history is not learnt"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_what_can_not_be_learnt_is_refused(record: dict[str, Any], cause: str) -> None:
    with pytest.raises(Malformed) as raised:
        parse(record)
    assert cause in str(raised.value)


def test_the_examples_of_the_manual_are_learnt() -> None:
    manual = (Path(__file__).parents[3] / "docs/training.md").read_text()
    found = re.findall(r"^\| [\w, ]+ \| `(\{.*?\})`", manual, flags=re.MULTILINE)
    shown = [json.loads(record) for record in found]
    pairs = [record for record in shown if "chosen" in record]
    forms = [parse(record).form for record in shown if record not in pairs]
    assert forms == ["messages", "conversations", "instruction", "instruction", "prompt"]
    assert len(pairs) == 4
    assert {parse_record(record, PLACE, "dpo").form for record in pairs} == {"preference"}
