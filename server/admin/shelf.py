"""The adapters as the admin API works on them: the catalog in threads, the engine beside it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from adapters.catalog import AdapterVersion, Alias, Catalog
from adapters.errors import no_such_adapter
from adapters.names import STABLE, Reference, parse_reference
from server.admin import views
from server.errors import AdapterInUse, PinsExceedCapacity, Unavailable
from server.lifecycle import Lifecycle


class Shelf:
    def __init__(self, catalog: Catalog, lifecycle: Lifecycle) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._pinning = asyncio.Lock()  # one at a time, or two could take the last place

    async def describe(self, name: str | None = None) -> list[dict[str, Any]]:
        """All adapters, or the one of that name; raises AdapterNotFound."""
        versions = await asyncio.to_thread(self._catalog.list_versions, name)
        if name is not None and not versions:
            raise no_such_adapter(name)
        aliases = await asyncio.to_thread(self._catalog.list_aliases, name)
        return views.describe_adapters(versions, aliases, await self._snapshot())

    async def describe_version(self, version: AdapterVersion) -> dict[str, Any]:
        """What was done to it is done, so an engine that does not answer now is no error."""
        now = await self._find(version.name, version.version)
        try:
            snapshot = await self._snapshot()
        except Unavailable:
            snapshot = views.Engine(self._lifecycle.residency, {})
        return views.describe_version(now, snapshot)

    async def history(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The last changes to an adapter, or to any; raises AdapterNotFound where it had none."""
        events = await asyncio.to_thread(self._catalog.list_events, name, limit)
        if name is not None and not events:
            raise no_such_adapter(name)
        return [views.describe_event(event) for event in events]

    async def point(self, name: str, alias: str, split: dict[int, int], actor: str) -> Alias:
        return await asyncio.to_thread(self._catalog.split, name, alias, split, actor=actor)

    async def roll_back(self, name: str, alias: str, to: int | None, actor: str) -> Alias:
        return await asyncio.to_thread(self._catalog.rollback, name, alias, actor=actor, to=to)

    async def drop_alias(self, name: str, alias: str, actor: str) -> None:
        await asyncio.to_thread(self._catalog.drop_alias, name, alias, actor=actor)

    async def pin(self, name: str, number: int, actor: str) -> AdapterVersion:
        """Load a version and keep it; raises PinsExceedCapacity, and as `load` does."""
        _, residency = self._lifecycle.engine()
        async with self._pinning:
            version = await self._find(name, number)
            others = await self._other_pins(version)
            if len(others) >= residency.most_pins:
                raise PinsExceedCapacity(
                    f"{len(others)} versions are pinned, and this server can keep at most "
                    f"{residency.most_pins}: unpin one, or start it with a larger --max-cpu-loras."
                )
            async with residency.lease(version, None):  # so that nobody takes its place meanwhile
                pinned = await asyncio.to_thread(self._catalog.pin, name, number, actor=actor)
                others = await self._other_pins(pinned)  # again: the load may have taken long
                residency.pin([pinned, *others][: residency.most_pins])
            return pinned

    async def _other_pins(self, than: AdapterVersion) -> list[AdapterVersion]:
        pins = await asyncio.to_thread(self._catalog.pins)
        return [each for each in pins if each.label != than.label]

    async def unpin(self, name: str, number: int, actor: str) -> AdapterVersion:
        return await asyncio.to_thread(self._catalog.unpin, name, number, actor=actor)

    def check_ready(self) -> None:
        """Raises Unavailable while there is no engine."""
        self._lifecycle.engine()

    async def load(self, reference: str) -> list[AdapterVersion]:
        """Make resident what a name means now: every side of a split."""
        _, residency = self._lifecycle.engine()
        wanted = parse_reference(reference)
        versions = await asyncio.to_thread(self._catalog.resolve_all, wanted)
        for version in versions:
            await residency.load(version)
        return versions

    async def unload(self, reference: str) -> list[AdapterVersion]:
        """Free what a name means now on device and host; the next call loads it again.

        Raises:
            AdapterInUse: it is pinned, or calls kept using it.
        """
        _, residency = self._lifecycle.engine()
        wanted = parse_reference(reference)
        versions = await asyncio.to_thread(self._catalog.resolve_all, wanted)
        for version in versions:
            if version.pinned:
                raise AdapterInUse(f"The adapter {version.label} is pinned: unpin it first.")
            await residency.unload(version)
        return versions

    async def remove(self, name: str, number: int, actor: str) -> bool:
        """Forget a version; whether the engine holds it no more."""
        version = await self._find(name, number)
        await asyncio.to_thread(self._catalog.remove, name, number, actor=actor)
        residency = self._lifecycle.residency
        return await residency.retire(version) if residency else True

    async def withdraw(self, name: str, actor: str) -> None:
        """What vLLM calls unload: the bare name means nothing any more, and its weights go unless
        they are pinned or called by number.

        Raises AdapterNotFound or AliasNotFound; the versions stay.
        """
        versions = await asyncio.to_thread(self._catalog.resolve_all, Reference(name))
        await self.drop_alias(name, STABLE, actor)
        if residency := self._lifecycle.residency:
            for version in versions:
                with suppress(AdapterInUse):  # by its number, or to the end of a call: it is LRU's
                    if not version.pinned:
                        await residency.unload(version)

    async def _find(self, name: str, number: int) -> AdapterVersion:
        return await asyncio.to_thread(self._catalog.resolve, Reference(name, number))

    async def _snapshot(self) -> views.Engine:
        residency = self._lifecycle.residency
        return views.Engine(residency, await residency.held() if residency else {})
