"""Ends the series of versions that were removed from the catalog, by whomever and wherever."""

from __future__ import annotations

import asyncio
import logging

from adapters.catalog import Catalog
from adapters.errors import AdapterError
from server.metrics import Metrics

logger = logging.getLogger("lorry.removals")

_LOOK_SECONDS = 30.0


class Removals:
    def __init__(self, catalog: Catalog, metrics: Metrics) -> None:
        self._catalog = catalog
        self._metrics = metrics

    async def keep(self) -> None:
        """Follow the catalog until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        told = self._metrics.versions()  # before the question: what comes later is new
        if not told:
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
