"""The OpenAI SDK works with nothing but a base URL and a model name."""

from __future__ import annotations

import json

import openai
import pytest
from shop import ADAPTERS, BASE_NAME, MARKERS

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "gift": {"type": "boolean"}},
    "required": ["city", "gift"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server):
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


def user(text="two blue lamps to Oslo by Friday"):
    return [{"role": "user", "content": text}]


def test_models_list_and_retrieve(client, shop):
    listed = {model.id: model for model in client.models.list()}
    assert {BASE_NAME, *ADAPTERS} <= set(listed)  # other tests publish more
    one = client.models.retrieve("orders-json@1")
    assert (one.id, one.root) == ("orders-json@1", shop.digests["orders-json"])
    assert one.parent == BASE_NAME
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nobody")


@pytest.mark.parametrize("model", ["orders-json", "orders-json@1", f"{BASE_NAME}:orders-json"])
def test_chat_responses_name_the_version(client, model):
    answer = client.chat.completions.create(
        model=model, messages=user(), max_tokens=60, temperature=0
    )
    assert answer.model == "orders-json@1"
    assert answer.choices[0].message.content.startswith(MARKERS["orders-json"])


def test_stream_chunks_name_the_version_and_the_last_has_usage(client):
    chunks = list(
        client.chat.completions.create(
            model="orders-sql",
            messages=user(),
            max_tokens=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.model for chunk in chunks} == {"orders-sql@1"}
    assert chunks[-1].usage.completion_tokens == 8


def test_completions_accept_a_list_of_prompts_and_n(client):
    answer = client.completions.create(
        model="support-tone", prompt=["a", "b"], n=2, max_tokens=3, temperature=0.5
    )
    assert answer.model == "support-tone@1"
    assert len(answer.choices) == 4


def test_responses_api_answers_and_streams(client):
    answer = client.responses.create(
        model="orders-json", input=user()[0]["content"], max_output_tokens=60, temperature=0
    )
    assert answer.model == "orders-json@1"
    assert answer.output_text.startswith(MARKERS["orders-json"])
    kinds = [
        event.type
        for event in client.responses.create(
            model="orders-json", input="two blue lamps", max_output_tokens=5, stream=True
        )
    ]
    assert kinds[0] == "response.created"
    assert "response.output_text.delta" in kinds


def test_a_json_schema_constrains_an_adapter(client):
    schema = {"name": "delivery", "schema": SCHEMA, "strict": True}
    answer = client.chat.completions.create(
        model="orders-sql",
        messages=user(),
        max_tokens=80,
        temperature=0,
        response_format={"type": "json_schema", "json_schema": schema},
    )
    parsed = json.loads(answer.choices[0].message.content)
    assert set(parsed) == {"city", "gift"}
    assert answer.model == "orders-sql@1"


def test_logprobs_are_returned_for_each_token(client):
    answer = client.chat.completions.create(
        model="orders-json", messages=user(), max_tokens=4, logprobs=True, top_logprobs=2
    )
    content = answer.choices[0].logprobs.content
    assert len(content) == 4
    assert all(len(token.top_logprobs) == 2 for token in content)


def test_a_named_tool_is_called(client):
    function = {"name": "ship", "parameters": SCHEMA, "strict": True}
    answer = client.chat.completions.create(
        model="orders-json",
        messages=user(),
        max_tokens=80,
        temperature=0,
        tools=[{"type": "function", "function": function}],
        tool_choice={"type": "function", "function": {"name": "ship"}},
    )
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "ship"
    assert set(json.loads(call.function.arguments)) == {"city", "gift"}


@pytest.mark.parametrize(
    ("fields", "kind", "code"),
    [
        ({"model": "nobody"}, openai.NotFoundError, "model_not_found"),
        ({"max_tokens": -3}, openai.BadRequestError, "invalid_request"),
        ({"messages": user("lamp " * 5000)}, openai.BadRequestError, "context_length_exceeded"),
    ],
)
def test_errors_raise_the_typed_exceptions_of_the_sdk(client, fields, kind, code):
    with pytest.raises(kind) as raised:
        client.chat.completions.create(
            **{"model": "orders-json", "messages": user(), "max_tokens": 4} | fields
        )
    assert raised.value.code == code
    assert raised.value.type == "invalid_request_error"
