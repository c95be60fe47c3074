"""Web pages of other origins: which of them may call the models. None, unless they are listed."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from server.paths import INFERENCE_PATHS, is_models

# Without this a page's script can't read them: telemetry/recorder.py, and when to try again.
EXPOSED_HEADERS = (
    "x-request-id",
    "x-lorry-adapter",
    "x-lorry-adapter-digest",
    "x-lorry-base",
    "x-lorry-replica",
    "traceresponse",
    "retry-after",
    "x-should-retry",
)


class Cors:
    """Starlette's CORSMiddleware on the paths of models and inference, for listed origins."""

    def __init__(self, app: ASGIApp, *, origins: Sequence[str]) -> None:
        self._app = app
        self._cors = CORSMiddleware(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),  # the SDKs send many of their own
            expose_headers=EXPOSED_HEADERS,
        )
        self._is_on = bool(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = self._is_on and scope["type"] == "http" and _is_open(scope["path"])
        if is_open and (
            scope["method"] != "OPTIONS"
            or self._cors.is_allowed_origin(Headers(scope=scope).get("origin", ""))
        ):
            await self._cors(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return path in INFERENCE_PATHS or is_models(path)
