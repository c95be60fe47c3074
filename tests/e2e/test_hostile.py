"""One caller can't stop the real server: no grammar ends it, no body holds its event loop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from admin_client import TOKEN
from liveness import watching
from shop import BASE_NAME

DEEP = "(" * 50_000 + "a" + ")" * 50_000
TYPE = {"type": "string", "pattern": DEEP}
USER = [{"role": "user", "content": "x"}]
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGES, COUNT, TOKENIZE = "/v1/messages", "/v1/messages/count_tokens", "/tokenize"
SMALL = {"type": "string", "pattern": "(" * 70 + "a" + ")" * 70}  # a tool is in the prompt
FUNCTION = {"name": "f", "parameters": {"type": "object", "properties": {"x": SMALL}}}


def tag(schema: Any) -> dict[str, Any]:
    return {"structures": [{"begin": "<f>", "schema": schema, "end": "</f>"}], "triggers": ["<f"]}


def response_format(schema: Any) -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return {"response_format": form}


GRAMMARS = {
    "a schema in completions": (COMPLETIONS, response_format(TYPE)),
    "a schema in a chat": (CHAT, response_format({"items": [TYPE]})),
    "a schema in responses": (
        RESPONSES,
        {"text": {"format": {"type": "json_schema", "name": "x", "schema": TYPE}}},
    ),
    "a schema in messages": (
        MESSAGES,
        {"output_config": {"format": {"type": "json_schema", "schema": TYPE}}},
    ),
    "a schema as a text": (COMPLETIONS, {"structured_outputs": {"json": json.dumps(TYPE)}}),
    "a regex": (COMPLETIONS, {"structured_outputs": {"regex": DEEP}}),
    "a grammar": (CHAT, {"structured_outputs": {"grammar": f"root ::= {DEEP}"}}),
    "a structural tag": (CHAT, {"response_format": {"type": "structural_tag", **tag(TYPE)}}),
    "a tag as a text": (CHAT, {"structured_outputs": {"structural_tag": json.dumps(tag(TYPE))}}),
    "a tool": (
        CHAT,
        {
            "tools": [{"type": "function", "function": FUNCTION}],
            "tool_choice": {"type": "function", "function": {"name": "f"}},
        },
    ),
    "many choices": (COMPLETIONS, {"structured_outputs": {"choice": ["a"] * 50_000}}),
    "a number": (COMPLETIONS, response_format({"type": "integer", "maximum": 10**30})),
}
TOO_COMPLEX = response_format({"type": "integer", "multipleOf": 1_000_003})


def request(path: str, **fields: Any) -> dict[str, Any]:
    """A small request to a path, with `fields`."""
    prompts: dict[str, Any] = {
        COMPLETIONS: {"prompt": "x", "max_tokens": 4},
        RESPONSES: {"input": "x", "max_output_tokens": 16},
        TOKENIZE: {"prompt": "x"},
        "/detokenize": {"tokens": [5]},
        COUNT: {"messages": USER},
    }
    return {"model": BASE_NAME, **prompts.get(path, {"messages": USER, "max_tokens": 4}), **fields}


@pytest.fixture(scope="module")
def client(server):
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        yield client


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("case", GRAMMARS)
def test_a_hostile_grammar_is_a_400_that_names_the_bound(client, case, stream):
    path, fields = GRAMMARS[case]
    refused = client.post(path, json=request(path, stream=stream, **fields))

    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (400, "grammar_too_large")
    assert "max_grammar_" in error["message"]
    assert len(refused.content) < 2_000


def test_a_grammar_that_takes_too_long_is_a_400_and_others_are_answered(client):
    refused = client.post(COMPLETIONS, json=request(COMPLETIONS, **TOO_COMPLEX))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "grammar_too_complex")
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    answered = client.post(
        COMPLETIONS, json=request(COMPLETIONS, max_tokens=20, **response_format(schema))
    )
    assert set(json.loads(answered.json()["choices"][0]["text"])) == {"a"}


@pytest.mark.parametrize(
    ("constraint", "answers"),
    [
        ({"choice": ["yes.", "no|"]}, {"yes.", "no|"}),
        ({"regex": "(ab|cd)"}, {"ab", "cd"}),
        ({"grammar": 'root ::= "left" | "right"'}, {"left", "right"}),
        ({"grammar": 'start: "left" | "right"'}, {"left", "right"}),
        ({"json": {"type": "integer", "multipleOf": 7, "minimum": 7, "maximum": 14}}, {"7", "14"}),
    ],
)
def test_each_kind_of_grammar_constrains_whatever_came_before(client, constraint, answers):
    body = request(COMPLETIONS, max_tokens=20, structured_outputs=constraint)
    assert client.post(COMPLETIONS, json=body).json()["choices"][0]["text"] in answers


def test_an_object_has_the_properties_of_its_schema_and_no_others(client):
    schema = {"type": "object", "properties": {"a": {"type": "integer", "maximum": 9}}}
    body = request(CHAT, max_tokens=40, **response_format({**schema, "required": ["a"]}))
    answer = client.post(CHAT, json=body).json()["choices"][0]["message"]["content"]
    assert set(json.loads(answer)) == {"a"}


def test_a_call_may_ask_for_so_many_answers(client):
    refused = client.post(COMPLETIONS, json=request(COMPLETIONS, n=128, temperature=1))
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "too_many_sequences")


LARGEST = [
    *(
        (path, {"messages": messages})
        for path in (CHAT, MESSAGES, COUNT, TOKENIZE)
        for messages in (
            [{"role": "user", "content": "a" * 15_000_000}],
            USER * 16_000,
            [{"role": "user", "content": [{"type": "text", "text": "x"}] * 16_000}],
            [0] * 260_000,
        )
    ),
    *((CHAT, {"chat_template_kwargs": {str(key): key for key in range(60_000)}}) for _ in (1,)),
    *(
        (RESPONSES, {"input": each})
        for each in (
            "a" * 15_000_000,
            USER * 16_000,
            [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}] * 5_000,
        )
    ),
    *(
        (COMPLETIONS, {"prompt": each})
        for each in ("a" * 15_000_000, ["x"] * 200_000, [1] * 260_000, "\n" * 7_500_000)
    ),
    (COMPLETIONS, {"prompt": ["a" * 400_000] * 32}),
    (COMPLETIONS, {"stop_token_ids": list(range(250_000))}),
    (COMPLETIONS, {"bad_words": [f"w{number}" for number in range(200_000)]}),
    (COMPLETIONS, {"logit_bias": {str(number): 1 for number in range(60_000)}}),
    (COMPLETIONS, {"structured_outputs": {"regex": "(" * 2_000_000}}),
    (COMPLETIONS, {"n": 30, "temperature": 1, "max_tokens": 50, "logprobs": 20}),
    (TOKENIZE, {"prompt": "a" * 15_000_000}),
    ("/detokenize", {"tokens": [1] * 260_000}),
]


@pytest.mark.slow  # half a minute of large bodies
def test_no_body_keeps_a_probe_waiting(client, server):
    """0.25 s, in one of three tries: other programs share the machine."""
    slow = {}
    with watching(server.url) as liveness:
        for number, (path, fields) in enumerate(LARGEST):
            body = json.dumps(request(path, **fields)).encode()
            tries = []
            for _ in range(3):
                _ = liveness.longest
                answer = client.post(
                    path, content=body, headers={"content-type": "application/json"}
                )
                assert answer.status_code in (200, 400, 413), answer.text[:500]
                tries.append(liveness.longest)
                if tries[-1] < 0.25:
                    break
            else:
                slow[number, path, *fields] = tries
    assert not slow


def test_no_process_of_the_server_but_itself_knows_a_credential(server):
    children = {*server.group()} - {server.process.pid}
    assert server.engine() in children
    known = [pid for pid in children if TOKEN in Path(f"/proc/{pid}/environ").read_text()]
    assert known == []
