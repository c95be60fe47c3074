"""Adapters on a running server: publish, roll out, split, unload, lose files, remove."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from dataclasses import dataclass

import httpx2
import pytest
from admin_client import text_of
from safetensors.torch import load_file, save_file
from shop import BASE_NAME, MARKERS

PROMPT = "two blue lamps and one oak desk to Oslo by Friday"
SWITCHES = 50
CALLERS = 4


@pytest.fixture(scope="module")
def admin_of_module(server, shop):
    from admin_client import AdminClient

    with AdminClient(server.url, shop.store) as admin:
        yield admin


@pytest.fixture(scope="module")
def rolling(admin_of_module, shop):
    """One name with two versions whose answers differ clearly."""
    admin = admin_of_module
    for name in ("orders-json", "orders-sql"):
        admin.upload("rolling", admin.object(shop.digests[name]))
    return {1: MARKERS["orders-json"], 2: MARKERS["orders-sql"]}


@dataclass(frozen=True)
class Switch:
    """An alias moved to `version` between `asked` and `done`."""

    version: int
    asked: float
    done: float


@dataclass(frozen=True)
class Call:
    began: float
    named: float  # the headers had arrived, so the name was resolved
    model: str
    text: str


def live_between(switches: list[Switch], since: float, until: float) -> set[int]:
    """Versions that the alias may have pointed at in that interval."""
    live = set()
    for now, later in zip(switches, [*switches[1:], None], strict=True):
        if now.asked <= until and (later is None or later.done >= since):
            live.add(now.version)
    return live


async def call_until(stop: asyncio.Event, url: str, calls: list[Call]) -> None:
    body = {"model": "rolling", "messages": [{"role": "user", "content": PROMPT}]}
    body |= {"temperature": 0, "max_tokens": 8, "stream": True}
    async with httpx2.AsyncClient(base_url=url, timeout=300) as client:
        while not stop.is_set():
            began = time.monotonic()
            async with client.stream("POST", "/v1/chat/completions", json=body) as response:
                named = time.monotonic()
                assert response.status_code == 200, await response.aread()
                lines = [
                    line async for line in response.aiter_lines() if line.startswith("data: {")
                ]
            chunks = [json.loads(line[6:]) for line in lines]
            assert {chunk["model"] for chunk in chunks} == {response.headers["x-lorry-adapter"]}
            text = "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks)
            calls.append(Call(began, named, chunks[0]["model"], text))


async def test_rollouts_and_rollbacks_under_load_fail_no_call(server, admin, rolling):
    calls: list[Call] = []
    stop = asyncio.Event()
    switches = [Switch(2, 0.0, 0.0)]
    callers = [asyncio.create_task(call_until(stop, server.url, calls)) for _ in range(CALLERS)]
    for turn in range(SWITCHES):
        seen, asked = len(calls), time.monotonic()
        if turn % 2 == 0:
            change = ("PUT", "/rolling/aliases/stable")
            moved = await asyncio.to_thread(admin.ask, *change, json={"version": 1})
        else:
            change = ("POST", "/rolling/aliases/stable/rollback")
            moved = await asyncio.to_thread(admin.ask, *change)
        switches.append(Switch(moved["targets"][0]["version"], asked, time.monotonic()))
        while len(calls) < seen + CALLERS and not any(c.done() for c in callers):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    stop.set()
    await asyncio.gather(*callers)

    assert [switch.version for switch in switches[1:]] == [1, 2] * (SWITCHES // 2)
    assert len(calls) >= SWITCHES * CALLERS
    for call in calls:
        version = int(call.model.removeprefix("rolling@"))
        assert version in live_between(switches, call.began, call.named), call
        assert call.text.startswith(rolling[version]), call
    assert {call.model for call in calls} == {"rolling@1", "rolling@2"}


async def test_two_versions_in_one_batch_each_give_their_own_answer(server, admin, rolling):
    models = ("rolling@1", "rolling@2", BASE_NAME)
    alone = {model: text_of(admin.answer(model, PROMPT)) for model in models}
    answers = await asyncio.gather(
        *(asyncio.to_thread(admin.answer, model, PROMPT) for model in models * 8)
    )
    for model, answer in zip(models * 8, answers, strict=True):
        assert text_of(answer) == alone[model]
    assert len(set(alone.values())) == 3


def test_new_weights_under_an_old_name_do_not_use_the_old_prefix_cache(admin, shop):
    """vLLM keys its prefix cache by the adapter's name and path."""
    long = f"{PROMPT} and {PROMPT}; " * 6  # several cache blocks
    expected = {name: text_of(admin.answer(name, long)) for name in ("orders-json", "orders-sql")}
    for name in ("orders-json", "orders-sql"):
        admin.upload("fresh", admin.object(shop.digests[name]))
        for _ in range(2):
            assert text_of(admin.answer("fresh", long)) == expected[name]


@pytest.mark.parametrize("name", ["text", "image", "a,b", "a/b", "base"])
def test_names_that_would_mislead_the_engine_are_refused(admin, shop, name):
    refused = admin.upload(name, admin.object(shop.digests["orders-sql"]), status=400)
    assert refused["error"]["code"] == "bad_name"
    missing = admin.answer(name, PROMPT)
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")


def test_vllm_compatible_paths_load_and_unload_but_do_not_replace_in_place(admin, shop):
    place = str(admin.object(shop.digests["orders-sql"]).relative_to(shop.store.parent))
    body = {"lora_name": "compat", "lora_path": place}
    inplace = admin.http.post("/v1/load_lora_adapter", json=body | {"load_inplace": True})
    assert (inplace.status_code, inplace.json()["error"]["code"]) == (400, "unsupported")

    loaded = admin.http.post("/v1/load_lora_adapter", json=body)
    assert (loaded.status_code, loaded.text[:7]) == (200, "Success"), loaded.text
    assert admin.held("compat") == {1}
    assert text_of(admin.answer("compat", PROMPT)).startswith(MARKERS["orders-sql"])
    gone = admin.http.post("/v1/unload_lora_adapter", json={"lora_name": "compat"})
    assert gone.status_code == 200
    assert admin.held("compat") == set()
    assert admin.answer("compat", PROMPT).status_code == 404


def test_unload_frees_the_engine_and_a_removed_version_is_not_found(admin, rolling):
    admin.ask("POST", "/rolling@1/load")
    assert 1 in admin.held("rolling")
    admin.ask("POST", "/rolling@1/unload")
    assert 1 not in admin.held("rolling")
    (shown,) = [v for v in admin.ask("GET", "/rolling")["versions"] if v["version"] == 1]
    assert shown["residency"] == {"loading": False, "host": False, "device": False}
    assert text_of(admin.answer("rolling@1", PROMPT)).startswith(rolling[1])

    admin.ask("PUT", "/rolling/aliases/stable", json={"version": 2})
    assert admin.ask("DELETE", "/rolling/versions/1")["unloaded"] is True
    assert admin.answer("rolling@1", PROMPT).status_code == 404
    assert text_of(admin.answer("rolling", PROMPT)).startswith(rolling[2])


def test_a_split_keeps_each_user_on_one_side_and_reports_it(server, admin, shop):
    for name in ("orders-json", "orders-sql"):
        admin.upload("shared", admin.object(shop.digests[name]))
    admin.ask("PUT", "/shared/aliases/stable", json={"split": {"1": 50, "2": 50}})
    marker = {"shared@1": MARKERS["orders-json"], "shared@2": MARKERS["orders-sql"]}
    sides = {}
    for user in [f"user-{number}" for number in range(8)] * 2:
        body = {"model": "shared", "user": user, "temperature": 0, "max_tokens": 16}
        body |= {"messages": [{"role": "user", "content": PROMPT}]}
        answer = admin.http.post("/v1/chat/completions", json=body)
        model = answer.json()["model"]
        assert answer.headers["x-lorry-adapter"] == model == sides.setdefault(user, model)
        assert text_of(answer).startswith(marker[model])
        assert server.logged(answer.headers["x-request-id"])["served_model"] == model
    assert set(sides.values()) == set(marker)


def delete_folder(folder):
    shutil.rmtree(folder)


def truncate_weights(folder):
    weights = folder / "adapter_model.safetensors"
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content[: len(content) // 2])


def make_unreadable(folder):
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").mkdir()


@pytest.mark.parametrize("accident", [delete_folder, truncate_weights, make_unreadable])
def test_lost_files_fail_only_the_calls_that_need_them(admin, shop, tmp_path, accident):
    folder = tmp_path / "doomed"
    shutil.copytree(admin.object(shop.digests["orders-sql"]), folder, copy_function=shutil.copyfile)
    tensors = load_file(folder / "adapter_model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name] * (1 + len(accident.__name__) / 100)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    published = admin.upload("doomed", folder)
    label = published["label"]
    accident(admin.object(published["digest"]))

    for _ in range(2):
        failed = admin.answer(label, PROMPT)
        assert failed.status_code == 503, failed.text
        assert failed.json()["error"]["code"] == "adapter_load_failed"
        assert failed.headers["retry-after"]
        answered = text_of(admin.answer("orders-sql", PROMPT))
        assert answered.startswith(MARKERS["orders-sql"])
    assert published["version"] not in admin.held("doomed")
