"""The limits and the usage of a running server, over its admin API.

The classes have the methods of Limits and UsageBook (adapters/catalog), with the same errors or a
ServerError. The token identifies the actor; the `actor` of a call is not sent.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from urllib.parse import quote as percent_encode

import msgspec

from adapters.admin_http import AdminHttp
from adapters.catalog.limits import Rule, RuleId
from adapters.catalog.usage import Field
from adapters.keys import RateLimits

LIMITS = "/admin/limits"
USAGE = "/admin/usage"
MOST_ROWS = 10_000  # of a report over HTTP


class _Rules(msgspec.Struct):
    data: list[dict[str, Any]]


class _Usage(msgspec.Struct):
    data: list[dict[str, Any]]
    has_more: bool


class RemoteLimits:
    def __init__(self, server: AdminHttp) -> None:
        self._server = server

    def list(self) -> list[Rule]:
        return [_as_rule(each) for each in self._server.ask("GET", LIMITS, _Rules).data]

    def put(self, id_: RuleId, limits: RateLimits, *, actor: str) -> Rule:
        del actor
        body = msgspec.to_builtins(limits)
        return _as_rule(self._server.ask("PUT", _path(id_), dict[str, Any], json=body))

    def remove(self, id_: RuleId, *, actor: str) -> None:
        del actor
        self._server.ask("DELETE", _path(id_), dict[str, Any])


class RemoteUsage:
    def __init__(self, server: AdminHttp) -> None:
        self._server = server

    def report(
        self,
        by: Sequence[Field],
        since: datetime,
        until: datetime | None = None,
        key: str | None = None,
    ) -> list[dict[str, Any]]:
        """At most MOST_ROWS."""
        wanted = {
            "by": ",".join(by),
            "since": since.isoformat(),
            "until": until.isoformat() if until else None,
            "key": key,
            "limit": MOST_ROWS,
        }
        params = {name: value for name, value in wanted.items() if value is not None}
        return self._server.ask("GET", USAGE, _Usage, params=params).data


def _path(id_: RuleId) -> str:
    path = f"{LIMITS}/{percent_encode(id_.adapter, safe='')}"
    return f"{path}/{percent_encode(id_.key, safe='')}" if id_.key else path


def _as_rule(said: dict[str, Any]) -> Rule:
    id_ = RuleId(str(said.pop("key", None) or ""), str(said.pop("adapter", "")))
    return Rule(id_, msgspec.convert(said, RateLimits))
