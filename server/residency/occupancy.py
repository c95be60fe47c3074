"""Which adapters are where, as gauges: in host memory and in the engine's slots ("device").

What is in host memory is read off the residency whenever it is asked for. The slots are the
engine's own: it is asked every second, if calls ran meanwhile, as they fill only then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Protocol

from server.residency.loading import EngineGone
from server.residency.residency import Residency, Resident
from server.telemetry.ledger import Key
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.occupancy")

_LOOK_SECONDS = 1.0
_PER_TIER = ("adapter", "version", "tier")


class Slots(Protocol):
    """What is asked of the engine (server/engine/client.py)."""

    async def slot_changes(self, within: float) -> Mapping[str, list[str]] | None:
        """The engine-side names of the adapters in slots now ("device"), and of those that made
        room for others since the last time it was asked ("displaced"); None where the engine
        can't say. Raises EngineGone."""


class Occupancy:
    """`places` is how many adapters each tier has room for."""

    def __init__(
        self, residency: Residency, slots: Slots, metrics: Metrics, places: Mapping[str, int]
    ) -> None:
        self._residency = residency
        self._slots = slots
        self._metrics = metrics
        self._in_slots: frozenset[str] = frozenset()
        self._seen_traffic = -1
        metrics.derive(
            "adapter_places",
            "How many adapters there is room for.",
            ("tier",),
            lambda: [((tier,), number) for tier, number in places.items()],
        )
        metrics.derive("adapter_resident", "1 where a version is held.", _PER_TIER, self._tiers)
        metrics.derive(
            "adapter_info",
            "1 for each resident version.",
            ("adapter", "version", "digest", "rank", "base"),
            self._info,
        )
        metrics.derive(
            "adapter_nonfinite_values",
            "Values of a resident version that were not finite or far too large, so far.",
            ("adapter", "version"),
            self._nonfinite,
        )

    async def run(self) -> None:
        """Follow the slots until cancelled, or until the engine is gone."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            traffic = self._metrics.traffic
            if traffic == self._seen_traffic and not self._metrics.is_busy():
                continue
            self._seen_traffic = traffic
            try:
                if not await self.look():
                    return
            except EngineGone:
                logger.debug("the engine did not say what its slots hold", exc_info=True)

    async def look(self) -> bool:
        """Ask what the slots hold now; False if the engine can't say. Raises EngineGone."""
        changes = await self._slots.slot_changes(within=30.0)
        if changes is None:
            return False
        self._in_slots = frozenset(changes["device"])
        for name in changes["displaced"]:
            self._metrics.displaced(*_public(name))
        return True

    def _tiers(self) -> Iterator[tuple[tuple[str, str, str], float]]:
        for resident in self._loaded():
            key = _key(resident)
            yield (*key, "host"), 1
            if resident.load.lease.engine_name in self._in_slots:
                yield (*key, "device"), 1

    def _info(self) -> Iterator[tuple[tuple[str, ...], float]]:
        for resident in self._loaded():
            version = resident.load.version
            yield (*_key(resident), version.digest, str(version.rank), self._metrics.base), 1

    def _nonfinite(self) -> Iterator[tuple[Key, float]]:
        for resident in self._loaded():
            yield _key(resident), resident.load.lease.repaired_values

    def _loaded(self) -> list[Resident]:
        return [each for each in self._residency.residents.values() if each.is_loaded]


def _key(resident: Resident) -> Key:
    version = resident.load.version
    return version.name, str(version.version)


def _public(engine_name: str) -> Key:
    """Name and version of an engine-side name (server.residency.loading): NAME@VERSION#..."""
    name, _, version = engine_name.partition("#")[0].rpartition("@")
    return name, version
