"""What holds for our own routes without a body: health, metrics, models, the schema."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import RequestTooLarge
from server.http.bodies import check_announced


class PlainRoutes:
    """Refuses a body that is announced too long, and answers HEAD as GET (uvicorn sends no body).

    The admin guard has checked the bodies of its routes.
    """

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self._app = app
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            if scope["method"] == "HEAD":
                scope = {**scope, "method": "GET"}
            if "actor" not in scope.get("state", {}):
                try:
                    check_announced(Headers(scope=scope), self._max_body_bytes)
                except RequestTooLarge as error:
                    await JSONResponse(error.envelope(), error.status)(scope, receive, send)
                    return
        await self._app(scope, receive, send)
