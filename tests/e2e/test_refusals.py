"""Invalid requests get OpenAI's errors from the real server, and the next request succeeds."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest
from shop import BASE_NAME

USER = [{"role": "user", "content": "two blue lamps to Oslo"}]
LONG = [{"role": "user", "content": "lamp " * 200_000}]


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": BASE_NAME, "messages": USER, "max_tokens": 4} | fields).encode()


CASES = {
    "an unknown model": (chat(model="nobody"), 404, "model_not_found"),
    "a path as a model": (chat(model="../x"), 404, "model_not_found"),
    "a model of 10,000 characters": (chat(model="x" * 10_000), 404, "model_not_found"),
    "an empty model": (chat(model=""), 400, "missing_model"),
    "a number as a model": (chat(model=5), 400, "invalid_request"),
    "half of a JSON document": (b'{"model": "shop-base", "mess', 400, "invalid_json"),
    "a list": (b"[1, 2]", 400, "invalid_request"),
    "messages of a wrong type": (chat(messages=5), 400, "invalid_request"),
    "an unknown role": (chat(messages=[{"role": 3}]), 400, "invalid_request"),
    "a negative number of tokens": (chat(max_tokens=-1), 400, "invalid_request"),
    "a temperature in words": (chat(temperature="hot"), 400, "invalid_request"),
    "no messages at all": (b'{"model": "shop-base"}', 400, "invalid_request"),
    "a prompt of 1 MB": (chat(messages=LONG), 400, "context_length_exceeded"),
    "two models in one body": (
        b'{"model": "orders-json", "messages": [], "mod\\u0065l": "nobody"}',
        404,
        "model_not_found",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_invalid_request_is_refused_and_the_next_one_succeeds(server, case):
    content, status, code = CASES[case]
    headers = {"content-type": "application/json"}
    with httpx2.Client(base_url=server.url, timeout=60, headers=headers) as client:
        refused = client.post("/v1/chat/completions", content=content)
        answered = client.post("/v1/chat/completions", content=chat())

    assert (refused.status_code, answered.status_code) == (status, 200)
    error = refused.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["message"]
    assert len(refused.content) < 2000
    assert refused.headers["x-request-id"]


def test_a_body_with_many_errors_is_refused_at_the_first(server):
    """Reporting every error took a minute and 5 GB: see server/engine/validation.py."""
    body = {"model": BASE_NAME, "input": [{}] * 3_000}
    with httpx2.Client(base_url=server.url, timeout=20) as client:
        refused = client.post("/v1/responses", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "invalid_request"


def test_content_of_type_text_does_not_select_an_adapter(server):
    parts = [{"role": "user", "content": [{"type": "text", "text": "two blue lamps to Oslo"}]}]
    response = httpx2.post(
        f"{server.url}/v1/chat/completions",
        content=chat(messages=parts),
        headers={"content-type": "application/json"},
        timeout=60,
    )
    assert response.status_code == 200
    assert response.json()["model"] == BASE_NAME


@pytest.mark.parametrize("path", ["/invocations", "/pooling", "/load"])
def test_other_vllm_paths_are_not_exposed(server, path):
    response = httpx2.post(f"{server.url}{path}", json={"model": "orders-json"}, timeout=60)

    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"
