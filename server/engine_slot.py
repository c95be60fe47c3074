"""Where the engine's app and its residency are, once there is an engine."""

from __future__ import annotations

from starlette.types import ASGIApp

from server.errors import Unavailable
from server.residency import Residency


class EngineSlot:
    def __init__(self) -> None:
        self._content: tuple[ASGIApp, Residency] | None = None

    def put(self, app: ASGIApp, residency: Residency) -> None:
        self._content = (app, residency)

    def get(self) -> tuple[ASGIApp, Residency]:
        """Raises Unavailable while the server starts."""
        if self._content is None:
            raise Unavailable("The server is starting.", code="starting", retry_after=5)
        return self._content

    @property
    def residency(self) -> Residency | None:
        return self._content[1] if self._content is not None else None
