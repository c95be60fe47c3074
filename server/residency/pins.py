"""Keeps the versions that the catalog pins resident, whoever pinned them and wherever.

The catalog is asked once a second, in a thread. A pinned version that can't be loaded is said so
once, tried again later, and keeps nobody else waiting.
"""

from __future__ import annotations

import asyncio
import logging
import time

from adapters.catalog import AdapterVersion, Catalog
from adapters.errors import AdapterError
from server.residency.residency import Key, Residency, key_of

logger = logging.getLogger("lorry.pins")

_LOOK_SECONDS = 1.0
_RETRY_SECONDS = 30.0


class Pins:
    def __init__(self, catalog: Catalog, residency: Residency) -> None:
        self._catalog = catalog
        self._residency = residency
        self._loads: dict[Key, asyncio.Task[None]] = {}
        self._retry_at: dict[Key, float] = {}
        self._too_many = False

    async def run(self) -> None:
        """Follow the catalog until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_SECONDS)

    async def settle(self) -> None:
        """Load what is pinned now, as far as it can be loaded."""
        await self.look()
        await asyncio.gather(*self._loads.values())

    async def look(self) -> None:
        """Take over the catalog's pins and begin what loads they need."""
        try:
            pinned = await asyncio.to_thread(self._catalog.pins)
        except AdapterError as error:
            logger.warning("the pins can't be read: %s", error)
            return
        kept = pinned[: self._residency.most_pins]
        if (len(kept) < len(pinned)) and not self._too_many:
            logger.warning(
                "%d versions are pinned and only %d places can be: the others are not kept",
                len(pinned),
                len(kept),
            )
        self._too_many = len(kept) < len(pinned)
        self._residency.pin(kept)
        for version in kept:
            self._begin(version)

    def _begin(self, version: AdapterVersion) -> None:
        key = key_of(version)
        is_due = time.monotonic() >= self._retry_at.get(key, 0.0)
        if key not in self._loads and key not in self._residency.residents and is_due:
            task = asyncio.create_task(self._load(version))
            self._loads[key] = task
            task.add_done_callback(lambda _: self._loads.pop(key))

    async def _load(self, version: AdapterVersion) -> None:
        key = key_of(version)
        self._retry_at.pop(key, None)
        try:
            await self._residency.load(version)
        except Exception as error:  # noqa: BLE001 - one pin must not keep a server from starting
            self._retry_at[key] = time.monotonic() + _RETRY_SECONDS
            logger.warning("the pinned %s is not resident: %s", version.label, error)
