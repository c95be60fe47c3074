"""Which adapters the engine holds, and who is using them.

A call leases one version for as long as it runs. A version that is not resident is loaded once,
however many ask at the same moment; the least recently used one that nobody leases makes room.
Invariants (each has a test): every load has a fresh integer id and an engine-side name of its
own; resident adapters never exceed the engine's capacity; a failed load burns its id and is
removed from the engine; nothing in use and nothing pinned is evicted. How a load is done is
server/residency/loading.py's.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

from adapters.catalog import AdapterVersion
from adapters.errors import AdapterError
from server.call import Call, Lease
from server.errors import AdapterInUse, Unavailable
from server.residency.admissions import Admissions
from server.residency.loading import (
    AdapterEngine,
    EngineGone,
    EngineRefusal,
    Load,
    Loader,
    explain,
    without_engine,
)
from server.residency.servable import Servable
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.residency")

Key = tuple[str, int, str]  # name, version, digest
_ROOM_POLL_SECONDS = 0.02


def key_of(version: AdapterVersion) -> Key:
    return version.name, version.version, version.digest


@dataclass(slots=True)
class Resident:
    """A place in the engine: an adapter that is there or on its way in."""

    load: Load
    loaded: asyncio.Task[None]
    users: int = 0
    last_used: float = field(default_factory=time.monotonic)

    @property
    def is_loaded(self) -> bool:
        return self.loaded.done() and not self.loaded.cancelled() and not self.loaded.exception()


class Residency:
    def __init__(
        self,
        engine: AdapterEngine,
        loader: Loader,
        *,
        capacity: int,
        servable: Servable,
        metrics: Metrics,
        wait_seconds: float,
    ) -> None:
        self._engine = engine
        self._loader = loader
        self._capacity = capacity
        self._servable = servable
        self._metrics = metrics
        self._wait_seconds = wait_seconds
        self._residents: dict[Key, Resident] = {}
        self._leaving = 0
        self._used_at: dict[Key, float] = {}
        self._retiring: dict[Key, asyncio.Task[None]] = {}
        self._pinned: frozenset[Key] = frozenset()
        self._admissions = Admissions()
        # Those who need a place queue here, first come first served; loading is done outside.
        self._queue = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def residents(self) -> Mapping[Key, Resident]:
        """Every place that is taken, those of loads under way included."""
        return self._residents

    @property
    def most_pins(self) -> int:
        """How many versions can be pinned: one place stays for everybody else."""
        return self._capacity - 1

    def used_at(self, version: AdapterVersion) -> float | None:
        """When it was last leased, in Unix seconds, resident or not."""
        return self._used_at.get(key_of(version))

    async def held(self) -> Mapping[str, list[int]]:
        """The integer ids that the engine itself says it holds, by tier.

        Raises:
            Unavailable: the engine did not answer.
        """
        try:
            return await self._engine.held_adapters(self._wait_seconds)
        except EngineGone as error:
            raise without_engine(error) from None

    def pin(self, versions: Iterable[AdapterVersion]) -> None:
        """Never evict these from now on, and no others; that they are loaded is `load`'s."""
        self._pinned = frozenset(map(key_of, versions))
        assert len(self._pinned) <= self.most_pins

    @asynccontextmanager
    async def lease(self, version: AdapterVersion, call: Call | None) -> AsyncIterator[Lease]:
        """Hold `version` resident for the length of the block, loading it when it is not.

        Raises:
            AdapterUnusable: the engine can't serve this adapter.
            Unavailable: no room in time, or its files or the engine are not there.
        """
        self._servable.check(version)
        resident = await self._take(version)
        try:
            await self._wait_loaded(resident, call)
            yield resident.load.lease
        finally:
            resident.users -= 1
            self._freed.set()
            resident.last_used = time.monotonic()
            self._used_at[key_of(version)] = time.time()

    async def load(self, version: AdapterVersion) -> None:
        """Make `version` resident before anybody calls it; raises as `lease` does."""
        async with self.lease(version, None):
            pass

    async def unload(self, version: AdapterVersion) -> bool:
        """Free the version on device and host once nobody uses it; whether it was there.

        Raises:
            AdapterInUse: calls kept using it all the time.
            Unavailable: the engine did not answer.
        """
        key = key_of(version)
        try:
            async with asyncio.timeout(self._wait_seconds):
                while (resident := self._residents.get(key)) and not self._is_idle(resident):
                    await self._wait_freed()
        except TimeoutError:
            raise AdapterInUse(
                f"The adapter {version.label} is in use. Point its aliases elsewhere, then try "
                "again.",
                retry_after=5,
            ) from None
        if resident is None:
            return False
        # Out of the table before the first await: from here on nobody can lease it.
        leaving = asyncio.create_task(self._leave(self._residents.pop(key).load))
        await asyncio.shield(leaving)
        return True

    async def retire(self, version: AdapterVersion) -> bool:
        """Unload a version that nobody can name any more, however long its calls take.

        Returns whether it is gone; else it goes when they have ended.
        """
        task = self.begin_to_retire(version)
        done, _ = await asyncio.wait({task}, timeout=self._wait_seconds)
        return task in done

    def begin_to_retire(self, version: AdapterVersion) -> asyncio.Task[None]:
        """The same, for who does not wait for it; begun once however often it is asked for."""
        key = key_of(version)
        if key not in self._retiring:
            self._retiring[key] = task = asyncio.create_task(self._retire(key, version))
            task.add_done_callback(lambda _: self._retiring.pop(key))
        return self._retiring[key]

    async def _retire(self, key: Key, version: AdapterVersion) -> None:
        with suppress(Unavailable):  # an engine that is gone holds nothing
            while key in self._residents or self._admissions.get(key):
                if admission := self._admissions.get(key):  # of a call that began before
                    await asyncio.wait({admission})
                with suppress(AdapterInUse):
                    await self.unload(version)
        self._used_at.pop(key, None)
        self._metrics.removed(version.name, str(version.version))

    async def _leave(self, load: Load) -> None:
        self._leaving += 1  # its place is not free before the engine let go
        try:
            await self._loader.remove(load)
        except EngineGone as error:
            raise without_engine(error) from None
        finally:
            self._leaving -= 1

    async def _take(self, version: AdapterVersion) -> Resident:
        """A lease on the version's place, where it may still be on its way in."""
        key = key_of(version)
        while (resident := self._residents.get(key)) is None:
            await self._admissions.wait(key, partial(self._admit, key, version))
        resident.users += 1
        return resident

    async def _admit(self, key: Key, version: AdapterVersion) -> None:
        """Start loading the version as soon as there is a place for it."""
        try:
            async with asyncio.timeout(self._wait_seconds), self._queue:
                load = self._loader.prepare(version)  # before anybody is evicted for it
                while key not in self._residents:
                    if len(self._residents) + self._leaving < self._capacity:
                        self._start_load(key, load, None)
                    elif (leaving := self._evict_coldest()) is not None:
                        self._start_load(key, load, leaving)
                    else:
                        await self._wait_freed()
        except TimeoutError:
            raise Unavailable(
                f"All {self._capacity} places for adapters are in use. Try again, or start the "
                "server with a larger --max-cpu-loras.",
                code="adapters_busy",
                retry_after=1,
            ) from None

    async def _wait_freed(self) -> None:
        """Wait for a lease to end, but not for long.

        The engine lets go of a sequence whose caller hung up a step after its call ended, and
        says so to nobody.
        """
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_ROOM_POLL_SECONDS):
                await self._freed.wait()

    def _start_load(self, key: Key, load: Load, leaving: Load | None) -> None:
        task = asyncio.create_task(self._run(key, load, leaving))
        # A load whose callers all hung up has nobody to await it: its error is in the metrics.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._residents[key] = Resident(load, task)

    async def _run(self, key: Key, load: Load, leaving: Load | None) -> None:
        try:
            await self._loader.run(load, leaving)
        except BaseException:
            del self._residents[key]
            raise

    async def _wait_loaded(self, resident: Resident, call: Call | None) -> None:
        if resident.is_loaded:
            return
        if call is not None:
            call.load_started = time.monotonic()
        version = resident.load.version
        try:
            # Shielded: a caller that hangs up must not cancel the load that others wait for.
            async with asyncio.timeout(self._wait_seconds):
                await asyncio.shield(resident.loaded)
        except (EngineRefusal, EngineGone, AdapterError) as error:
            raise explain(version, error) from None
        except TimeoutError:
            raise Unavailable(
                f"The adapter {version.label} is still being loaded. Try again.",
                code="adapter_loading",
                retry_after=1,
            ) from None
        finally:
            if call is not None:
                call.load_ended = time.monotonic()

    def _evict_coldest(self) -> Load | None:
        """Take the place of the coldest adapter that may go; the caller removes it."""
        idle = [
            (resident.last_used, key)
            for key, resident in self._residents.items()
            if key not in self._pinned and self._is_idle(resident)
        ]
        if not idle:
            return None
        last_used, key = min(idle)
        # Out of the table before the first await: from here on nobody can lease it.
        load = self._residents.pop(key).load
        self._metrics.evicted(load.version, time.monotonic() - last_used)
        return load

    def _is_idle(self, resident: Resident) -> bool:
        return (
            resident.users == 0
            and resident.loaded.done()
            and not self._engine.is_using(resident.load.lease.engine_name)
        )
