"""Two servers on one PostgreSQL catalog and one store, as behind a balancer (docs/scaling.md)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from marked_server import BASE_NAME, write_adapter
from postgres_process import Postgres, Unavailable
from prometheus_client import CollectorRegistry
from server_process import ROOT
from standin_server import TOKEN, StandInApp, StandInEngine, standin_settings

from adapters.catalog import Catalog
from adapters.checkpoint.base import read_base
from server.assembly import Assembly

BASE = ROOT / "examples" / "shop" / "base"
SEEN_SECONDS = 10.0  # a second as a rule (docs/scaling.md), and more on a busy machine
PINNED_SECONDS = 12.0


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    try:
        postgres = Postgres()
    except Unavailable as error:
        pytest.skip(str(error))
    yield postgres
    postgres.remove()


class Server:
    """One server's HTTP side, and the engine behind it."""

    def __init__(self, http: httpx2.AsyncClient, engine: StandInEngine) -> None:
        self.http = http
        self.engine = engine

    async def admin(self, method: str, path: str, **given) -> dict:
        answer = await self.http.request(method, f"/admin/adapters{path}", **given)
        assert answer.is_success, answer.text
        return answer.json()

    async def publish(self, folder: Path, name: str) -> dict:
        return await self.admin("POST", "", data={"name": name}, files=read_files(folder))

    async def answered_by(self, model: str = "orders", user: str = "ann") -> str:
        body = {"model": model, "prompt": "x", "user": user}
        answer = await self.http.post("/v1/completions", json=body)
        return answer.headers.get("x-lorry-adapter") or answer.json()["error"]["code"]

    async def sides(self) -> list[str]:
        return [await self.answered_by(user=f"user-{number}") for number in range(20)]

    def holds(self) -> set[str]:
        return {name.partition("#")[0] for name in self.engine.loaded.values()}


def read_files(folder: Path) -> list[tuple[str, tuple[str, bytes]]]:
    return [("file", (path.name, path.read_bytes())) for path in sorted(folder.iterdir())]


@asynccontextmanager
async def serve(folder: Path, url: str) -> AsyncIterator[Server]:
    settings = standin_settings(
        folder, model=BASE, served_model_name=BASE_NAME, max_cpu_loras=4, max_upload_bytes=10**8
    )
    engine = StandInEngine()
    with Catalog.open(settings.store, url) as catalog:
        parts = Assembly(settings, catalog, CollectorRegistry())
        await parts.connect(engine, StandInApp(engine), read_base(BASE))
        transport = httpx2.ASGITransport(app=parts.app)
        headers = {"authorization": f"Bearer {TOKEN}"}
        async with httpx2.AsyncClient(
            transport=transport, base_url="http://lorry", headers=headers
        ) as http:
            yield Server(http, engine)
        parts.disconnect()
        parts.tracing.close()


async def seen(what, expected, within: float = SEEN_SECONDS) -> None:
    """Fails unless `what` gives `expected` within so many seconds."""
    deadline = time.monotonic() + within
    while (found := await what()) != expected:
        assert time.monotonic() < deadline, f"{found}, not {expected}, after {within} s"
        await asyncio.sleep(0.02)


async def test_what_one_server_is_told_the_other_answers_by(postgres, tmp_path):
    folders = [write_adapter(tmp_path / str(seed), seed) for seed in range(2)]
    async with serve(tmp_path, postgres.url) as first, serve(tmp_path, postgres.url) as second:
        assert await second.answered_by() == "model_not_found"
        await first.publish(folders[0], "orders")
        await seen(second.answered_by, "orders@1")
        await first.publish(folders[1], "orders")
        await seen(second.answered_by, "orders@2")

        await second.admin("POST", "/orders/aliases/stable/rollback")
        assert await second.answered_by() == "orders@1"
        await seen(first.answered_by, "orders@1")

        await first.admin("PUT", "/orders/aliases/stable", json={"split": {"1": 50, "2": 50}})
        sides = await first.sides()
        assert set(sides) == {"orders@1", "orders@2"}
        await seen(second.sides, sides)

        await first.admin("PUT", "/orders/aliases/stable", json={"version": 2})
        await first.admin("DELETE", "/orders/versions/1")
        await seen(lambda: second.answered_by("orders@1"), "model_not_found")


async def test_pins_are_everywhere_and_loads_where_they_were_asked_for(postgres, tmp_path):
    postgres.clear()
    async with serve(tmp_path, postgres.url) as first, serve(tmp_path, postgres.url) as second:
        for seed, name in enumerate(("pinned", "loaded")):
            await first.publish(write_adapter(tmp_path / name, seed), name)
        await first.admin("POST", "/loaded/load")
        await first.admin("POST", "/pinned/versions/1/pin")
        assert first.holds() == {"pinned@1", "loaded@1"}

        async def held_by_the_other() -> set[str]:
            return second.holds()

        await seen(held_by_the_other, {"pinned@1"}, PINNED_SECONDS)


async def test_keys_are_one_on_all_servers_and_outlast_their_database(postgres, tmp_path):
    postgres.clear()
    async with serve(tmp_path, postgres.url) as first, serve(tmp_path, postgres.url) as second:
        await first.publish(write_adapter(tmp_path / "one", 1), "orders")
        await seen(second.answered_by, "orders@1")

        async def asked(server: Server, secret: str) -> int:
            headers = {"authorization": f"Bearer {secret}"}
            body = {"model": "orders", "prompt": "x"}
            answer = await server.http.post("/v1/completions", json=body, headers=headers)
            return answer.status_code

        async def make(name: str) -> str:
            body = {"name": name, "adapters": ["orders"]}
            answer = await first.http.post("/admin/keys", json=body)
            return str(answer.json()["key"])

        assert await asked(second, "none") == 200
        key, other = await make("team-a"), await make("team-b")
        assert await asked(first, key) == 200
        await seen(lambda: asked(second, key), 200)
        await seen(lambda: asked(second, "none"), 401)
        await second.http.post("/admin/keys/team-b/revoke")
        assert await asked(second, other) == 401
        await seen(lambda: asked(first, other), 401)

        assert await asked(first, key) == await asked(second, key) == 200
        postgres.stop()
        try:
            assert await asked(first, key) == await asked(second, key) == 200
            await seen(lambda: asked(first, "new"), 503)
            await seen(lambda: asked(first, other), 401)
        finally:
            postgres.start()
        await seen(lambda: asked(first, "new"), 401)
