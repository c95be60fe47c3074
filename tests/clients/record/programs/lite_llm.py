"""LiteLLM as an application calls it, with its provider `openai`."""

from __future__ import annotations

from typing import Any

import litellm
from asking import ADAPTER, BASE, CONTINUE, IMAGE, KEY, PREFILL, QUESTION, SCHEMA, TOOL, run

USER: Any = [{"role": "user", "content": QUESTION}]
NAMED: Any = {"type": "function", "function": {"name": "ship"}}
litellm.suppress_debug_info = True
litellm.telemetry = False


def fields(root: str, given: dict[str, Any]) -> dict[str, Any]:
    model = f"openai/{given.pop('model', ADAPTER)}"
    common = {"model": model, "api_base": f"{root}/v1", "api_key": KEY, "temperature": 0}
    return common | {"messages": USER, "max_tokens": 12} | given


def told(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    got: dict[str, Any] = {"model": answer.model, "finish": choice.finish_reason}
    if choice.message.content:
        got["text"] = choice.message.content
    if choice.message.tool_calls:
        function = choice.message.tool_calls[0].function
        got["tool"] = {"name": function.name, "arguments": function.arguments}
    return got | {"tokens": answer.usage.completion_tokens}


def chat(root: str, **given: Any) -> dict[str, Any]:
    return told(litellm.completion(**fields(root, given)))


def stream(root: str, **given: Any) -> dict[str, Any]:
    asked = fields(root, given)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    return told(litellm.stream_chunk_builder(chunks, messages=asked["messages"]))


def schema(root: str) -> dict[str, Any]:
    wanted = {"name": "delivery", "schema": SCHEMA, "strict": True}
    return chat(root, max_tokens=60, response_format={"type": "json_schema", "json_schema": wanted})


def logprobs(root: str) -> dict[str, Any]:
    answer = litellm.completion(
        **fields(root, {"max_tokens": 3, "logprobs": True, "top_logprobs": 2})
    )
    content = answer.choices[0].logprobs.content
    return told(answer) | {"logprobs": [len(each.top_logprobs) for each in content]}


def tool_result(root: str) -> dict[str, Any]:
    call = {"name": "ship", "arguments": '{"city": "Oslo", "gift": false}'}
    calls = [{"id": "c1", "type": "function", "function": call}]
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "shipped"},
    ]
    return chat(root, messages=messages, tools=[TOOL])


def image(root: str) -> dict[str, Any]:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": IMAGE}},
    ]
    return chat(root, messages=[{"role": "user", "content": content}])


def prefill(root: str) -> dict[str, Any]:
    messages = [*USER, {"role": "assistant", "content": PREFILL}]
    return chat(root, messages=messages, extra_body=CONTINUE)


def embeddings(root: str) -> dict[str, Any]:
    answer = litellm.embedding(
        model=f"openai/{BASE}", input=["a"], api_base=f"{root}/v1", api_key=KEY
    )
    return {"vectors": len(answer.data)}


run(
    {
        "chat": chat,
        "stream": stream,
        "limit": lambda root: chat(root, max_tokens=None, max_completion_tokens=5),
        "developer": lambda root: chat(
            root, messages=[{"role": "developer", "content": "Answer in JSON."}, *USER]
        ),
        "parts": lambda root: chat(
            root, messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        ),
        "habits": lambda root: chat(root, user="ada", seed=1, n=1, stop=["\n\n"]),
        "schema": schema,
        "logprobs": logprobs,
        "tool": lambda root: chat(root, max_tokens=60, tools=[TOOL], tool_choice=NAMED),
        "tool_stream": lambda root: stream(
            root, max_tokens=60, tools=[TOOL], tool_choice="required"
        ),
        "tool_result": tool_result,
        "prefill": prefill,
        "image": image,
        "embeddings": embeddings,
        "unknown_model": lambda root: chat(root, model="orders-jsom"),
    }
)
