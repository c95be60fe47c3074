"""Which adapters the engine holds, and who is using them.

A call leases one version for as long as it runs. A version that is not resident is loaded once,
however many ask at the same moment; the least recently used one that nobody leases makes room.
Invariants (each has a test): every load has a fresh integer id and an engine-side name of its
own; resident adapters never exceed the engine's capacity; a failed load burns its id and is
removed from the engine; nothing in use is removed. Knows the engine only as `AdapterEngine`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from adapters.catalog import AdapterVersion
from adapters.errors import AdapterError
from server.call import Call, Lease
from server.errors import AdapterUnusable, Unavailable
from server.metrics import Metrics

logger = logging.getLogger("lorry.residency")

Key = tuple[str, int, str]  # name, version, digest
_ROOM_POLL_SECONDS = 0.02


class EngineRefusal(Exception):
    """The engine looked at the adapter and said no."""


class EngineGone(Exception):
    """The engine died or did not answer in time."""


class AdapterEngine(Protocol):
    """What residency asks of the engine (server/engine/client.py)."""

    def make_request(self, engine_name: str, integer_id: int, path: Path) -> Any: ...

    async def add_adapter(self, request: Any, within: float) -> None:
        """Raises EngineRefusal or EngineGone."""

    async def remove_adapter(self, integer_id: int, within: float) -> None:
        """Raises EngineGone."""

    def is_using(self, engine_name: str) -> bool:
        """Whether a request that runs or waits in the engine carries this adapter."""


@dataclass(slots=True)
class Resident:
    version: AdapterVersion
    lease: Lease
    integer_id: int
    loaded: asyncio.Task[None]
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)


class Residency:
    """`check` raises an AdapterError for a folder that the served base can't carry."""

    def __init__(
        self,
        engine: AdapterEngine,
        *,
        capacity: int,
        max_rank: int,
        path_of: Callable[[str], Path],
        check: Callable[[Path], object],
        metrics: Metrics,
        wait_seconds: float,
    ) -> None:
        self._engine = engine
        self._capacity = capacity
        self._max_rank = max_rank
        self._path_of = path_of
        self._check = check
        self._metrics = metrics
        self._wait_seconds = wait_seconds
        self._residents: dict[Key, Resident] = {}
        self._ids = itertools.count(1)
        self._making_room = asyncio.Lock()

    @property
    def residents(self) -> list[AdapterVersion]:
        return [r.version for r in self._residents.values() if r.loaded.done()]

    @asynccontextmanager
    async def lease(self, version: AdapterVersion, call: Call) -> AsyncIterator[Lease]:
        """Hold `version` resident for the length of the block, loading it when it is not.

        Raises:
            AdapterUnusable: the engine can't serve this adapter.
            Unavailable: no room in time, or the engine did not answer.
        """
        if version.rank > self._max_rank:
            raise AdapterUnusable(
                f"The adapter {version.label} has rank {version.rank}; this server serves up to "
                f"{self._max_rank}. Start it with a larger --max-lora-rank."
            )
        resident = await self._take(version)
        try:
            await self._wait_loaded(resident, call)
            yield resident.lease
        finally:
            resident.users -= 1
            resident.last_used = time.monotonic()

    async def _take(self, version: AdapterVersion) -> Resident:
        """A lease on the version's resident, whose load may still be under way."""
        key = (version.name, version.version, version.digest)
        if key not in self._residents:
            await self._admit(key, version)
        resident = self._residents[key]
        resident.users += 1
        return resident

    async def _admit(self, key: Key, version: AdapterVersion) -> None:
        """Start loading the version as soon as there is a place for it."""
        try:
            async with asyncio.timeout(self._wait_seconds), self._making_room:
                while key not in self._residents and not await self._make_room():  # noqa: ASYNC110
                    # Every place is leased; the engine lets go of a sequence a step after its
                    # call ended and says so to nobody, hence a poll.
                    await asyncio.sleep(_ROOM_POLL_SECONDS)
                if key not in self._residents:
                    self._start_load(key, version)
        except TimeoutError:
            raise Unavailable(
                f"All {self._capacity} places for adapters are in use. Try again, or start the "
                "server with a larger --max-cpu-loras.",
                code="adapters_busy",
                retry_after=1,
            ) from None

    async def _wait_loaded(self, resident: Resident, call: Call) -> None:
        if resident.loaded.done() and resident.loaded.exception() is None:
            return
        call.load_started = time.monotonic()
        try:
            # Shielded: a caller that hangs up must not cancel the load that others wait for.
            await asyncio.shield(resident.loaded)
        except EngineRefusal as error:
            raise AdapterUnusable(
                f"The engine refused the adapter {resident.version.label}: {error}"
            ) from None
        except AdapterError as error:
            raise AdapterUnusable(
                f"The adapter {resident.version.label} does not fit this server: {error.message}."
            ) from None
        except EngineGone as error:
            raise Unavailable(
                f"The adapter {resident.version.label} could not be loaded: {error}",
                code="adapter_load_failed",
                retry_after=5,
            ) from None
        finally:
            call.load_ended = time.monotonic()

    def _start_load(self, key: Key, version: AdapterVersion) -> None:
        integer_id = next(self._ids)
        engine_name = f"{version.label}#{version.digest[7:19]}.{integer_id}"
        path = self._path_of(version.digest)
        request = self._engine.make_request(engine_name, integer_id, path)
        load = asyncio.create_task(self._load(key, version, integer_id, request, path))
        # A load whose callers all hung up has nobody to await it: its error is in the metrics.
        load.add_done_callback(lambda task: task.cancelled() or task.exception())
        lease = Lease(engine_name, request)
        self._residents[key] = Resident(version, lease, integer_id, load)

    async def _load(
        self, key: Key, version: AdapterVersion, integer_id: int, request: Any, path: Path
    ) -> None:
        started = time.monotonic()
        try:
            # Against the base that is served now, whatever it was published for; in a thread,
            # as it reads every value.
            await asyncio.to_thread(self._check, path)
            await self._engine.add_adapter(request, self._wait_seconds)
        except (EngineRefusal, EngineGone, AdapterError) as error:
            self._metrics.load_failed(version)
            logger.warning("adapter %s not loaded: %s", version.label, error)
            await self._forget(key, integer_id)
            raise
        self._metrics.loaded(version, time.monotonic() - started)

    async def _forget(self, key: Key, integer_id: int) -> None:
        """After a failed load: vLLM may have kept half of it, under an id never used again."""
        try:
            await self._engine.remove_adapter(integer_id, self._wait_seconds)
        except EngineGone:
            logger.warning("the engine did not confirm the removal of adapter id %d", integer_id)
        del self._residents[key]

    async def _make_room(self) -> bool:
        """Whether there is a free place, after evicting the coldest unused adapter if need be."""
        if len(self._residents) < self._capacity:
            return True
        idle = [
            (resident.last_used, key)
            for key, resident in self._residents.items()
            if resident.users == 0
            and resident.loaded.done()
            and not self._engine.is_using(resident.lease.engine_name)
        ]
        if not idle:
            return False
        _, key = min(idle)
        # Out of the table before the first await: from here on nobody can lease it.
        resident = self._residents.pop(key)
        self._metrics.evicted(resident.version)
        try:
            await self._engine.remove_adapter(resident.integer_id, self._wait_seconds)
        except EngineGone as error:
            raise Unavailable(str(error), code="engine_dead", retry_after=5) from None
        return True
