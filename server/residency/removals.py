"""Follows what was removed from the catalog, by whomever and wherever: weights and series go."""

from __future__ import annotations

import asyncio
import logging

from adapters.catalog import Catalog
from adapters.errors import AdapterError
from server.residency.residency import Residency
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.removals")

_LOOK_SECONDS = 30.0


class Removals:
    def __init__(self, catalog: Catalog, residency: Residency, metrics: Metrics) -> None:
        self._catalog = catalog
        self._residency = residency
        self._metrics = metrics

    async def run(self) -> None:
        """Follow the catalog until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        # Before the question: what comes later is new.
        told = self._metrics.versions()
        held = [resident.load.version for resident in self._residency.residents.values()]
        if not told and not held:
            return
        try:
            listed = await asyncio.to_thread(self._catalog.list_labels)
        except AdapterError as error:
            logger.warning("the versions can't be listed: %s", error)
            return
        known = {(name, str(number)) for name, number in listed}
        for name, version in told:
            if (name, version) not in known:
                self._metrics.removed(name, version)
        for resident in held:
            if (resident.name, str(resident.version)) not in known:
                self._residency.begin_to_retire(resident)
