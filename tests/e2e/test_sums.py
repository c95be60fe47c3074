"""Sums of adapters on real servers: what they answer, and what many of them leave alone."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import httpx2
import pytest
from bases import WITHIN, Scorer, reference
from server_process import ServerProcess
from shop import ADAPTERS, BASE_NAME, Shop

from adapters.store import Store

PAIR = "orders-json*0.7+support-tone@stable*0.5"
FORM = "orders-json@1*0.7+support-tone@1*0.5"
PROMPT = "two blue lamps to Oslo by Friday"
RANDOM_SUMS = 200
CALLERS = 6
MOST_SUMS = 3
WARM = 60  # sums, after which memory is not to grow
MOST_GROWTH = 48  # MiB; the sums after that are 1.5 MiB each, on disk and in the engine
PROMPTS = (PROMPT, "Where is my parcel?", "three red chairs and a desk to Bergen", "Write to Ann:")


@dataclass(frozen=True)
class Answer:
    model: str
    digest: str | None
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt: tuple[int, ...]


async def ask(client: httpx2.AsyncClient, model: str, prompt: str = PROMPT) -> Answer:
    asked = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0, "logprobs": 0}
    response = await client.post("/v1/completions", json=asked | {"return_token_ids": True})
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert response.json()["model"] == response.headers["x-lorry-adapter"].replace(
        "base", BASE_NAME
    )
    return Answer(
        response.json()["model"],
        response.headers.get("x-lorry-adapter-digest"),
        tuple(choice["token_ids"]),
        tuple(choice["logprobs"]["token_logprobs"]),
        tuple(choice["prompt_token_ids"]),
    )


def client_of(server: ServerProcess) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=server.url, timeout=120)


async def test_a_sum_is_one_version_however_it_is_written_and_composed(server, admin):
    async with client_of(server) as client:
        pair = await ask(client, PAIR)
        assert pair.model == FORM
        for text in (FORM, " support-tone * .5 + orders-json@1 * 0.70", f"{BASE_NAME}:{PAIR}"):
            assert await ask(client, text) == pair
        twice = await ask(client, "orders-json+orders-json")
        assert (twice.model, await ask(client, "orders-json*2")) == ("orders-json@1*2", twice)
        nothing, base = await ask(client, "orders-json*0"), await ask(client, BASE_NAME)
        assert nothing == base
        assert await ask(client, "orders-json*1") == await ask(client, "orders-json")
        card = (await client.get(f"/v1/models/{PAIR}")).json()
        assert (card["sum"], card["root"]) == (FORM, pair.digest)
        listed = (await client.get("/v1/models")).json()["data"]
        assert not any("*" in each["id"] for each in listed)

        made = admin.ask("POST", "/both/compose", 201, json={"sum": FORM})
        assert made["provenance"]["sum"]["digest"] == pair.digest
        both = await ask(client, "both")
        assert (both.model, both.tokens, both.logprobs) == ("both@1", pair.tokens, pair.logprobs)
        call = server.logged(
            (await client.post("/v1/completions", json={"model": PAIR, "prompt": "x"})).headers[
                "x-request-id"
            ]
        )
        assert (call["adapter"], call["version"], call["digest"]) == (FORM, None, pair.digest)
        assert [part["label"] for part in call["parts"]] == ["orders-json@1", "support-tone@1"]


async def test_sums_parts_and_base_in_one_batch_answer_as_alone(server):
    models = [BASE_NAME, "orders-json", "support-tone", PAIR, "orders-json*0.5+orders-sql*0.5"]
    async with client_of(server) as client:
        alone = [await ask(client, model) for model in models]
        assert len({answer.tokens for answer in alone}) == len(models)
        together = await asyncio.gather(*(ask(client, model) for model in models * 4))
    for expected, answer in zip(alone * 4, together, strict=True):
        assert (answer.model, answer.tokens) == (expected.model, expected.tokens)
        assert answer.logprobs == pytest.approx(expected.logprobs, abs=0.25)


def draw_sums(seed: int) -> dict[str, dict[str, float]]:
    """Different sums by their texts: weights of two or three adapters each."""
    dice = random.Random(seed)
    found: dict[str, dict[str, float]] = {}
    while len(found) < RANDOM_SUMS:
        parts = dice.sample(ADAPTERS, dice.choice((2, 3)))
        weights = {part: dice.randrange(-50, 121) / 100 for part in parts}
        if all(weight not in (0, 1) for weight in weights.values()):
            found["+".join(f"{part}*{weight}" for part, weight in weights.items())] = weights
    return found


def distance(score: Scorer, model: str | dict[str, float] | None, answer: Answer) -> float:
    """Mean difference of the answer's log-probabilities from what a model would give them."""
    import torch

    table = score(model, [*answer.prompt, *answer.tokens])[len(answer.prompt) - 1 :]
    theirs = table.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0].tolist()
    pairs = zip(answer.logprobs, theirs, strict=True)
    return fmean(abs(mine - other) for mine, other in pairs)


def memory(server: ServerProcess) -> dict[str, int]:
    """Resident MiB of server and engine."""
    pids = {"server": server.process.pid, "engine": server.engine()}
    return {name: resident(pid) for name, pid in pids.items()}


def resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    (line,) = (each for each in status.splitlines() if each.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


def check_bounds(series: dict[str, float], folders: int) -> None:
    """No part was evicted; places, metric series and files are few."""
    for name in ADAPTERS:
        loads = f'lorry_adapter_loads_total{{adapter="{name}",result="ok",version="1"}}'
        assert series[loads] == 1
    called = [each.split('"')[1] for each in series if each.startswith("lorry_requests_total{")]
    assert len({name for name in called if "*" in name}) == 200 // 4
    held = [each for each in series if each.startswith("lorry_adapter_resident{")]
    assert len([each for each in held if "*" in each and "host" in each]) <= MOST_SUMS
    assert folders <= 2 * MOST_SUMS


@pytest.mark.slow  # a server of its own, with few places
@pytest.mark.filterwarnings("default")  # of PEFT
async def test_random_sums_under_load_answer_rightly_and_evict_no_part(
    shop, tmp_path, record_property
):
    sums = draw_sums(29)
    flags = ("--served-model-name", BASE_NAME, "--max-loras", "4", "--max-cpu-loras", "6")
    cache = tmp_path / "cache"
    more = ("--max-sums", str(MOST_SUMS), "--cache", str(cache))
    server = ServerProcess(shop.base, shop.store, tmp_path / "log", *flags, *more)
    waiting = [(text, PROMPTS[at % len(PROMPTS)]) for at, text in enumerate(sums)]
    answered: list[tuple[str, Answer]] = []
    grown: list[dict[str, int]] = []
    folders: list[int] = []

    async def call_sums(client: httpx2.AsyncClient) -> None:
        while waiting:
            text, prompt = waiting.pop()
            answered.append((text, await ask(client, text, prompt)))
            folders.append(len(list(cache.glob("sums/*/*/adapter_config.json"))))
            if len(folders) in (WARM, RANDOM_SUMS):
                grown.append(memory(server))

    async def call_parts(client: httpx2.AsyncClient) -> None:
        while waiting:  # the third is idle: the coldest of all
            for model in (ADAPTERS[0], BASE_NAME, ADAPTERS[1]):
                answered.append((model, await ask(client, model)))

    try:
        server.wait_ready()
        async with client_of(server) as client:
            for model in ADAPTERS:
                await ask(client, model)
            await asyncio.gather(*(call_sums(client) for _ in range(CALLERS)), call_parts(client))
            await ask(client, ADAPTERS[2])
        series = server.metrics()
    finally:
        server.kill()

    check_bounds(series, max(folders))
    first, last = grown
    assert all(last[name] <= first[name] + MOST_GROWTH for name in first), grown

    parts = published_folders(shop, tmp_path / "parts")
    score = reference(shop.base, parts, nf4=True, names=ADAPTERS)
    models: dict[str, str | dict[str, float] | None] = {**sums, BASE_NAME: None}
    models |= {name: name for name in ADAPTERS}
    dice = random.Random(1)
    largest, wrong = 0.0, []
    for text, answer in answered:
        own = distance(score, models[text], answer)
        others = [model for name, model in models.items() if name != text]
        nearest = min(distance(score, other, answer) for other in dice.sample(others, 2))
        largest = max(largest, own)
        if own > WITHIN or nearest < own:
            wrong.append((text, own, nearest))
    record_property("figures", f"{len(answered)} answers, {largest:.4f}, {grown}, {max(folders)}")
    assert wrong == []


def published_folders(shop: Shop, place: Path) -> Path:
    """A folder with the published files of each adapter under its name."""
    place.mkdir()
    for name, digest in shop.digests.items():
        (place / name).symlink_to(Store(shop.store).path(digest))
    return place
