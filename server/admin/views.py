"""Adapters as the admin API's JSON: the catalog's facts, and what the engine holds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from adapters.catalog import AdapterVersion, Alias, Event
from adapters.catalog.evaluations import Evaluations
from server.residency.residency import Residency


class Snapshot:
    """What the engine holds, and the evaluations of the versions to describe; `residency` is None
    while the server starts."""

    def __init__(
        self,
        residency: Residency | None,
        held: Mapping[str, list[int]],
        judged: Evaluations,
    ) -> None:
        self._residency = residency
        self._judged = judged
        self._device = frozenset(held.get("device", ()))
        self._host = frozenset(held.get("host", ()))

    def describe(self, version: AdapterVersion) -> dict[str, Any]:
        residency = self._residency
        resident = residency.residents.get(version.key) if residency else None
        used = residency.used_at(version) if residency else None
        integer_id = resident.load.integer_id if resident else None
        judged = self._judged.get((version.name, version.version), ())
        return {
            "evaluations": [each.as_json() for each in judged],
            "residency": {
                "loading": resident is not None and not resident.loaded.done(),
                "host": integer_id in self._host,
                "device": integer_id in self._device,
            },
            "leases": resident.users if resident else 0,
            "last_used": datetime.fromtimestamp(used, UTC).isoformat() if used else None,
        }


def describe_version(version: AdapterVersion, now: Snapshot) -> dict[str, Any]:
    return {
        "name": version.name,
        "version": version.version,
        "label": version.label,
        "digest": version.digest,
        "rank": version.rank,
        "alpha": version.alpha,
        "size_bytes": version.size_bytes,
        "base": version.base,
        "base_digest": version.base_digest,
        "created_at": version.created_at.isoformat(),
        "aliases": list(version.aliases),
        "pinned": version.pinned,
        "weight": version.weight,
        "provenance": version.provenance,
        **now.describe(version),
    }


def describe_alias(alias: Alias) -> dict[str, Any]:
    targets = [{"version": each.version, "weight": each.weight} for each in alias.targets]
    return {"name": alias.name, "alias": alias.alias, "targets": targets}


def describe_adapters(
    versions: Iterable[AdapterVersion], aliases: Iterable[Alias], now: Snapshot
) -> list[dict[str, Any]]:
    """One entry for each name; both arguments are sorted by name."""
    by_name: dict[str, list[dict[str, Any]]] = {}
    for alias in aliases:
        by_name.setdefault(alias.name, []).append(describe_alias(alias))
    return [
        {
            "name": name,
            "weight": group[0].weight,
            "aliases": by_name.get(name, []),
            "versions": [describe_version(version, now) for version in group],
        }
        for name, each in groupby(versions, key=lambda version: version.name)
        if (group := list(each))
    ]


def encode_page(
    versions: Iterable[AdapterVersion], aliases: Iterable[Alias], has_more: bool, now: Snapshot
) -> bytes:
    """One page of adapters as OpenAI's lists: the next page is the one after `last_id`."""
    data = describe_adapters(versions, aliases, now)
    first, last = (data[0]["name"], data[-1]["name"]) if data else (None, None)
    page = {"object": "list", "first_id": first, "last_id": last, "has_more": has_more}
    # One by one: each encoding holds Python's lock, and the event loop with it.
    listed = ", ".join(map(json.dumps, data))
    return f'{json.dumps(page)[:-1]}, "data": [{listed}]}}'.encode()


def describe_event(event: Event) -> dict[str, Any]:
    return {
        "happened_at": event.happened_at.isoformat(),
        "actor": event.actor,
        "action": event.action,
        "name": event.name,
        "detail": event.detail,
    }
