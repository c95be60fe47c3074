"""A proxy that writes down what a client asks: the first part of the path names the case.

A client whose base URL is `http://127.0.0.1:PORT/CASE/v1` sends `/CASE/v1/chat/completions`; the
server gets `/v1/chat/completions`.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

# What depends on the connection, or would tell a secret.
_LEFT_OUT = frozenset(
    {"host", "connection", "content-length", "accept-encoding", "authorization", "x-api-key"}
)
_HOP = frozenset({"connection", "content-length", "transfer-encoding", "date", "server"})
_SECRETS = frozenset({"authorization", "x-api-key"})


class Proxy:
    """An ASGI app in front of the server at `url`; `requests` has each case's, in their order."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.requests: dict[str, list[dict[str, Any]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        body = await request.body()
        _, case, rest = scope["path"].split("/", 2)
        path = f"/{rest}" + (f"?{request.url.query}" if request.url.query else "")
        # A client of its own for each: the event loop may end with the case.
        async with httpx2.AsyncClient(timeout=300) as client:
            asked = client.build_request(
                request.method,
                self._url + path,
                headers=[(k, v) for k, v in request.headers.items() if k not in _HOP | {"host"}],
                content=body,
            )
            answer = await client.send(asked, stream=True)
            self.requests.setdefault(case, []).append(
                {
                    "method": request.method,
                    "path": path,
                    "headers": _shown(request),
                    "body": json.loads(body) if body else None,
                    "status": answer.status_code,
                }
            )
            headers = {k: v for k, v in answer.headers.items() if k not in _HOP}
            passed = StreamingResponse(answer.aiter_raw(), answer.status_code, headers)
            await passed(scope, receive, send)


def _shown(request: Request) -> dict[str, str]:
    headers = {k: v for k, v in request.headers.items() if k not in _LEFT_OUT}
    for name in _SECRETS & set(request.headers):
        headers[name] = "Bearer none" if name == "authorization" else "none"
    return headers
