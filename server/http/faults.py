"""The last resort of every path: an exception becomes a clean 500, and the log has its cause."""

from __future__ import annotations

import json
import logging

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import EXITS, envelope

logger = logging.getLogger("lorry.http")

_BODY = envelope("The server failed to answer this call.", "server_error", "internal_error", None)


class FaultMiddleware:
    """The outermost: Starlette's own answers in plain text, and lets a panic of Rust code pass."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_begun = False

        async def watched(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except EXITS:
            raise
        except BaseException as error:
            place = (scope.get("method", scope["type"]), scope.get("path", "")[:128])
            logger.error("%s %s failed", *place, exc_info=error, extra={"always": True})
            if not has_begun and scope["type"] == "http":
                await _answer(send)


async def _answer(send: Send) -> None:
    body = json.dumps(_BODY).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
