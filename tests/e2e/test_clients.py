"""The requests that real clients sent (tests/clients/recordings) get the answers that they need."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from tests.clients.answers import check
from tests.clients.cases import ADAPTER, ANSWERED_BY, PREFILL
from tests.clients.record.environments import read_clients
from tests.clients.recordings import Asked, read

NAMES = [each.name for each in read_clients()]


@pytest.mark.parametrize("name", NAMES)
def test_the_answers_to_a_recorded_client_have_the_form_it_reads(server, shop, name):
    def replay(case: str, asked: Asked) -> str | None:
        try:
            answer = client.request(
                asked.method, asked.path, headers=asked.headers, json=asked.body
            )
            check(asked, answer, ANSWERED_BY, shop.digests)
        except Exception as error:  # noqa: BLE001 - all failures are reported at once
            return f"{case}: {asked.method} {asked.path}: {error!r}"
        return None

    asked = [(case.name, each) for case in read(name).cases.values() for each in case.requests]
    with (
        httpx2.Client(base_url=server.url, timeout=120) as client,
        ThreadPoolExecutor(4) as threads,
    ):
        failures = [each for each in threads.map(replay, *zip(*asked, strict=True)) if each]
    assert len(asked) > 1
    assert not failures, "\n".join(failures)


def test_both_apis_continue_a_prefilled_answer_alike(server):
    begun = [
        {"role": "user", "content": "two blue lamps to Oslo by Friday"},
        {"role": "assistant", "content": PREFILL},
    ]
    fields = {"model": ADAPTER, "messages": begun, "max_tokens": 12, "temperature": 0}
    flags = {"continue_final_message": True, "add_generation_prompt": False}
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        chat = client.post("/v1/chat/completions", json=fields | flags).json()
        message = client.post("/v1/messages", json=fields).json()
    said = chat["choices"][0]["message"]["content"]
    assert said
    assert not said.startswith(PREFILL[:8])
    assert message["content"][0]["text"] == said


def test_a_tool_call_that_is_cut_off_is_an_answer(server):
    tool = {"name": "ship", "input_schema": {"type": "object", "properties": {"city": {}}}}
    asked = {
        "model": ADAPTER,
        "messages": [{"role": "user", "content": "two blue lamps to Oslo by Friday"}],
        "tools": [tool],
        "tool_choice": {"type": "tool", "name": "ship"},
        "max_tokens": 1,
    }
    answer = httpx2.post(f"{server.url}/v1/messages", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["stop_reason"] == "max_tokens"
    (call,) = answer.json()["content"]
    assert (call["type"], call["name"], call["input"]) == ("tool_use", "ship", {})


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/v1/embeddings", "has no embeddings"),
        ("/chat/completions", "Did you mean /v1/chat/completions?"),
    ],
)
def test_a_path_that_is_not_served_says_what_to_do(server, path, meant):
    answer = httpx2.post(f"{server.url}{path}", json={"model": ADAPTER}, timeout=60)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"
    assert meant in answer.json()["error"]["message"]
