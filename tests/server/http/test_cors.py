"""Web pages: only listed origins, only models and inference, on errors and streams too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from standin_server import (
    BASE,
    TOKEN,
    StandInApp,
    StandInEngine,
    attach,
    publish,
    standin_settings,
)
from starlette.responses import StreamingResponse

from adapters.catalog import Catalog
from server.assembly import Assembly
from server.http.cors import EXPOSED_HEADERS

ORIGIN = "https://app.example"
PAGE = {"origin": ORIGIN}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,x-stainless-lang,x-request-timeout",
}


class Site:
    def __init__(self, client: httpx2.AsyncClient, inner: StandInApp) -> None:
        self.client = client
        self.inner = inner


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    settings = standin_settings(tmp_path, cors_origins=(ORIGIN, "http://localhost:3000"))
    with Catalog.open(settings.store) as catalog:
        publish(catalog, "red")
        parts = Assembly(settings, catalog, CollectorRegistry())
        inner = StandInApp()
        attach(parts, StandInEngine(), inner)
        transport = httpx2.ASGITransport(app=parts.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://lorry") as client:
            yield Site(client, inner)
        parts.tracing.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize", "/v1/models/red"])
async def test_a_listed_origin_may_ask_before_it_calls(site, path):
    answer = await site.client.options(path, headers=PAGE | PREFLIGHT)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert "POST" in answer.headers["access-control-allow-methods"]
    allowed = answer.headers["access-control-allow-headers"].replace(" ", "").split(",")
    assert {"x-stainless-lang", "x-request-timeout"} <= set(allowed)
    assert "access-control-allow-credentials" not in answer.headers


async def test_answers_errors_and_streams_can_be_read(site):
    async def words():
        yield b"data: {}\n\n"

    body = {"model": "red", "messages": []}
    answers = {
        200: await site.client.post("/v1/chat/completions", json=body, headers=PAGE),
        404: await site.client.post("/v1/completions", json={"model": "no"}, headers=PAGE),
        405: await site.client.get("/v1/completions", headers=PAGE),
        413: await site.client.post("/v1/completions", content=b"x" * 60_000, headers=PAGE),
    }
    assert {status: each.status_code for status, each in answers.items()} == {
        status: status for status in answers
    }
    site.inner.answer = StreamingResponse(words(), media_type="text/event-stream")
    stream = await site.client.post("/v1/completions", json=body | {"stream": True}, headers=PAGE)
    assert stream.text == "data: {}\n\n"
    listed = await site.client.get("/v1/models", headers=PAGE)
    for answer in (*answers.values(), stream, listed):
        assert answer.headers.get_list("access-control-allow-origin") == [ORIGIN]
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"].split(", ")
        assert {"x-request-id", "x-lorry-adapter", "retry-after", "x-should-retry"} <= set(exposed)


async def test_other_origins_and_other_paths_get_no_permission(site):
    other = {"origin": "https://app.example.evil"}
    asked = [
        await site.client.options("/v1/completions", headers=other | PREFLIGHT),
        await site.client.post("/v1/completions", json={"model": BASE}, headers=other),
        await site.client.options("/admin/adapters", headers=PAGE | PREFLIGHT),
        await site.client.get(
            "/admin/adapters", headers=PAGE | {"authorization": f"Bearer {TOKEN}"}
        ),
        await site.client.options("/v1/load_lora_adapter", headers=PAGE | PREFLIGHT),
        await site.client.get("/metrics", headers=PAGE),
    ]
    assert [each.status_code for each in asked] == [405, 200, 401, 200, 401, 200]
    assert [each.headers.get("access-control-allow-origin") for each in asked] == [None] * 6


async def test_vllms_app_never_sees_the_origin_which_it_would_allow(site):
    await site.client.post("/v1/completions", json={"model": BASE}, headers=PAGE)
    assert b"origin" not in dict(site.inner.seen[0][0]["headers"])


async def test_every_header_of_ours_is_exposed(site):
    answer = await site.client.post("/v1/completions", json={"model": "red"}, headers=PAGE)
    ours = {name for name in answer.headers if name.startswith("x-") or name.startswith("trace")}
    assert len(ours) == 6
    assert ours <= set(EXPOSED_HEADERS)
