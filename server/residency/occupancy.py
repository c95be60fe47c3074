"""Which adapters are where, as gauges: in host memory and in the engine's slots ("device").

Host memory is read from the residency at each scrape. Only the engine knows its slots: it is polled
once a second while calls run, as slots change only then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Mapping

from server.engine.interface import AdapterEngine, EngineGone, label_of
from server.residency.loading import Resident
from server.residency.residency import Residency
from server.telemetry.ledger import labels_of
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.occupancy")

_POLL_SECONDS = 1.0
_PER_TIER = ("adapter", "version", "tier")


class Occupancy:
    """`places` is how many adapters each tier ("device", "host") has room for."""

    def __init__(
        self,
        residency: Residency,
        engine: AdapterEngine,
        metrics: Metrics,
        places: Mapping[str, int],
    ) -> None:
        self._residency = residency
        self._engine = engine
        self._metrics = metrics
        self._in_slots: frozenset[str] = frozenset()
        self._seen_traffic = -1
        self._add_gauges(metrics, places)

    def _add_gauges(self, metrics: Metrics, places: Mapping[str, int]) -> None:
        metrics.derive(
            "adapter_places",
            "Adapters that a tier has room for.",
            ("tier",),
            lambda: [((tier,), number) for tier, number in places.items()],
        )
        metrics.derive(
            "adapter_resident", "1 for each tier that holds a version.", _PER_TIER, self._tiers
        )
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
        """Poll the slots until cancelled, or until the engine says that it can't report them."""
        while True:
            await asyncio.sleep(_POLL_SECONDS)
            traffic = self._metrics.traffic
            if traffic == self._seen_traffic and not self._metrics.is_busy():
                continue
            self._seen_traffic = traffic
            try:
                if not await self.look():
                    return
            except EngineGone:
                logger.debug("the engine did not report its slots", exc_info=True)

    async def look(self) -> bool:
        """Poll the engine once; returns False if it can't report slots. Raises EngineGone."""
        changes = await self._engine.slot_changes(within=30.0)
        if changes is None:
            return False
        self._in_slots = frozenset(changes["device"])
        for name in changes["displaced"]:
            self._metrics.displaced(label_of(name))
        return True

    def loaded(self) -> list[Resident]:
        """What is in host memory now."""
        return [each for each in self._residency.residents.values() if each.is_loaded]

    def is_in_slot(self, resident: Resident) -> bool:
        """Whether it was in a slot of the engine at the last poll."""
        return resident.load.lease.engine_name in self._in_slots

    def _tiers(self) -> Iterator[tuple[tuple[str, ...], float]]:
        for resident in self.loaded():
            labels = labels_of(resident.load.version.label)
            yield (*labels, "host"), 1
            if self.is_in_slot(resident):
                yield (*labels, "device"), 1

    def _info(self) -> Iterator[tuple[tuple[str, ...], float]]:
        for resident in self.loaded():
            version = resident.load.version
            labels = labels_of(version.label)
            yield (*labels, version.digest, str(version.rank), self._metrics.base), 1

    def _nonfinite(self) -> Iterator[tuple[tuple[str, ...], float]]:
        for resident in self.loaded():
            yield labels_of(resident.load.version.label), resident.load.lease.repaired_values
