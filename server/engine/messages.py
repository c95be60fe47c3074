"""Anthropic's /v1/messages as Anthropic has it where vLLM 0.32 does not.

A last message of the assistant is the beginning of the answer, which the model continues: vLLM
would close it and begin an answer of its own. A call of a tool that `max_tokens` has cut off has no
input: vLLM would fail to decode what there is of it, a 500. How thinking is disabled is read off
the template that renders the call: vLLM reads it off the first one, for all.
"""

from __future__ import annotations

import json
from typing import Any

from vllm.entrypoints.anthropic.serving import AnthropicServingMessages
from vllm.exceptions import VLLMValidationError

from server.call import current_call
from server.errors import Unavailable


class Messages(AnthropicServingMessages):
    """Takes the place of vLLM's handler."""

    _effort_of_base: Any = None  # once its template has been asked

    async def _get_disabled_thinking_effort(self) -> Any:
        if self._disabled_thinking_effort is not None:  # by a flag of vLLM's
            return self._disabled_thinking_effort
        form = await self.online_renderer.form_of(current_call.get())
        if form is not None and form.stand_in is not None:
            if form.disabled_thinking_effort is None:
                form.disabled_thinking_effort = await self._probe_disabled_thinking_effort()
            return form.disabled_thinking_effort
        if self._effort_of_base is None:
            call = current_call.set(None)
            try:
                self._effort_of_base = await self._probe_disabled_thinking_effort()
            finally:
                current_call.reset(call)
        return self._effort_of_base

    async def _render_probe_prompt(self, effort: Any) -> Any:
        """vLLM takes whatever fails for the template's answer.

        A template that refuses the probe may render the call. One that could not be asked has not
        answered: raises VLLMValidationError.
        """
        prompt = await super()._render_probe_prompt(effort)
        call = current_call.get()
        if call is None:
            return prompt
        if isinstance(call.refusal, Unavailable):
            raise VLLMValidationError(str(call.refusal))
        call.refusal = None
        return prompt

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
