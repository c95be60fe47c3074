"""An adapter that computes invalid values fails its own calls and affects no others."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx2
import openai
import pytest
from openai import OpenAI
from safetensors.torch import load_file, save_file
from shop import BASE, BASE_NAME, MARKERS, run

QUESTION = [{"role": "user", "content": "two blue lamps and one oak desk to Oslo by Friday"}]


@pytest.fixture(scope="module")
def loud(shop, tmp_path_factory: pytest.TempPathFactory) -> str:
    """orders-json with one huge output column: it passes all checks of publishing."""
    folder: Path = tmp_path_factory.mktemp("adapter") / "loud"
    digest = shop.digests["orders-json"].removeprefix("sha256:")
    shutil.copytree(next(shop.store.rglob(digest)), folder, copy_function=shutil.copyfile)
    weights = folder / "adapter_model.safetensors"
    tensors = load_file(weights)
    for name in (name for name in tensors if "lora_B" in name):
        tensors[name] = 0 * tensors[name]
        tensors[name][0] = 2500
    save_file(tensors, weights, metadata={"format": "pt"})
    run(
        *("lorry", "adapters", "publish", str(folder), "--name", "loud"),
        *("--base", str(BASE), "--base-name", BASE_NAME, "--store", str(shop.store)),
    )
    return "loud"


@pytest.fixture
def client(server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: OpenAI, model: str) -> str:
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, temperature=0, max_tokens=48
    )
    return answer.choices[0].message.content or ""


def test_its_calls_are_422_and_other_answers_do_not_change(client, server, loud):
    models = (BASE_NAME, "orders-json", "orders-sql")
    before = [ask(client, model) for model in models]
    for _ in range(3):  # other calls reuse its KV cache blocks in between
        with pytest.raises(openai.UnprocessableEntityError) as refused:
            ask(client, loud)
        assert refused.value.code == "adapter_unhealthy"
        assert "loud@1" in refused.value.message
        assert [ask(client, model) for model in models] == before
    assert before[1].startswith(MARKERS["orders-json"])


def test_a_stream_gets_the_same_error(client, loud):
    """Before its first token, with its own status; after it, as an event."""
    with pytest.raises(openai.APIError) as refused:
        list(client.chat.completions.create(model=loud, messages=QUESTION, stream=True))
    assert refused.value.code == "adapter_unhealthy"


def test_metrics_and_log_report_the_adapter(server, loud):
    httpx2.post(
        f"{server.url}/v1/chat/completions",
        json={"model": loud, "messages": QUESTION},
        timeout=60,
    )
    metrics = server.metrics()
    assert metrics['lorry_adapter_nonfinite_values{adapter="loud",version="1"}'] > 0
    logged = [call for call in server.calls() if call["adapter"] == "loud"][-1]
    assert (logged["status"], logged["outcome"]) == (422, "error")
    assert logged["error_code"] == "adapter_unhealthy"
    assert logged["finish_reasons"] == ["error"]
