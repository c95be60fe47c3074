"""Prompts and answers of every API as attributes of the GenAI convention."""

from __future__ import annotations

import json

import pytest

from server.content import _MAX_CHARACTERS, Content, is_captured
from server.telemetry.tracing import Tracing

USER = {"role": "user", "parts": [{"type": "text", "content": "hello"}]}


def messages(request, *answers: bytes):
    content = Content(json.dumps(request).encode())
    for answer in answers:
        content.add(answer)
    found = content.attributes()
    return [
        json.loads(found.get(f"gen_ai.{name}", "null"))
        for name in ("input.messages", "output.messages", "system_instructions")
    ]


def answer(text: str, finish: str = "stop") -> list[dict[str, object]]:
    parts = [{"type": "text", "content": text}]
    return [{"role": "assistant", "parts": parts, "finish_reason": finish}]


def document(value) -> bytes:
    return json.dumps(value).encode()


def event(value, name: str = "") -> bytes:
    return (f"event: {name}\n" if name else "").encode() + b"data: " + document(value) + b"\n\n"


CHAT = {"messages": [{"role": "user", "content": "hello"}]}
BLOCKS = {"messages": [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]}


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        (CHAT, [document({"choices": [
            {"index": 0, "message": {"role": "assistant", "content": "hi you"},
             "finish_reason": "stop"}]})]),
        (BLOCKS, [event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}),
                  event({"choices": [{"index": 0, "delta": {"content": "hi "}}]}),
                  event({"choices": [
                      {"index": 0, "delta": {"content": "you"}, "finish_reason": "stop"}]}),
                  b"data: [DONE]\n\n"]),
        ({"prompt": "hello"},
         [document({"choices": [{"index": 0, "text": "hi you", "finish_reason": "stop"}]})]),
        ({"prompt": ["hello"]},
         [event({"choices": [{"index": 0, "text": "hi "}]}),
          event({"choices": [{"index": 0, "text": "you", "finish_reason": "stop"}]})]),
        ({"input": "hello"}, [event({"type": "response.output_text.delta", "delta": "hi "}, "x"),
                              event({"type": "response.output_text.delta", "delta": "you"}, "x"),
                              event({"type": "message_delta", "delta": {"stop_reason": "stop"}})]),
        (CHAT, [document({"type": "message", "content": [{"type": "text", "text": "hi you"}],
                          "stop_reason": "stop"})]),
        (CHAT, [event({"type": "content_block_delta", "delta": {"text": "hi you"}}, "x"),
                event({"type": "message_delta", "delta": {"stop_reason": "stop"}}, "x")]),
    ],
)  # fmt: skip
def test_prompt_and_answer_are_read_in_every_apis_format(request_, answers):
    asked, answered, _ = messages(request_, *answers)
    assert asked == [USER]
    assert answered == answer("hi you")


def test_a_response_and_its_instructions_are_read():
    request = {"input": [{"role": "user", "content": [{"type": "input_text", "text": "hello"}]}]}
    output = [{"type": "message", "content": [{"type": "output_text", "text": "hi"}]}]
    response = {"object": "response", "status": "completed", "output": output}
    asked, answered, instructions = messages(
        request | {"instructions": "be brief"}, document(response)
    )
    assert (asked, answered) == ([USER], answer("hi", "completed"))
    assert instructions == [{"type": "text", "content": "be brief"}]


def test_tool_calls_are_read_too():
    call = {"id": "c1", "function": {"name": "find", "arguments": '{"x": 1}'}}
    request = {
        "messages": [
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "found"},
        ]
    }
    first, rest = {"id": "c2", "function": {"name": "go", "arguments": '{"y'}}, {"function": {}}
    rest["function"]["arguments"] = '": 2}'
    asked, answered, _ = messages(
        request,
        event({"choices": [{"index": 0, "delta": {"tool_calls": [first]}}]}),
        event({"choices": [{"index": 0, "delta": {"tool_calls": [rest]}}]}),
    )
    made = {"type": "tool_call", "id": "c1", "name": "find", "arguments": '{"x": 1}'}
    assert asked[0] == {"role": "assistant", "parts": [made]}
    assert asked[1]["parts"] == [{"type": "tool_call_response", "id": "c1", "response": "found"}]
    assert answered[0]["parts"][0]["arguments"] == '{"y": 2}'


def test_long_texts_are_cut_and_the_last_messages_kept():
    long = {"role": "user", "content": "x" * (2 * _MAX_CHARACTERS)}
    asked, _, _ = messages({"messages": [long] * 300 + CHAT["messages"]})
    assert asked[-1] == USER
    assert len(json.dumps(asked)) < _MAX_CHARACTERS + 500


def test_malformed_messages_are_left_out():
    for body in (b"{", b"[]", b"5", b'{"messages": 5}', b'{"messages": [[5]]}'):
        content = Content(body)
        content.add(b'{"choices": 7}')
        assert "gen_ai.output.messages" not in content.attributes(), body


def test_the_standard_variable_turns_capture_on():
    expected = {"true": True, "SPAN_ONLY": True, "false": False, "": False, "EVENT_ONLY": False}
    variable = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
    assert {value: is_captured({variable: value}) for value in expected} == expected
    assert not is_captured({})


async def test_texts_are_in_the_span_only_when_capture_is_on(house, monkeypatch):
    await house.chat("red")
    monkeypatch.setattr(house.tracing, "_captures", True)
    await house.chat("green")
    house.tracing.provider.force_flush()
    captured = {
        span.name: "gen_ai.input.messages" in span.attributes
        for span in house.spans.get_finished_spans()
        if span.kind.name == "SERVER"
    }
    assert captured == {"chat red": False, "chat green": True}
    assert "hello" not in json.dumps(house.log)
    assert not Tracing(None, environ={})._captures
