"""PEFT behind HTTP: a real batch of several adapters, and the server with a stand-in."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx2
import pytest

from loadtest.markers.manifest import load_manifest
from loadtest.markers.marked import make_marked
from loadtest.peers.peft_batch import Answer, Job, PeftBatch
from loadtest.peers.peft_server import MOST_AT_ONCE, create_app

BASE = Path(__file__).parents[3] / "examples/shop/base"


class StandIn:
    def __init__(self) -> None:
        self.batches: list[int] = []

    def run(self, jobs: list[Job]) -> list[Answer]:
        self.batches.append(len(jobs))
        if any(job.prompt == "bad" for job in jobs):
            raise ValueError("a bad prompt")
        return [Answer(f"{job.adapter}", 3, job.max_tokens, "length") for job in jobs]


@pytest.fixture
def generator():
    return StandIn()


@pytest.fixture
async def client(generator):
    app = create_app(generator, "shop", ["a", "b"])
    transport = httpx2.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://peft") as client,
    ):
        yield client


async def complete(client, **fields):
    return await client.post("/v1/completions", json={"model": "a", "prompt": "hello"} | fields)


async def test_the_base_and_each_adapter_are_listed_as_vllm_does(client):
    cards = (await client.get("/v1/models")).json()["data"]
    assert [(card["id"], card["parent"]) for card in cards] == [
        ("shop", None),
        ("a", "shop"),
        ("b", "shop"),
    ]


async def test_an_answer_has_text_and_usage(client):
    body = (await complete(client, model="b", max_tokens=5)).json()
    assert body["choices"][0]["text"] == "b"
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}


async def test_a_streamed_answer_is_one_piece_usage_and_done(client):
    lines = (await complete(client, model="shop", stream=True)).text.split("\n\n")
    assert [line[:6] for line in lines] == ["data: "] * 3 + [""]
    first, usage = (json.loads(line[6:]) for line in lines[:2])
    assert first["choices"][0]["text"] == "None"
    assert usage["usage"]["completion_tokens"] == 16
    assert lines[2] == "data: [DONE]"


async def test_waiting_calls_form_one_batch_up_to_the_limit(client, generator):
    answers = await asyncio.gather(*(complete(client) for _ in range(MOST_AT_ONCE + 6)))
    assert {answer.status_code for answer in answers} == {200}
    assert max(generator.batches) == MOST_AT_ONCE
    assert sum(generator.batches) == MOST_AT_ONCE + 6


async def test_the_server_works_on_after_unknown_models_and_failed_batches(client):
    assert (await complete(client, model="c")).status_code == 404
    assert (await complete(client, prompt="bad")).status_code == 500
    assert (await complete(client)).status_code == 200


def test_a_real_batch_mixes_adapters_and_the_base_and_prompts_of_any_length(tmp_path):
    make_marked(BASE, tmp_path / "out", 2)
    manifest = load_manifest(tmp_path / "out")
    batch = PeftBatch(BASE, {name: manifest.folder(name, 1) for name in manifest.names})
    jobs = [
        Job("hello", "lt-0000", 3, True),
        Job([9, 10, 11, 12, 13], "lt-0001", 4, True),
        Job([9, 10, 11, 12, 13], None, 4, True),
    ]
    first, second, base = batch.run(jobs)
    assert first.text == manifest.marker("lt-0000", 1) * 3
    assert second.text == manifest.marker("lt-0001", 1) * 4
    assert base.text != second.text
    assert (second.prompt_tokens, second.output_tokens, second.finish_reason) == (5, 4, "length")
    # Left padding changes nothing but rounding: alone, the answer is the same.
    assert batch.run([Job([9, 10, 11, 12, 13], None, 4, True)])[0] == base
