"""A prefilled answer on /v1/messages is continued; nothing else is changed."""

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
