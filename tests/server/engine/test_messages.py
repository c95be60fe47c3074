"""On /v1/messages a prefilled answer is continued, and a tool call that is cut off is no error."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # vLLM's own imports warn

USER = {"role": "user", "content": "two blue lamps"}
CALL = {"type": "tool_use", "id": "c1", "name": "ship", "input": {}}


def converted(*messages: Any) -> Any:
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest

    from server.engine.messages import Messages

    request = AnthropicMessagesRequest(model="orders", max_tokens=5, messages=list(messages))
    return Messages.to_chat_completion_request(request)


@pytest.mark.parametrize("content", ['{"items"', [{"type": "text", "text": '{"items"'}]])
def test_a_last_message_of_the_assistant_is_continued(content):
    request = converted(USER, {"role": "assistant", "content": content})
    assert request.continue_final_message
    assert not request.add_generation_prompt


@pytest.mark.parametrize(
    "messages",
    [
        (USER,),
        (USER, {"role": "assistant", "content": "Which?"}, USER),
        (USER, {"role": "assistant", "content": " "}),
        (USER, {"role": "assistant", "content": [{"type": "text", "text": "I ship."}, CALL]}),
    ],
)
def test_any_other_conversation_gets_a_new_answer(messages):
    request = converted(*messages)
    assert not request.continue_final_message
    assert request.add_generation_prompt


@pytest.mark.parametrize(
    ("arguments", "given", "reason"),
    [
        ('{"city": "Oslo"}', {"city": "Oslo"}, "tool_use"),
        ('{"city": "Os', {}, "max_tokens"),
        ("", {}, "tool_use"),
        ("null", {}, "tool_use"),
        ('"Oslo"', {}, "max_tokens"),
    ],
)
def test_a_call_that_is_cut_off_has_no_input_and_says_so(arguments, given, reason):
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse

    from server.engine.messages import Messages

    call = {"id": "c1", "type": "function", "function": {"name": "ship", "arguments": arguments}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    answer = ChatCompletionResponse(
        model="orders",
        choices=[{"index": 0, "message": message, "finish_reason": "stop"}],
        usage={"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    )
    handler = Messages.__new__(Messages)  # what is tested needs none of its state
    converted = handler.messages_full_converter(answer)
    assert [(each.name, each.input) for each in converted.content] == [("ship", given)]
    assert converted.stop_reason == reason
