"""LangChain's ChatOpenAI and OpenAIEmbeddings."""

from __future__ import annotations

from typing import Any

from asking import ADAPTER, BASE, CONTINUE, IMAGE, KEY, PREFILL, QUESTION, TOOL, run
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

USER = [HumanMessage(QUESTION)]


class Delivery(BaseModel):
    """Where an order goes."""

    city: str = Field(max_length=12)
    gift: bool


def model(root: str, **fields: Any) -> ChatOpenAI:
    given: dict[str, Any] = {"model": ADAPTER, "max_tokens": 12, "temperature": 0} | fields
    return ChatOpenAI(base_url=f"{root}/v1", api_key=KEY, **given)


def told(answer: BaseMessage) -> dict[str, Any]:
    facts = answer.response_metadata
    got: dict[str, Any] = {
        "model": facts.get("model_name"),
        "finish": facts.get("finish_reason") or facts.get("status"),
    }
    if answer.text:
        got["text"] = str(answer.text)
    if answer.tool_calls:
        call = answer.tool_calls[0]
        got["tool"] = {"name": call["name"], "arguments": call["args"]}
    usage = answer.usage_metadata
    return got | {"tokens": usage["output_tokens"] if usage else None}


def chat(root: str, messages: Any = USER, **fields: Any) -> dict[str, Any]:
    return told(model(root, **fields).invoke(messages))


def streamed(runnable: Any) -> dict[str, Any]:
    whole = None
    for chunk in runnable.stream(USER):
        whole = chunk if whole is None else whole + chunk
    return told(whole)


def schema(root: str) -> dict[str, Any]:
    asked = model(root, max_tokens=60).with_structured_output(Delivery, include_raw=True)
    answer = asked.invoke(USER)
    return told(answer["raw"]) | {"parsed": answer["parsed"].model_dump()}


def logprobs(root: str) -> dict[str, Any]:
    answer = model(root, max_tokens=3, logprobs=True, top_logprobs=2).invoke(USER)
    content = answer.response_metadata["logprobs"]["content"]
    return told(answer) | {"logprobs": [len(each["top_logprobs"]) for each in content]}


def tool(root: str) -> dict[str, Any]:
    return told(model(root, max_tokens=60).bind_tools([TOOL], tool_choice="ship").invoke(USER))


def tool_stream(root: str) -> dict[str, Any]:
    asked = model(root, max_tokens=60, stream_usage=True)
    return streamed(asked.bind_tools([TOOL], tool_choice="required"))


def tool_result(root: str) -> dict[str, Any]:
    call = {"id": "c1", "name": "ship", "args": {"city": "Oslo", "gift": False}}
    messages = [*USER, AIMessage("", tool_calls=[call]), ToolMessage("shipped", tool_call_id="c1")]
    return told(model(root).bind_tools([TOOL]).invoke(messages))


def developer(root: str) -> dict[str, Any]:
    said = SystemMessage("Answer in JSON.", additional_kwargs={"__openai_role__": "developer"})
    return chat(root, [said, *USER])


def image(root: str) -> dict[str, Any]:
    content: Any = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": IMAGE}},
    ]
    return chat(root, [HumanMessage(content)])


def embeddings(root: str) -> dict[str, Any]:
    asked = OpenAIEmbeddings(
        base_url=f"{root}/v1", api_key=KEY, model=BASE, check_embedding_ctx_length=False
    )
    return {"vectors": len(asked.embed_documents(["a"]))}


run(
    {
        "chat": chat,
        "stream": lambda root: streamed(model(root, stream_usage=True)),
        "limit": lambda root: chat(root, max_tokens=None, max_completion_tokens=5),
        "developer": developer,
        "parts": lambda root: chat(root, [HumanMessage([{"type": "text", "text": QUESTION}])]),
        "habits": lambda root: chat(
            root, seed=1, stop=["\n\n"], metadata={"team": "orders"}, reasoning_effort="low"
        ),
        "schema": schema,
        "logprobs": logprobs,
        "tool": tool,
        "tool_stream": tool_stream,
        "tool_result": tool_result,
        "prefill": lambda root: chat(root, [*USER, AIMessage(PREFILL)], extra_body=CONTINUE),
        "responses": lambda root: chat(root, use_responses_api=True),
        "responses_stream": lambda root: streamed(model(root, use_responses_api=True)),
        "image": image,
        "embeddings": embeddings,
        "unknown_model": lambda root: chat(root, model="orders-jsom"),
    }
)
