"""Loads one version into the engine, and explains a failed load to its callers.

A failed load burns its integer id and is removed from the engine, where vLLM may have kept a part
of it. Knows the engine only as `AdapterEngine`, and nothing about the calls that wait for the load.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.catalog import AdapterVersion
from adapters.errors import AdapterError, StoreError
from server.call import Lease
from server.engine.interface import (
    AdapterEngine,
    EngineGone,
    EngineRefusal,
    EngineSlow,
    engine_name,
)
from server.errors import AdapterUnusable, RequestError, Unavailable
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.residency")

# Half of the server's threads: a store that does not answer may hold all that are given to loads.
_CHECKED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Load:
    """The identity of one load, in the engine and here."""

    version: AdapterVersion
    integer_id: int
    lease: Lease


@dataclass(slots=True)
class Resident:
    """A place in the engine, taken by an adapter that is loaded or being loaded."""

    load: Load
    loaded: asyncio.Task[None]
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def is_loaded(self) -> bool:
        return self.loaded.done() and not self.loaded.cancelled() and not self.loaded.exception()


class Loader:
    """`check` raises an AdapterError for a version whose files can't be served, and makes those of
    a sum; `path_of` returns their folder."""

    def __init__(
        self,
        engine: AdapterEngine,
        *,
        path_of: Callable[[AdapterVersion], Path],
        check: Callable[[AdapterVersion], object],
        metrics: Metrics,
        within: float,
    ) -> None:
        self._engine = engine
        self._path_of = path_of
        self._check = check
        self._metrics = metrics
        self._within = within
        self._ids = itertools.count(1)
        self._turns = asyncio.Semaphore(_CHECKED_AT_ONCE)

    def prepare(self, version: AdapterVersion) -> Load:
        """A fresh integer id and an engine-side name of its own, never used again."""
        integer_id = next(self._ids)
        name = engine_name(version, integer_id)
        request = self._engine.make_request(name, integer_id, self._path_of(version))
        return Load(version, integer_id, Lease(name, request))

    async def run(self, load: Load, leaving: Load | None) -> None:
        """Load it, in the place of `leaving` if that is given.

        Raises:
            EngineRefusal: the engine refused the adapter.
            EngineGone: the engine died or did not answer in time.
            AdapterError: its files are missing or damaged, or do not fit the base.
        """
        started = time.monotonic()
        ids = [leaving.integer_id] if leaving is not None else []
        try:
            # Against the base that is served now, which may not be the one it was published for. In
            # a thread, as it reads every byte.
            async with self._turns:
                await asyncio.to_thread(self._check, load.version)
            if load.lease.lost:  # what is loaded now would be another engine's
                raise EngineGone("the engine ended")
            await self._engine.add_adapter(load.lease.request, ids, self._within)
        except Exception as error:
            # After any error: the engine must hold exactly what the residency lists.
            self._metrics.load_failed(load.version)
            logger.warning("adapter %s was not loaded: %s", load.version.label, error)
            if not load.lease.lost:
                await self._forget([load.integer_id, *ids])
            raise
        self._metrics.loaded(load.version, time.monotonic() - started)

    async def remove(self, load: Load) -> None:
        """Remove it from the engine; raises EngineGone."""
        await self._engine.remove_adapter(load.integer_id, self._within)

    async def _forget(self, integer_ids: Sequence[int]) -> None:
        for integer_id in integer_ids:
            try:
                await self._engine.remove_adapter(integer_id, self._within)
            except EngineGone:
                logger.warning("the engine did not confirm that adapter id %d left", integer_id)


def explain(version: AdapterVersion, error: Exception) -> RequestError:
    """The caller's error for a failed load."""
    if isinstance(error, EngineRefusal):
        return AdapterUnusable(f"The engine refused the adapter {version.label}: {error}")
    if isinstance(error, AdapterError) and not isinstance(error, StoreError):
        return AdapterUnusable(
            f"The adapter {version.label} does not fit this server: {error.message}."
        )
    why = error.code if isinstance(error, AdapterError) else str(error)
    return Unavailable(
        f"The adapter {version.label} could not be loaded: {why}",
        code="adapter_load_failed",
        retry_after=5,
    )


def without_engine(error: EngineGone) -> Unavailable:
    """503 for an engine failure outside a load."""
    code = "engine_slow" if isinstance(error, EngineSlow) else "engine_dead"
    return Unavailable(str(error), code=code, retry_after=5)
