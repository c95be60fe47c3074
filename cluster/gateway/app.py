"""The gateway's HTTP side: which path is answered here, and which is passed on to a replica.

Names, keys, limits and errors are the replicas' business; the gateway reads `model` off the body,
to place the call, and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
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
from server.errors import RequestError, Unavailable, UnknownPath
from server.http.bodies import Bodies
from server.paths import INFERENCE_PATHS
from server.telemetry.logs import RateLimit

logger = logging.getLogger("lorry.gateway")
logger.filters[:] = [RateLimit(lines=10, by_place=False)]  # a lost replica concerns every scrape

STATUS_PATH = "/cluster"
_ASK_SECONDS = 3.0  # for the state or the metrics of one replica
_SMALL_BODY_BYTES = 64 * 1024  # is held in any case: the number of calls is bounded
_TEXT = "text/plain; version=0.0.4; charset=utf-8"
_NO_PATH = UnknownPath("There is no such path.")


class Gateway:
    """A pure ASGI app. `session` asks the replicas; `bodies` bounds what callers send.

    `max_held`: bytes of the bodies of calls that run, all together.
    """

    def __init__(
        self,
        picker: Picker,
        session: aiohttp.ClientSession,
        bodies: Bodies,
        *,
        max_held: int,
        wait_seconds: float,
    ) -> None:
        self._max_held = max_held
        self._held = 0
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
                with self._holding(len(body)):
                    call = Call.of(scope, send, body)
                    await unless_disconnected(receive, self._calls.answer(call))
            else:
                # A change is sent once, and its body, which may be an upload, is never held.
                await self._calls.answer(Call.of(scope, send, None, receive))
        except (Disconnected, Cut):
            pass  # the connection is closed, before the end of the answer
        except RequestError as error:
            response = JSONResponse(error.envelope(), error.status, error.headers())
            await response(scope, receive, send)

    @contextmanager
    def _holding(self, size: int) -> Iterator[None]:
        """Count a body for as long as its call runs; raises Unavailable for one too many."""
        if size > _SMALL_BODY_BYTES and self._held + size > self._max_held:
            raise Unavailable(
                f"The bodies of the calls that run are {self._max_held} bytes together. Try again "
                "later.",
                code="too_many_bodies",
                retry_after=1,
            )
        self._held += size
        try:
            yield
        finally:
            self._held -= size

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
        if refused := next((p for p in pages.values() if p.status in (401, 403)), None):
            return refused.as_response()
        texts = {name: page.body for name, page in pages.items() if page.status == 200}
        text = await asyncio.to_thread(merge, texts)
        return Response(self._metrics.text() + text, headers={"content-type": _TEXT})

    async def _status(self, scope: Scope) -> Response:
        """What `lorry cluster status` prints; for those who may read the metrics."""
        targets = self._picker.targets
        if targets and (refused := await self._refusal(targets, scope)):
            return refused
        pages = await self._gather(targets, "/readyz", scope)
        replicas = []
        for target in targets:
            state = pages[target.name].as_object() if target.name in pages else {}
            own = {"name": target.name, "url": target.url, "status": "unreachable"}
            replicas.append(own | state | {"from_here": self._picker.in_flight.get(target.name, 0)})
        return JSONResponse({"replicas": replicas})

    async def _refusal(self, targets: Sequence[Target], scope: Scope) -> Response | None:
        """None if a server lets the caller read its metrics."""
        for target in targets:
            for page in (await self._gather([target], "/metrics", scope)).values():
                if page.status == 200:
                    return None
                if page.status in (401, 403):
                    return page.as_response()
        error = Unavailable("No server says whether you may.", code="no_replica", retry_after=5)
        return JSONResponse(error.envelope(), error.status, error.headers())

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
