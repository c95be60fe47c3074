"""The routes of limits and of usage: /admin/limits, /admin/usage, and a key's own /v1/usage."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request

from adapters.catalog import Catalog
from adapters.catalog.limits import RuleId
from adapters.catalog.usage import parse_fields, parse_moment
from server.admin.bodies import AdapterLimits, Name
from server.admin.guard import Actor, read_actor
from server.http.key_guard import caller_of

By = Annotated[str, Query(max_length=200, description="Fields to sum by, with commas between.")]
When = Annotated[str, Query(max_length=40, description="24h, 7d, 2026-11-30, or a moment.")]
Rows = Annotated[int, Query(ge=1, le=10_000)]


_AT_ONCE = 2  # reports: who asks again and again must not take all threads


def create_accounts_router(catalog: Catalog) -> APIRouter:
    """For who holds the admin API."""
    router = APIRouter(prefix="/admin", dependencies=[Depends(read_actor)], tags=["limits"])
    limits, change = catalog.limits, asyncio.to_thread

    @router.get("/limits")
    async def list_limits() -> dict[str, Any]:
        """The limits of adapters, and of keys on adapters."""
        rules = await asyncio.to_thread(limits.list)
        return {"object": "list", "data": [rule.as_json() for rule in rules]}

    @router.put("/limits/{adapter}")
    async def set_limits(adapter: Name, body: AdapterLimits, actor: Actor) -> dict[str, Any]:
        """Set an adapter's limits, in place of those it had; `base` is the base."""
        id_ = RuleId("", adapter)
        return (await change(limits.put, id_, body.limits(), actor=actor)).as_json()

    @router.put("/limits/{adapter}/{key}")
    async def set_limits_of_key(
        adapter: Name, key: Name, body: AdapterLimits, actor: Actor
    ) -> dict[str, Any]:
        """Set the limits of a key on an adapter."""
        id_ = RuleId(key, adapter)
        return (await change(limits.put, id_, body.limits(), actor=actor)).as_json()

    @router.delete("/limits/{adapter}")
    async def remove_limits(adapter: Name, actor: Actor) -> dict[str, Any]:
        """Remove an adapter's limits."""
        await change(limits.remove, RuleId("", adapter), actor=actor)
        return {"adapter": adapter, "key": None, "removed": True}

    @router.delete("/limits/{adapter}/{key}")
    async def remove_limits_of_key(adapter: Name, key: Name, actor: Actor) -> dict[str, Any]:
        """Remove the limits of a key on an adapter."""
        await change(limits.remove, RuleId(key, adapter), actor=actor)
        return {"adapter": adapter, "key": key, "removed": True}

    @router.get("/usage")
    async def show_usage(
        by: By = "key,adapter",
        since: When = "7d",
        until: When | None = None,
        key: Name | None = None,
        limit: Rows = 1000,
    ) -> dict[str, Any]:
        """What keys have used of adapters and versions, in whole hours of UTC."""
        return await _report(catalog, by, since, until, key, limit)

    return router


def create_usage_router(catalog: Catalog) -> APIRouter:
    """For every caller, of what is its own."""
    router = APIRouter(tags=["limits"])
    turns = asyncio.Semaphore(_AT_ONCE)

    @router.get("/v1/usage")
    async def show_own_usage(
        request: Request,
        by: By = "adapter",
        since: When = "7d",
        until: When | None = None,
        limit: Rows = 1000,
    ) -> dict[str, Any]:
        """What the key that asks has used; without keys, what callers without one have."""
        own = caller_of(request.scope).key
        async with turns:
            return await _report(catalog, by, since, until, own.name if own else "", limit)

    return router


async def _report(
    catalog: Catalog, by: str, since: str, until: str | None, key: str | None, limit: int
) -> dict[str, Any]:
    fields, now = parse_fields(by), datetime.now(UTC)
    begin = parse_moment(since, now)
    end = None if until is None else parse_moment(until, now)
    rows = await asyncio.to_thread(catalog.usage.report, fields, begin, end, key)
    return {
        "object": "list",
        "by": fields,
        "since": begin.isoformat(),
        "data": rows[:limit],
        "has_more": len(rows) > limit,
    }
