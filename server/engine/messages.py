"""Anthropic's /v1/messages as Anthropic has it where vLLM 0.32 does not.

A last message of the assistant is the beginning of the answer, which the model continues: vLLM
would close it and begin an answer of its own. A call of a tool that `max_tokens` has cut off has no
input: vLLM would fail to decode what there is of it, a 500.
"""

from __future__ import annotations

import json
from typing import Any

from vllm.entrypoints.anthropic.serving import AnthropicServingMessages


class Messages(AnthropicServingMessages):
    """Takes the place of vLLM's handler."""

    @classmethod
    def to_chat_completion_request(cls, anthropic_request: Any, **options: Any) -> Any:
        request = super().to_chat_completion_request(anthropic_request, **options)
        if _is_begun(request.messages):
            request.continue_final_message = True
            request.add_generation_prompt = False
        return request

    def messages_full_converter(self, generator: Any) -> Any:
        choice = generator.choices[0]
        for call in choice.message.tool_calls:
            if not _is_object(arguments := call.function.arguments):
                call.function.arguments = "{}"
                if arguments.strip() not in ("", "null"):  # of a tool without parameters
                    # Else the caller would take the call for whole, and run it.
                    choice.finish_reason = "length"
        return super().messages_full_converter(generator)


def _is_begun(messages: list[Any]) -> bool:
    """Whether the last message is text of the assistant, and no call of a tool."""
    last = messages[-1] if messages else {}
    content = last.get("content")
    is_text = isinstance(content, str) and bool(content.strip())
    return last.get("role") == "assistant" and is_text and not last.get("tool_calls")


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False
