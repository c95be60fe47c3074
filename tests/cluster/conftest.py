"""A gateway in front of replicas that a test scripts, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from aiohttp import web

# Before any test imports Ray, which reads them then: a Ray of the tests' own is closed to others.
os.environ |= {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}

from cluster.arguments import GatewayArguments
from cluster.gateway.http import http_server, make_gateway, open_session
from cluster.gateway.picking import NoReplica, Target
from server.http.connections import Listener
from server.preflight import bind

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Replica:
    """A replica whose answers are `answer`; it keeps what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answer: Handler = self.echo
        self.asked: list[web.Request] = []
        self.was_asked = asyncio.Event()
        self.bodies: list[bytes] = []
        self.hung_up = asyncio.Event()
        self.metrics = '# HELP up Help.\n# TYPE up gauge\nup 1.0\nup{adapter="a"} 2.0\n'

    async def handle(self, request: web.Request) -> web.StreamResponse:
        if request.path == "/metrics":
            return web.Response(text=self.metrics)
        if request.path == "/readyz":
            state = {"status": "ready", "in_flight": 1, "waiting": 0, "capacity": 4}
            return web.json_response(state)
        self.asked.append(request)
        self.was_asked.set()
        try:
            return await self.answer(request)
        except asyncio.CancelledError:
            self.hung_up.set()
            raise

    async def echo(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.read())
        return web.json_response({"by": self.name}, headers={"x-lorry-replica": self.name})

    async def start(self) -> None:
        app = web.Application(client_max_size=1 << 30, handler_args={"handler_cancellation": True})
        app.router.add_route("*", "/{path:.*}", self.handle)
        self.runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self.runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self.runner.cleanup()


class FirstPicker:
    """Picks the first replica that is not avoided."""

    def __init__(self, replicas: list[Replica]) -> None:
        self.replicas = replicas
        self.in_flight: Counter[str] = Counter()
        self.models: list[str | None] = []
        self.suspects: list[str] = []

    @property
    def targets(self) -> list[Target]:
        return [Target(each.name, each.url) for each in self.replicas]

    @asynccontextmanager
    async def pick(
        self, model: str | None, avoided: Collection[str], within: float
    ) -> AsyncIterator[Target]:
        del within
        self.models.append(model)
        if not self.replicas:
            raise NoReplica
        targets = self.targets
        chosen = next((each for each in targets if each.name not in avoided), targets[0])
        self.in_flight[chosen.name] += 1
        try:
            yield chosen
        finally:
            self.in_flight[chosen.name] -= 1

    def suspect(self, name: str) -> None:
        self.suspects.append(name)


class House:
    def __init__(self, replicas: list[Replica], picker: FirstPicker, url: str) -> None:
        self.replicas = replicas
        self.picker = picker
        self.url = url
        self.http = httpx2.AsyncClient(base_url=url, timeout=20)

    async def ask(self, **given: Any) -> httpx2.Response:
        body = {"model": "orders", "prompt": "x"} | given
        return await self.http.post("/v1/completions", json=body)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    replicas = [Replica("left"), Replica("right")]
    for each in replicas:
        await each.start()
    picker = FirstPicker(replicas)
    arguments = GatewayArguments(max_body_bytes=100_000, max_bodies_bytes=150_000, wait_seconds=0.5)
    session = open_session()
    loop = asyncio.get_running_loop()
    server = http_server(make_gateway(picker, session, arguments), arguments)
    listener = Listener(fileno=bind("127.0.0.1", 0).detach())
    port = listener.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    house = House(replicas, picker, f"http://127.0.0.1:{port}")
    yield house
    await house.http.aclose()
    server.should_exit = True
    await serving
    await session.close()
    for each in replicas:
        with contextlib.suppress(RuntimeError):
            await each.stop()
    loop.set_exception_handler(None)
