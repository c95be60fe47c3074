"""LlamaIndex's OpenAILike and OpenAILikeEmbedding."""

from __future__ import annotations

from typing import Any

from asking import ADAPTER, BASE, CONTINUE, IMAGE, KEY, PREFILL, QUESTION, TOOL, run
from llama_index.core.llms import ChatMessage, ChatResponse, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel, Field

USER = [ChatMessage(role="user", content=QUESTION)]


class Delivery(BaseModel):
    """Where an order goes."""

    city: str = Field(max_length=12)
    gift: bool


SHIP = FunctionTool.from_defaults(
    fn=lambda city, gift: "shipped",
    name="ship",
    description="Ships the order.",
    fn_schema=Delivery,
)


def model(root: str, max_tokens: int | None = 12, **fields: Any) -> OpenAILike:
    given: dict[str, Any] = {"model": ADAPTER, "temperature": 0} | fields
    return OpenAILike(
        api_base=f"{root}/v1",
        api_key=KEY,
        max_tokens=max_tokens,
        context_window=1024,
        is_chat_model=True,
        is_function_calling_model=True,
        should_use_structured_outputs=True,
        **given,
    )


def told(answer: ChatResponse, llm: OpenAILike) -> dict[str, Any]:
    raw = answer.raw
    got: dict[str, Any] = {"model": raw.model}
    if raw.choices and hasattr(raw.choices[0], "finish_reason"):
        got["finish"] = raw.choices[0].finish_reason
    if answer.message.content:
        got["text"] = answer.message.content
    calls = llm.get_tool_calls_from_response(answer, error_on_no_tool_call=False)
    if calls:
        got["tool"] = {"name": calls[0].tool_name, "arguments": calls[0].tool_kwargs}
    return got | {"tokens": answer.additional_kwargs.get("completion_tokens")}


def chat(root: str, messages: Any = USER, **fields: Any) -> dict[str, Any]:
    llm = model(root, **fields)
    return told(llm.chat(messages), llm)


def stream(root: str) -> dict[str, Any]:
    llm = model(root, additional_kwargs={"stream_options": {"include_usage": True}})
    *_, last = llm.stream_chat(USER)
    return told(last, llm)


def completion(root: str) -> dict[str, Any]:
    llm = OpenAILike(api_base=f"{root}/v1", api_key=KEY, model=ADAPTER, max_tokens=12)
    answer = llm.complete(QUESTION)
    return {"model": answer.raw.model, "text": answer.text}


def schema(root: str) -> dict[str, Any]:
    llm = model(root, max_tokens=60).as_structured_llm(Delivery)
    return {"parsed": llm.chat(USER).raw.model_dump()}


def logprobs(root: str) -> dict[str, Any]:
    answer = model(root, max_tokens=3, logprobs=True, top_logprobs=2).chat(USER)
    return {"model": answer.raw.model, "logprobs": [len(each) for each in answer.logprobs]}


def tool(root: str) -> dict[str, Any]:
    llm = model(root, max_tokens=60)
    return told(llm.chat_with_tools([SHIP], QUESTION, tool_choice="ship"), llm)


def tool_stream(root: str) -> dict[str, Any]:
    llm = model(root, max_tokens=60)
    *_, last = llm.stream_chat_with_tools([SHIP], QUESTION, tool_required=True)
    return told(last, llm)


def tool_result(root: str) -> dict[str, Any]:
    call = {"name": "ship", "arguments": '{"city": "Oslo", "gift": false}'}
    calls = [{"id": "c1", "type": "function", "function": call}]
    messages = [
        *USER,
        ChatMessage(role="assistant", content="", additional_kwargs={"tool_calls": calls}),
        ChatMessage(role="tool", content="shipped", additional_kwargs={"tool_call_id": "c1"}),
    ]
    return chat(root, messages, additional_kwargs={"tools": [TOOL]})


def image(root: str) -> dict[str, Any]:
    picture = ImageBlock(url=IMAGE)
    blocks = [TextBlock(text="What is this?"), picture]
    return chat(root, [ChatMessage(role="user", blocks=blocks)])


def embeddings(root: str) -> dict[str, Any]:
    asked = OpenAILikeEmbedding(api_base=f"{root}/v1", api_key=KEY, model_name=BASE)
    return {"vectors": len(asked.get_text_embedding("a"))}


run(
    {
        "chat": chat,
        "completion": completion,
        "stream": stream,
        "developer": lambda root: chat(
            root, [ChatMessage(role="developer", content="Answer in JSON."), *USER]
        ),
        "parts": lambda root: chat(
            root,
            [
                ChatMessage(
                    role="user", blocks=[TextBlock(text="two blue"), TextBlock(text="lamps")]
                )
            ],
        ),
        "schema": schema,
        "logprobs": logprobs,
        "tool": tool,
        "tool_stream": tool_stream,
        "tool_result": tool_result,
        "prefill": lambda root: chat(
            root,
            [*USER, ChatMessage(role="assistant", content=PREFILL)],
            additional_kwargs={"extra_body": CONTINUE},
        ),
        "image": image,
        "embeddings": embeddings,
        "unknown_model": lambda root: chat(root, model="orders-jsom"),
    }
)
