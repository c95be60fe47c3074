"""OpenAI's SDK for Python."""

from __future__ import annotations

from typing import Any

from asking import ADAPTER, BASE, CONTINUE, IMAGE, KEY, PREFILL, QUESTION, TOOL, run
from openai import OpenAI
from pydantic import BaseModel, Field

USER: Any = [{"role": "user", "content": QUESTION}]
NAMED: Any = {"type": "function", "function": {"name": "ship"}}


class Delivery(BaseModel):
    city: str = Field(max_length=12)
    gift: bool


def client(root: str) -> OpenAI:
    return OpenAI(base_url=f"{root}/v1", api_key=KEY)


def told(answer: Any) -> dict[str, Any]:
    choice = answer.choices[0]
    got: dict[str, Any] = {"model": answer.model, "finish": choice.finish_reason}
    if choice.message.content:
        got["text"] = choice.message.content
    if choice.message.tool_calls:
        function = choice.message.tool_calls[0].function
        got["tool"] = {"name": function.name, "arguments": function.arguments}
    return got | {"tokens": answer.usage.completion_tokens}


def chat(root: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": ADAPTER, "messages": USER, "max_tokens": 12, "temperature": 0} | fields
    return told(client(root).chat.completions.create(**asked))


def models(root: str) -> dict[str, Any]:
    return {"models": sorted(each.id for each in client(root).models.list())}


def stream(root: str, **fields: Any) -> dict[str, Any]:
    asked = {"model": ADAPTER, "messages": USER, "max_tokens": 12, "temperature": 0} | fields
    chunks = client(root).chat.completions.create(
        **asked, stream=True, stream_options={"include_usage": True}
    )
    got: dict[str, Any] = {"text": ""}
    for chunk in chunks:
        got["model"] = chunk.model
        if chunk.usage:
            got["tokens"] = chunk.usage.completion_tokens
        for choice in chunk.choices:
            got["text"] += choice.delta.content or ""
            got["finish"] = choice.finish_reason
            for call in choice.delta.tool_calls or ():
                if call.index == 0:
                    tool = got.setdefault("tool", {"name": call.function.name, "arguments": ""})
                    tool["arguments"] += call.function.arguments or ""
    return got


def schema(root: str) -> dict[str, Any]:
    answer = client(root).chat.completions.parse(
        model=ADAPTER, messages=USER, max_tokens=60, temperature=0, response_format=Delivery
    )
    parsed = answer.choices[0].message.parsed
    return told(answer) | {"parsed": parsed.model_dump() if parsed else None}


def logprobs(root: str) -> dict[str, Any]:
    answer = client(root).chat.completions.create(
        model=ADAPTER, messages=USER, max_tokens=3, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    return told(answer) | {"logprobs": [len(each.top_logprobs) for each in content]}


def tool_result(root: str) -> dict[str, Any]:
    call = {"name": "ship", "arguments": '{"city": "Oslo", "gift": false}'}
    messages = [
        *USER,
        {"role": "assistant", "tool_calls": [{"id": "c1", "type": "function", "function": call}]},
        {"role": "tool", "tool_call_id": "c1", "content": "shipped"},
    ]
    return chat(root, messages=messages, tools=[TOOL])


def developer(root: str) -> dict[str, Any]:
    messages = [{"role": "developer", "content": "Answer in JSON."}, *USER]
    return chat(root, messages=messages)


def parts(root: str) -> dict[str, Any]:
    return chat(root, messages=[{"role": "user", "content": [{"type": "text", "text": QUESTION}]}])


def image(root: str) -> dict[str, Any]:
    content = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": IMAGE}},
    ]
    return chat(root, messages=[{"role": "user", "content": content}])


def prefill(root: str) -> dict[str, Any]:
    messages = [*USER, {"role": "assistant", "content": PREFILL}]
    return chat(root, messages=messages, extra_body=CONTINUE)


def responses(root: str) -> dict[str, Any]:
    answer = client(root).responses.create(
        model=ADAPTER, input=QUESTION, instructions="Answer in JSON.", max_output_tokens=12
    )
    return {"model": answer.model, "finish": answer.status, "text": answer.output_text}


def responses_stream(root: str) -> dict[str, Any]:
    with client(root).responses.stream(
        model=ADAPTER, input=QUESTION, max_output_tokens=12
    ) as events:
        answer = events.get_final_response()
    return {"model": answer.model, "finish": answer.status, "text": answer.output_text}


def embeddings(root: str) -> dict[str, Any]:
    return {"vectors": len(client(root).embeddings.create(model=BASE, input="a").data)}


run(
    {
        "models": models,
        "chat": chat,
        "stream": stream,
        "limit": lambda root: chat(root, max_tokens=None, max_completion_tokens=5),
        "developer": developer,
        "parts": parts,
        "habits": lambda root: chat(
            root,
            store=False,
            metadata={"team": "orders"},
            user="ada",
            seed=1,
            parallel_tool_calls=True,
            reasoning_effort="low",
            service_tier="auto",
        ),
        "schema": schema,
        "logprobs": logprobs,
        "tool": lambda root: chat(root, max_tokens=60, tools=[TOOL], tool_choice=NAMED),
        "tool_stream": lambda root: stream(
            root, max_tokens=60, tools=[TOOL], tool_choice="required"
        ),
        "tool_result": tool_result,
        "prefill": prefill,
        "responses": responses,
        "responses_stream": responses_stream,
        "image": image,
        "embeddings": embeddings,
        "unknown_model": lambda root: chat(root, model="orders-jsom"),
    }
)
