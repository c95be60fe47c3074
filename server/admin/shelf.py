"""What the admin API does with adapters: changes the catalog (in threads) and the residency."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from adapters.catalog import AdapterVersion, Alias, Catalog
from adapters.catalog.evaluations import Evaluation, Evaluations, Gate, Recorded
from adapters.errors import no_such_adapter
from adapters.names import STABLE, Reference, parse_reference
from server.admin import views
from server.errors import AdapterInUse, PinsExceedCapacity, Unavailable
from server.lifecycle import Lifecycle


class Shelf:
    def __init__(self, catalog: Catalog, lifecycle: Lifecycle) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._pinning = asyncio.Lock()  # or two pins could both take the last place

    async def list_page(self, after: str | None, limit: int) -> bytes:
        """Up to `limit` adapters by name, those after one name, as OpenAI's lists in JSON."""
        page = await asyncio.to_thread(self._catalog.list_page, after, limit)
        names = {version.name for version in page[0]}
        judged = await asyncio.to_thread(self._catalog.list_evaluations, *names)
        return await asyncio.to_thread(views.encode_page, *page, await self._snapshot(judged))

    async def describe(self, name: str) -> dict[str, Any]:
        """The adapter of that name; raises AdapterNotFound."""
        versions = await asyncio.to_thread(self._catalog.list_versions, name)
        if not versions:
            raise no_such_adapter(name)
        aliases = await asyncio.to_thread(self._catalog.list_aliases, name)
        judged = await asyncio.to_thread(self._catalog.list_evaluations, name)
        return views.describe_adapters(versions, aliases, await self._snapshot(judged))[0]

    async def describe_version(self, version: AdapterVersion) -> dict[str, Any]:
        """One version after a change, which stands even if the engine does not answer now."""
        now = await self._find(version.name, version.version)
        judged = await asyncio.to_thread(self._catalog.list_evaluations, version.name)
        try:
            snapshot = await self._snapshot(judged)
        except Unavailable:
            snapshot = views.Snapshot(self._lifecycle.residency, {}, judged)
        return views.describe_version(now, snapshot)

    async def history(self, name: str | None, limit: int) -> list[dict[str, Any]]:
        """The last changes to one adapter (AdapterNotFound if it has none), or to all."""
        events = await asyncio.to_thread(self._catalog.list_events, name, limit)
        if name is not None and not events:
            raise no_such_adapter(name)
        return [views.describe_event(event) for event in events]

    async def point(
        self,
        name: str,
        alias: str,
        split: dict[int, int],
        actor: str,
        gate: Gate | None = None,
    ) -> Alias:
        move = self._catalog.split
        return await asyncio.to_thread(move, name, alias, split, actor=actor, gate=gate)

    async def evaluate(
        self, name: str, number: int, evaluation: Evaluation, actor: str
    ) -> Recorded:
        record = self._catalog.evaluate
        return await asyncio.to_thread(record, name, number, evaluation, actor=actor)

    async def roll_back(self, name: str, alias: str, to: int | None, actor: str) -> Alias:
        return await asyncio.to_thread(self._catalog.rollback, name, alias, actor=actor, to=to)

    async def drop_alias(self, name: str, alias: str, actor: str) -> None:
        await asyncio.to_thread(self._catalog.drop_alias, name, alias, actor=actor)

    async def weigh(self, name: str, weight: float, actor: str) -> None:
        await asyncio.to_thread(self._catalog.weigh, name, weight, actor=actor)

    async def pin(self, name: str, number: int, actor: str) -> AdapterVersion:
        """Load a version and never evict it; raises PinsExceedCapacity, or as `load` does."""
        residency = self._lifecycle.engine().residency
        async with self._pinning:
            version = await self._find(name, number)
            others = await self._other_pins(version)
            if len(others) >= residency.most_pins:
                raise PinsExceedCapacity(
                    f"{len(others)} versions are pinned, and this server can keep at most "
                    f"{residency.most_pins}: unpin one, or start it with a larger --max-cpu-loras."
                )
            async with residency.lease(version, None):  # it can't be evicted before the pin
                pinned = await asyncio.to_thread(self._catalog.pin, name, number, actor=actor)
                others = await self._other_pins(pinned)  # may have changed during the load
                residency.pin([pinned, *others][: residency.most_pins])
            return pinned

    async def _other_pins(self, version: AdapterVersion) -> list[AdapterVersion]:
        pins = await asyncio.to_thread(self._catalog.pins)
        return [each for each in pins if each.label != version.label]

    async def unpin(self, name: str, number: int, actor: str) -> AdapterVersion:
        return await asyncio.to_thread(self._catalog.unpin, name, number, actor=actor)

    def check_ready(self) -> None:
        """Raises Unavailable while there is no engine."""
        self._lifecycle.engine()

    async def load(self, reference: str) -> list[AdapterVersion]:
        """Load what a name means now, every side of a split; raises as `Residency.load` does."""
        residency = self._lifecycle.engine().residency
        wanted = parse_reference(reference)
        versions = await asyncio.to_thread(self._catalog.resolve_all, wanted)
        for version in versions:
            await residency.load(version)
        return versions

    async def unload(self, reference: str) -> list[AdapterVersion]:
        """Unload what a name means now from device and host; the next call loads it again.

        Raises:
            AdapterInUse: it is pinned, or calls used it during all of the wait.
        """
        residency = self._lifecycle.engine().residency
        wanted = parse_reference(reference)
        versions = await asyncio.to_thread(self._catalog.resolve_all, wanted)
        for version in versions:
            if version.pinned:
                raise AdapterInUse(f"The adapter {version.label} is pinned: unpin it first.")
            await residency.unload(version)
        return versions

    async def remove(self, name: str, number: int, actor: str) -> bool:
        """Remove a version; returns whether it has left the engine already."""
        version = await self._find(name, number)
        await asyncio.to_thread(self._catalog.remove, name, number, actor=actor)
        residency = self._lifecycle.residency
        return await residency.retire(version) if residency else True

    async def withdraw(self, name: str, actor: str) -> None:
        """vLLM's unload: delete `stable`, and unload its versions unless pinned or in use.

        Raises AdapterNotFound or AliasNotFound; the versions stay in the catalog.
        """
        versions = await asyncio.to_thread(self._catalog.resolve_all, Reference(name))
        await self.drop_alias(name, STABLE, actor)
        if residency := self._lifecycle.residency:
            for version in versions:
                with suppress(AdapterInUse):  # it is evicted later, like any other
                    if not version.pinned:
                        await residency.unload(version)

    async def _find(self, name: str, number: int) -> AdapterVersion:
        return await asyncio.to_thread(self._catalog.resolve, Reference(name, number))

    async def _snapshot(self, judged: Evaluations) -> views.Snapshot:
        residency = self._lifecycle.residency
        held = await residency.held() if residency else {}
        return views.Snapshot(residency, held, judged)
