"""Guards every admin path: names the actor, bounds the body. Denies what has no caller.

Pure ASGI and outside the routes; http/key_guard.py has asked who calls.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Annotated

from fastapi import Depends, Query, Request
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import RequestError
from server.http.bodies import check_announced
from server.http.key_guard import caller_of
from server.lifecycle import Phase, refusal
from server.paths import is_admin

logger = logging.getLogger("lorry.admin")

UPLOAD_PATH = "/admin/adapters"
_MAX_JSON_BYTES = 64 * 1024


class AdminGuard:
    def __init__(self, app: ASGIApp, *, max_upload_bytes: int, body_seconds: float) -> None:
        self._app = app
        self._max_upload_bytes = max_upload_bytes
        self._body_seconds = body_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not is_admin(scope["path"]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_upload = scope["path"] == UPLOAD_PATH and is_form(headers)
        limit = self._max_upload_bytes if is_upload else _MAX_JSON_BYTES
        seconds = None if is_upload else self._body_seconds  # uploads.py has limits of its own
        try:
            scope["state"]["actor"] = caller_of(scope).actor
            check_announced(headers, limit)
        except RequestError as error:
            logger.warning("%s %.128s refused: %s", scope["method"], scope["path"], error.code)
            await JSONResponse(error.envelope(), error.status)(scope, receive, send)
            return
        try:
            await self._app(scope, _bounded(receive, limit, seconds), send)
        except asyncio.CancelledError:  # by the server, at the end of its drain
            logger.warning("%s %.128s was cut off", scope["method"], scope["path"])
            draining = refusal(Phase.DRAINING)
            with suppress(RuntimeError):  # the answer has begun
                answer = JSONResponse(draining.envelope(), draining.status, draining.headers())
                await answer(scope, receive, send)


def read_actor(request: Request) -> str:
    """The actor that the guard set; a request that did not pass the guard fails here."""
    return str(request.state.actor)


Actor = Annotated[str, Depends(read_actor)]
Limit = Annotated[int, Query(ge=1, le=1000)]


def is_form(headers: Headers) -> bool:
    return headers.get("content-type", "").lower().startswith("multipart/form-data")


def _bounded(receive: Receive, limit: int, seconds: float | None) -> Receive:
    """`receive` for a body of at most `limit` bytes that arrives within `seconds`.

    Raises HTTPException, not a RequestError: FastAPI turns all others into a 400 here.
    """
    size = 0
    deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds

    async def counted() -> Message:
        nonlocal size, deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError:
            raise HTTPException(
                408, f"The request body took longer than {seconds:g} seconds."
            ) from None
        size += len(message.get("body", b""))
        if size > limit:
            raise HTTPException(413, f"The request body is larger than {limit} bytes.")
        if not message.get("more_body", False):
            deadline = None  # what follows is the caller's hanging up
        return message

    return counted
