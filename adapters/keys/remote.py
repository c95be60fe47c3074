"""The keys of a running server, over its admin API, with the methods of adapters.catalog.keys.

The caller's own key, or the admin token, is the actor: the `actor` of a call is not sent.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from adapters.admin_http import AdminHttp
from adapters.catalog.history import Event
from adapters.keys.record import Key, check_key, check_name

MOST_EVENTS = 1_000  # the most that a server returns at once
_PATH = "/admin/keys"


class _Keys(msgspec.Struct):
    data: list[Key]


class _Events(msgspec.Struct):
    data: list[Event]


class _Made(msgspec.Struct):
    key: str


class RemoteKeys:
    """Raises the errors of Keys, or a ServerError for what only the server detects."""

    def __init__(self, server: AdminHttp) -> None:
        self._server = server

    def all(self) -> list[Key]:
        return self._server.ask("GET", _PATH, _Keys).data

    def find(self, name: str) -> Key:
        return self._server.ask("GET", _path(name), Key)

    def list_events(self, name: str | None = None, limit: int | None = None) -> list[Event]:
        """At most the last MOST_EVENTS, oldest first."""
        path = "/admin/history/keys" if name is None else _path(name, "history")
        return self._server.ask("GET", path, _Events, params={"limit": limit or MOST_EVENTS}).data

    def create(self, key: Key, *, actor: str) -> tuple[Key, str]:
        check_key(key)
        wanted = ("name", "scopes", "adapters", "base", "weight", "expires", "limits")
        plain = msgspec.to_builtins(key)
        return self._make(_PATH, {name: plain[name] for name in wanted})

    def rotate(self, name: str, *, overlap: timedelta, actor: str) -> tuple[Key, str]:
        return self._make(_path(name, "rotate"), {"overlap_seconds": overlap.total_seconds()})

    def block(self, name: str, *, actor: str) -> Key:
        return self._server.ask("POST", _path(name, "block"), Key)

    def unblock(self, name: str, *, actor: str) -> Key:
        return self._server.ask("POST", _path(name, "unblock"), Key)

    def revoke(self, name: str, *, actor: str) -> Key:
        return self._server.ask("POST", _path(name, "revoke"), Key)

    def _make(self, path: str, body: dict[str, Any]) -> tuple[Key, str]:
        plain = self._server.ask("POST", path, dict, json=body)
        return msgspec.convert(plain, Key), msgspec.convert(plain, _Made).key


def _path(name: str, *rest: str) -> str:
    return "/".join((_PATH, check_name(name), *rest))
