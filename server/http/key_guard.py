"""Outside of all routes: asks who calls before anything else of a request is looked at.

Pure ASGI, so that the body of a request without a valid key is never read.
"""

from __future__ import annotations

import logging

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import RequestError
from server.gate.keys import Authenticator, Caller
from server.paths import INFERENCE_PATHS

logger = logging.getLogger("lorry.keys")


class KeyGuard:
    """Puts the `caller` into the request's state; else a `refusal`, which the middleware of
    inference answers and records, or an answer of its own."""

    def __init__(self, app: ASGIApp, *, authenticator: Authenticator) -> None:
        self._app = app
        self._authenticator = authenticator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            state = scope.setdefault("state", {})
            path: str = scope["path"]
            try:
                state["caller"] = await self._authenticator.identify(Headers(scope=scope), path)
            except RequestError as error:
                if path not in INFERENCE_PATHS:
                    await _answer(error, scope, receive, send)
                    return
                state["refusal"] = error
        await self._app(scope, receive, send)


def caller_of(scope: Scope) -> Caller:
    """Raises the guard's refusal; a request that did not pass the guard fails here."""
    state = scope["state"]
    if (refusal := state.get("refusal")) is not None:
        raise refusal
    caller: Caller = state["caller"]
    return caller


async def _answer(error: RequestError, scope: Scope, receive: Receive, send: Send) -> None:
    logger.warning("%s %.128s refused: %s", scope["method"], scope["path"], error.code)
    await JSONResponse(error.envelope(), error.status, error.headers())(scope, receive, send)
