"""Brings the engine in line with the catalog: pins stay resident, removed versions go.

Pins and removals may come from another server or from the command line, so the catalog is polled,
in a thread. `CatalogWatch` reports whether it can be used at all.
"""

from __future__ import annotations

import asyncio
import logging
import time

from adapters.catalog import AdapterVersion, Catalog, VersionKey
from adapters.errors import AdapterError, CatalogUnreadable
from adapters.sums import part_labels
from server.lifecycle import Lifecycle
from server.residency.residency import Residency
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.catalog")
pins_logger = logging.getLogger("lorry.pins")
removals_logger = logging.getLogger("lorry.removals")

_WATCH_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
_PINS_SECONDS = 1.0
_RETRY_SECONDS = 30.0
_REMOVALS_SECONDS = 30.0


class CatalogWatch:
    """Notices that the catalog is gone, damaged or another one, and that it is right again.

    Then the server is unready (/readyz gives the reason), but still answers for the names that it
    has resolved before. A database that is away is not a reason: all servers that share it would be
    unready at once, although each can answer.
    """

    def __init__(self, catalog: Catalog, lifecycle: Lifecycle) -> None:
        self._catalog = catalog
        self._lifecycle = lifecycle
        self._check: asyncio.Task[None] | None = None
        self._hindrance: str | None = None
        self.problem: AdapterError | None = None

    async def run(self) -> None:
        """Watch the catalog until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_WATCH_SECONDS)

    async def look(self) -> None:
        # One check at a time: on a disk that hangs, each would hold a thread for good.
        if self._check is None:
            self._check = asyncio.create_task(asyncio.to_thread(self._catalog.check))
        done, _ = await asyncio.wait({self._check}, timeout=_ANSWER_SECONDS)
        if not done:
            said = f"the catalog has not answered for {_ANSWER_SECONDS:.0f} s"
            self._report(CatalogUnreadable(said, "check its disk, and who holds it locked"))
            return
        error, self._check = self._check.exception(), None
        if error is not None and not isinstance(error, AdapterError):
            error = CatalogUnreadable(f"the catalog can't be checked: {error!r}", "check its disk")
        self._report(error)

    def _report(self, problem: AdapterError | None) -> None:
        before = self.problem and self.problem.code
        self.problem = problem
        if problem is not None and problem.code != before:
            logger.error("%s; names that were resolved before are still answered", problem)
        elif problem is None and before is not None:
            logger.warning("the catalog can be used again")
        is_away = self._catalog.is_shared and isinstance(problem, CatalogUnreadable)
        self._impair(None if is_away else problem)

    def _impair(self, problem: AdapterError | None) -> None:
        if self._hindrance is not None and (problem is None or problem.code != self._hindrance):
            self._lifecycle.restore(self._hindrance)
            self._hindrance = None
        if problem is not None:
            self._hindrance = problem.code
            self._lifecycle.impair(problem.code, str(problem))


class Pins:
    """Keeps the pinned versions resident.

    One that can't be loaded is logged, tried again later, and delays no other.
    """

    def __init__(self, catalog: Catalog, residency: Residency) -> None:
        self._catalog = catalog
        self._residency = residency
        self._loads: dict[VersionKey, asyncio.Task[None]] = {}
        self._retry_at: dict[VersionKey, float] = {}
        self._too_many = False
        self._unreadable: str | None = None

    async def run(self) -> None:
        """Follow the catalog until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_PINS_SECONDS)

    async def settle(self) -> None:
        """Load what is pinned now, as far as it can be loaded."""
        await self.look()
        await asyncio.gather(*self._loads.values())

    async def look(self) -> None:
        """Take over the catalog's pins and start the loads that they need."""
        try:
            pinned = await asyncio.to_thread(self._catalog.pins)
        except AdapterError as error:
            if error.code != self._unreadable:  # not every second
                pins_logger.warning("the pins can't be read: %s", error)
            self._unreadable = error.code
            return
        self._unreadable = None
        kept = pinned[: self._residency.most_pins]
        if (len(kept) < len(pinned)) and not self._too_many:
            pins_logger.warning(
                "%d versions are pinned but only %d can be: the others are not kept resident",
                len(pinned),
                len(kept),
            )
        self._too_many = len(kept) < len(pinned)
        self._residency.pin(kept)
        for version in kept:
            self._begin(version)

    def _begin(self, version: AdapterVersion) -> None:
        key = version.key
        is_due = time.monotonic() >= self._retry_at.get(key, 0.0)
        if key not in self._loads and key not in self._residency.residents and is_due:
            task = asyncio.create_task(self._load(version))
            self._loads[key] = task
            task.add_done_callback(lambda _: self._loads.pop(key))

    async def _load(self, version: AdapterVersion) -> None:
        self._retry_at.pop(version.key, None)
        try:
            await self._residency.load(version)
        except Exception as error:  # noqa: BLE001 - one pin must not keep a server from starting
            self._retry_at[version.key] = time.monotonic() + _RETRY_SECONDS
            pins_logger.warning("the pinned %s is not resident: %s", version.label, error)


class Removals:
    """Unloads removed versions, and sums of them, and ends their metric series."""

    def __init__(self, catalog: Catalog, residency: Residency, metrics: Metrics) -> None:
        self._catalog = catalog
        self._residency = residency
        self._metrics = metrics

    async def run(self) -> None:
        """Follow the catalog until cancelled."""
        while True:
            await asyncio.sleep(_REMOVALS_SECONDS)
            await self.look()

    async def look(self) -> None:
        # Read before the catalog is: what is published in between is not mistaken for removed.
        counted = self._metrics.versions()
        held = [resident.load.version for resident in self._residency.residents.values()]
        if not counted and not held:
            return
        try:
            listed = await asyncio.to_thread(self._catalog.list_labels)
        except AdapterError as error:
            removals_logger.warning("the versions can't be listed: %s", error)
            return
        for label in counted:
            if not listed.issuperset(part_labels(label)):
                self._metrics.removed(label)
        for version in held:
            if not listed.issuperset(part_labels(version.label)):
                self._residency.begin_to_retire(version)
