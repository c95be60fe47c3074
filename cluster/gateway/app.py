"""The gateway's HTTP side: which path is answered here, and which is passed on to a replica.

Names, keys, limits and errors are the replicas' business; the gateway reads `model` off the body,
to place the call, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec
from starlette.datastructures import Headers
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from cluster.gateway.calls import Call, Calls, Cut
from cluster.gateway.metrics import GatewayMetrics, merge
from cluster.gateway.picking import Picker, Target
from server.disconnects import Disconnected, unless_disconnected
from server.errors import RequestError, UnknownPath
from server.http.bodies import Bodies
from server.paths import INFERENCE_PATHS
from server.telemetry.logs import RateLimit

logger = logging.getLogger("lorry.gateway")
logger.filters[:] = [RateLimit(lines=10, by_place=False)]  # a lost replica concerns every scrape

STATUS_PATH = "/cluster"
_ASK_SECONDS = 10.0  # for the state or the metrics of one replica
_TEXT = "text/plain; version=0.0.4; charset=utf-8"


_NO_PATH = UnknownPath("There is no such path.")


class _Model(msgspec.Struct):
    model: str | None = None


class Gateway:
    """A pure ASGI app. `session` asks the replicas; `bodies` bounds what callers send."""

    def __init__(
        self, picker: Picker, session: aiohttp.ClientSession, bodies: Bodies, wait_seconds: float
    ) -> None:
        self._picker = picker
        self._session = session
        self._bodies = bodies
        self._metrics = GatewayMetrics(picker)
        self._calls = Calls(picker, session, self._metrics, wait_seconds)
        self._own: dict[str, Callable[[Scope], Awaitable[Response]]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/health": self._readyz,
            "/-/healthz": self._readyz,  # what KubeRay asks a node
            "/metrics": self._scrape,
            STATUS_PATH: self._status,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path, method = scope["path"], scope["method"]
        if not (scope.get("raw_path") or path.encode()).startswith(b"/"):
            # `OPTIONS *`. Behind a replica's address it would be a part of that.
            await JSONResponse(_NO_PATH.envelope(), _NO_PATH.status)(scope, receive, send)
            return
        if path in self._own and method in ("GET", "HEAD"):
            await (await self._own[path](scope))(scope, receive, send)
        else:
            can_repeat = path in INFERENCE_PATHS or method in ("GET", "HEAD", "OPTIONS")
            await self._pass_on(scope, receive, send, can_repeat)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, can_repeat: bool) -> None:
        try:
            if can_repeat:
                body = await self._bodies.read(Headers(scope=scope), receive)
                call = Call(scope, send, model_of(body), body)
                await unless_disconnected(receive, self._calls.answer(call))
            else:
                # A change is sent once, and its body, which may be an upload, is never held.
                await self._calls.answer(Call(scope, send, None, None, receive))
        except (Disconnected, Cut):
            pass  # the connection is closed, before the end of the answer
        except RequestError as error:
            response = JSONResponse(error.envelope(), error.status, error.headers())
            await response(scope, receive, send)

    async def _livez(self, scope: Scope) -> Response:
        del scope
        return JSONResponse({"status": "ready"})

    async def _readyz(self, scope: Scope) -> Response:
        """200 while a replica takes calls."""
        del scope
        targets = self._picker.targets
        if targets:
            return JSONResponse({"status": "ready", "replicas": len(targets)})
        body = {"status": "starting", "reason": "no_replica", "replicas": 0}
        return JSONResponse(body, 503, {"retry-after": "5"})

    async def _scrape(self, scope: Scope) -> Response:
        """Every replica's series with the label `replica`, and the gateway's own."""
        targets = self._picker.targets
        pages = await self._gather(targets, "/metrics", scope)
        if refused := _refusal(pages):
            return refused
        texts = {name: page.body for name, page in pages.items() if page.status == 200}
        text = await asyncio.to_thread(merge, texts)
        return Response(self._metrics.text() + text, headers={"content-type": _TEXT})

    async def _status(self, scope: Scope) -> Response:
        """What `lorry cluster status` prints; for those who may read the metrics."""
        targets = self._picker.targets
        if refused := _refusal(await self._gather(targets[:1], "/metrics", scope)):
            return refused
        pages = await self._gather(targets, "/readyz", scope)
        replicas = []
        for target in targets:
            state = pages[target.name].as_object() if target.name in pages else {}
            own = {"name": target.name, "url": target.url, "status": "unreachable"}
            replicas.append(own | state | {"from_here": self._picker.in_flight.get(target.name, 0)})
        return JSONResponse({"replicas": replicas})

    async def _gather(self, targets: Sequence[Target], path: str, scope: Scope) -> dict[str, _Page]:
        """The answers of those that answer, by the replica's name."""
        headers = {
            name: value
            for name in ("authorization", "x-api-key")
            if (value := Headers(scope=scope).get(name))
        }

        async def ask(target: Target) -> _Page:
            async with asyncio.timeout(_ASK_SECONDS):
                async with self._session.get(target.url + path, headers=headers) as answer:
                    return _Page(answer.status, dict(answer.headers), await answer.read())

        found = await asyncio.gather(*map(ask, targets), return_exceptions=True)
        for target, page in zip(targets, found, strict=True):
            if isinstance(page, BaseException):
                logger.warning("%s does not answer %s: %r", target.name, path, page)
        return {
            target.name: page
            for target, page in zip(targets, found, strict=True)
            if isinstance(page, _Page)
        }


class _Page(msgspec.Struct):
    status: int
    headers: dict[str, str]
    body: bytes

    def as_object(self) -> dict[str, Any]:
        """The JSON object of its body; empty if there is none."""
        try:
            return msgspec.json.decode(self.body, type=dict[str, Any])
        except msgspec.DecodeError:
            return {}

    def as_response(self) -> Response:
        kept = ("content-type", "www-authenticate")
        headers = {k.lower(): v for k, v in self.headers.items() if k.lower() in kept}
        return Response(self.body, self.status, headers)


def _refusal(pages: Mapping[str, _Page]) -> Response | None:
    """The answer of a replica that does not know the caller, or does not let it see this."""
    return next((p.as_response() for p in pages.values() if p.status in (401, 403)), None)


def model_of(body: bytes) -> str | None:
    """The `model` of a call; None where a replica will refuse the body."""
    try:
        return msgspec.json.decode(body, type=_Model).model
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
