"""On /v1/messages a prefilled answer is continued, and a tool call that is cut off is no error."""

from __future__ import annotations

from types import SimpleNamespace
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


class Templates:
    """Renders probes as the template of the current call's adapter does, or of the base."""

    def __init__(self, **efforts: Any) -> None:
        self.efforts = efforts  # what each form's template says of `none`
        self.forms = {
            name: SimpleNamespace(
                stand_in="{{ reasoning_effort }}", disabled_thinking_effort=None, name=name
            )
            for name in efforts
        }
        self.asked: list[str] = []

    async def form_of(self, call: Any) -> Any:
        return self.forms.get(call.adapter) if call is not None else None

    async def render_chat(self, request: Any) -> Any:
        from server.call import current_call
        from server.errors import InvalidRequest, Unavailable

        call = current_call.get()
        name = call.adapter if call is not None else "base"
        self.asked.append(name)
        said = self.efforts.get(name, "ignores")
        if request.reasoning_effort == "none" and said in ("refuses", "busy"):
            call.refusal = (
                InvalidRequest("no such effort")
                if said == "refuses"
                else Unavailable("busy", code="chat_templates_busy")
            )
            raise ValueError(str(call.refusal))
        text = "same" if said == "ignores" else str(request.reasoning_effort)
        return [], [{"type": "token", "prompt_token_ids": [1], "prompt": text}]


@pytest.fixture
def effort_for():
    from server.call import current_call
    from server.engine.messages import Messages

    handler = Messages.__new__(Messages)
    handler._disabled_thinking_effort = None
    handler.online_renderer = Templates(reads="reads", refuses="refuses", busy="busy")
    handler._extract_prompt_components = lambda given: SimpleNamespace(
        token_ids=given["prompt_token_ids"], text=given["prompt"]
    )

    async def ask(adapter: str, refusal: Any = None) -> tuple[str, Any]:
        call = SimpleNamespace(adapter=adapter, refusal=refusal)
        token = current_call.set(call)
        try:
            return await handler._get_disabled_thinking_effort(), call.refusal
        finally:
            current_call.reset(token)

    ask.handler = handler
    return ask


async def test_each_template_says_how_thinking_is_disabled(effort_for) -> None:
    for _ in range(2):
        assert await effort_for("reads") == ("none", None)
        assert await effort_for("base") == ("low", None)
        assert await effort_for("without its own") == ("low", None)
    asked = effort_for.handler.online_renderer.asked
    assert set(asked) == {"reads", "base"}
    assert asked.count("base") == 2  # its answer is kept


async def test_a_probe_that_a_template_refuses_does_not_refuse_the_call(effort_for) -> None:
    assert await effort_for("refuses") == ("low", None)


async def test_a_template_that_could_not_be_asked_has_not_answered(effort_for) -> None:
    from vllm.exceptions import VLLMValidationError

    with pytest.raises(VLLMValidationError):
        await effort_for("busy")
    effort_for.handler.online_renderer.efforts["busy"] = "reads"
    assert await effort_for("busy") == ("none", None)


async def test_a_flag_decides_for_all(effort_for) -> None:
    effort_for.handler._disabled_thinking_effort = "low"
    assert await effort_for("reads") == ("low", None)
