"""Anthropic's SDK for Python, on /v1/messages."""

from __future__ import annotations

from typing import Any

from anthropic import Anthropic
from asking import ADAPTER, IMAGE, KEY, PREFILL, QUESTION, SCHEMA, run

USER: Any = [{"role": "user", "content": QUESTION}]
TOOLS: Any = [{"name": "ship", "description": "Ships the order.", "input_schema": SCHEMA}]
# The SDK has no parameter of this name any more; the API has.
EXACT = {"temperature": 0}
FIELDS: Any = {"model": ADAPTER, "messages": USER, "max_tokens": 12, "extra_body": EXACT}


def client(root: str) -> Anthropic:
    return Anthropic(base_url=root, api_key=KEY)


def told(answer: Any) -> dict[str, Any]:
    got: dict[str, Any] = {"model": answer.model, "finish": answer.stop_reason}
    for block in answer.content:
        if block.type == "text" and block.text:
            got["text"] = block.text
        if block.type == "tool_use":  # the first; one that max_tokens cuts off may follow
            got.setdefault("tool", {"name": block.name, "arguments": block.input})
    return got | {"tokens": answer.usage.output_tokens}


def chat(root: str, **fields: Any) -> dict[str, Any]:
    return told(client(root).messages.create(**FIELDS | fields))


def stream(root: str, **fields: Any) -> dict[str, Any]:
    with client(root).messages.stream(**FIELDS | fields) as events:
        return told(events.get_final_message())


def tool_result(root: str) -> dict[str, Any]:
    called = {"type": "tool_use", "id": "c1", "name": "ship", "input": {"city": "Oslo"}}
    result = {"type": "tool_result", "tool_use_id": "c1", "content": "shipped"}
    messages = [
        *USER,
        {"role": "assistant", "content": [called]},
        {"role": "user", "content": [result]},
    ]
    return chat(root, messages=messages, tools=TOOLS)


def image(root: str) -> dict[str, Any]:
    data = IMAGE.partition(",")[2]
    source = {"type": "base64", "media_type": "image/png", "data": data}
    return chat(root, messages=[{"role": "user", "content": [{"type": "image", "source": source}]}])


def count(root: str) -> dict[str, Any]:
    counted = client(root).messages.count_tokens(model=ADAPTER, messages=USER)
    return {"tokens": counted.input_tokens}


run(
    {
        "models": lambda root: {"models": sorted(m.id for m in client(root).models.list())},
        "chat": chat,
        "stream": stream,
        "developer": lambda root: chat(root, system="Answer in JSON."),
        "parts": lambda root: chat(
            root, messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]
        ),
        "habits": lambda root: chat(
            root, metadata={"user_id": "ada"}, stop_sequences=["\n\n"], service_tier="auto"
        ),
        "tool": lambda root: chat(
            root, max_tokens=120, tools=TOOLS, tool_choice={"type": "tool", "name": "ship"}
        ),
        "tool_stream": lambda root: stream(
            root, max_tokens=60, tools=TOOLS, tool_choice={"type": "any"}
        ),
        "tool_result": tool_result,
        "prefill": lambda root: chat(
            root, messages=[*USER, {"role": "assistant", "content": PREFILL}]
        ),
        "count": count,
        "image": image,
        "unknown_model": lambda root: chat(root, model="orders-jsom"),
    }
)
