"""Lists of models, valid and unusable ones."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from marked_server import BASE_NAME, marked_server

from loadtest.drive.discovery import Models, discover
from loadtest.errors import TargetUnfit

VLLM = {
    "object": "list",
    "data": [
        {"id": "base", "owned_by": "vllm", "root": "/models/base", "parent": None},
        {"id": "tone", "owned_by": "vllm", "root": "/adapters/tone", "parent": "base"},
        {"id": "orders", "owned_by": "vllm", "root": "/adapters/orders", "parent": "base"},
    ],
}


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def found(session, body, status=200, **options) -> Models:
    async def answer(request: web.Request) -> web.Response:
        assert request.path == "/v1/models"
        assert request.headers["authorization"] == "Bearer key"
        text = body if isinstance(body, str) else json.dumps(body)
        return web.Response(text=text, status=status)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    async with TestServer(app) as server:
        url = str(server.make_url("/"))
        return await discover(session, url, {"authorization": "Bearer key"}, **options)


async def test_lorrys_list_gives_the_versions_of_bare_names(session, tmp_path):
    with marked_server(tmp_path, "tone", "orders") as server:
        models = await discover(session, server.url, {}, needed=2)
    assert models == Models(
        base=BASE_NAME,
        adapters=["orders", "tone"],
        is_lorry=True,
        stable={"orders": 1, "tone": 1},
    )


async def test_adapters_of_vllms_own_server_are_sorted_by_name(session):
    models = await found(session, VLLM, needed=2)
    assert models == Models(base="base", adapters=["orders", "tone"], is_lorry=False)


async def test_a_glob_selects_the_adapters_of_the_run(session):
    models = await found(session, VLLM, wanted="to*", needed=1)
    assert models.adapters == ["tone"]


async def test_a_split_has_no_single_version(session):
    base = {"id": "base", "owned_by": "lorry", "parent": None}
    split = {"id": "orders", "parent": "base", "version": 1, "split": {"1": 90, "2": 10}}
    assert (await found(session, {"data": [base, split]})).stable == {"orders": 0}


async def test_too_few_adapters_are_reported_with_advice(session):
    with pytest.raises(TargetUnfit, match="serves 2 adapters and the scenario needs 5: publish 3"):
        await found(session, VLLM, needed=5)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ("<html>", 200, "is not a list of models"),
        ({"data": [{"name": "x"}]}, 200, "is not a list of models"),
        ({"data": VLLM["data"][1:]}, 200, "lists no base model"),
        ({"error": "no"}, 401, "answered 401: give the key"),
        ("", 404, "answered 404"),
        (
            {"data": [{"id": "base", "parent": None}, {"id": "a\x1bc", "parent": "base"}]},
            200,
            "unprintable names",
        ),
        ("[" * 2000, 200, "more than 1000 bytes"),
    ],
)
async def test_an_unusable_list_of_models_is_reported(session, body, status, message):
    with pytest.raises(TargetUnfit, match=message):
        await found(session, body, status, max_bytes=1000)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no address", "http://"])
async def test_an_unreachable_server_is_reported(session, url):
    with pytest.raises(TargetUnfit, match="can't be reached"):
        await discover(session, url, {})
