"""Which adapters the engine holds, and which calls use them.

A call leases one version for as long as it runs. Calls that ask for the same version at once share
one load; the least recently used version without a lease is evicted for it. Invariants, each with
a test: every load has a fresh integer id and an engine-side name of its own; resident adapters
never exceed the engine's capacity; a failed load burns its id and is removed from the engine;
nothing in use and nothing pinned is evicted. `loading.py` does the loads.

When the engine ends it holds nothing any more: `forget`. Calls that ask for a version then wait for
the next engine, into which `restore` loads what was resident.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

from adapters.catalog import AdapterVersion, VersionKey
from adapters.errors import AdapterError
from adapters.sums import is_sum, part_labels
from server.call import Call, Lease
from server.engine.interface import AdapterEngine, EngineGone, EngineRefusal
from server.errors import AdapterInUse, RequestError, Unavailable
from server.presence import Presence
from server.residency.loading import Load, Loader, Resident, explain, without_engine
from server.residency.served_files import Servable
from server.telemetry.metrics import Metrics

logger = logging.getLogger("lorry.residency")

_ROOM_POLL_SECONDS = 0.02
_RESTORED_AT_ONCE = 8


class Residency:
    def __init__(
        self,
        engine: AdapterEngine,
        loader: Loader,
        *,
        capacity: int,
        most_sums: int,
        servable: Servable,
        metrics: Metrics,
        wait_seconds: float,
        presence: Presence,
    ) -> None:
        self._presence = presence
        self._engine = engine
        self._loader = loader
        self._capacity = capacity
        self.most_sums = min(most_sums, max(1, capacity // 2))  # resident at once
        self._servable = servable
        self._metrics = metrics
        self._wait_seconds = wait_seconds
        self._residents: dict[VersionKey, Resident] = {}
        self._leaving = 0
        self._used_at: dict[VersionKey, float] = {}
        self._retiring: dict[VersionKey, asyncio.Task[None]] = {}
        self._pinned: frozenset[VersionKey] = frozenset()
        self._admissions = Admissions()
        # Versions that need a place wait here, first come first served; loads run outside. Sums
        # wait apart: adapters do not wait for one of the few places of sums.
        self._queue = asyncio.Lock()
        self._sums_queue = asyncio.Lock()
        self._freed = asyncio.Event()

    @property
    def residents(self) -> Mapping[VersionKey, Resident]:
        """Every taken place, including those of loads under way."""
        return self._residents

    @property
    def digests(self) -> set[str]:
        """Of every taken place. Any thread may ask."""
        return {each.load.version.digest for each in [*self._residents.values()]}

    @property
    def most_pins(self) -> int:
        """How many versions can be pinned: one place always stays for the others."""
        return self._capacity - 1

    def used_at(self, version: AdapterVersion) -> float | None:
        """When its last lease ended, in Unix seconds; also after it was evicted."""
        return self._used_at.get(version.key)

    async def held(self) -> Mapping[str, list[int]]:
        """The integer ids that the engine reports, by tier ("host", "device").

        Raises:
            Unavailable: the engine did not answer.
        """
        try:
            return await self._engine.held_adapters(self._wait_seconds)
        except EngineGone as error:
            raise without_engine(error) from None

    @property
    def most_unpinned(self) -> int:
        """How many versions that are not pinned can be resident at once."""
        return self._capacity - len(self._pinned)

    def is_pinned(self, key: VersionKey) -> bool:
        return key in self._pinned

    def is_loaded(self, version: AdapterVersion) -> bool:
        resident = self._residents.get(version.key)
        return resident is not None and resident.is_loaded

    def check(self, version: AdapterVersion) -> None:
        """Raises AdapterUnusable: this server can't serve it."""
        self._servable.check(version)

    def pin(self, versions: Iterable[AdapterVersion]) -> None:
        """Replace the set of versions that are never evicted; loads none of them."""
        self._pinned = frozenset(each.key for each in versions)
        assert len(self._pinned) <= self.most_pins

    @asynccontextmanager
    async def lease(self, version: AdapterVersion, call: Call | None) -> AsyncIterator[Lease]:
        """Hold `version` resident for the length of the block, loading it if need be.

        An engine that is started again is waited for, however long that takes.

        Raises:
            AdapterUnusable: the engine can't serve this adapter.
            Unavailable: no room in time, or its files are not there, or no engine any more.
        """
        resident = await self.hold(version, call)
        try:
            yield resident.load.lease
        finally:
            self.release(resident)

    async def hold(self, version: AdapterVersion, call: Call | None = None) -> Resident:
        """Like `lease`, until `release`."""
        self.check(version)
        while True:
            await self.wait_engine()
            if (resident := await self._hold(version, call)) is not None:
                return resident

    async def wait_engine(self) -> None:
        """Return once the engine can be asked; raises Unavailable if it has ended for good."""
        try:
            await self._presence.wait()
        except EngineGone as error:
            raise without_engine(error) from None

    async def _hold(self, version: AdapterVersion, call: Call | None) -> Resident | None:
        """Take its place and wait until it is loaded; None if the engine ends meanwhile."""
        resident = await self._take(version)
        try:
            await self._wait_loaded(resident, call)
        except BaseException as error:
            self.release(resident)
            has_ended = resident.load.lease.lost or not self._presence.is_there
            if has_ended and isinstance(error, Unavailable):
                return None
            raise
        return resident

    def release(self, resident: Resident) -> None:
        """End one `hold` of it."""
        resident.users -= 1
        self._freed.set()
        resident.last_used = time.monotonic()
        key = resident.load.version.key
        if not is_sum(key.label):  # of which there is no end
            self._used_at[key] = time.time()

    async def load(self, version: AdapterVersion) -> None:
        """Make `version` resident ahead of calls; raises as `lease` does."""
        async with self.lease(version, None):
            pass

    def forget(self) -> list[AdapterVersion]:
        """The engine has ended: free every place; leases of it are lost.

        Returns what it held, in the order to `restore` it: pinned, in use, used last.
        """
        held = sorted(
            self._residents.items(),
            key=lambda each: (each[0] in self._pinned, each[1].users > 0, each[1].last_used),
            reverse=True,
        )
        for _, resident in held:
            resident.load.lease.lost = True
        self._residents.clear()
        self._freed.set()
        return [resident.load.version for _, resident in held]

    async def restore(self, versions: Sequence[AdapterVersion], within: float) -> None:
        """Load `versions` in this order, ahead of calls; begins no load after `within` seconds.

        A version that can't be loaded is left out.
        """
        end = time.monotonic() + within
        for at in range(0, len(versions), _RESTORED_AT_ONCE):
            if time.monotonic() >= end:
                logger.warning("%d adapters load only when they are called", len(versions) - at)
                return
            some = versions[at : at + _RESTORED_AT_ONCE]
            await asyncio.gather(*(self._restore(version) for version in some))

    async def _restore(self, version: AdapterVersion) -> None:
        with suppress(RequestError):  # the loader has logged it
            if (resident := await self._hold(version, None)) is not None:
                self.release(resident)

    async def unload(self, version: AdapterVersion) -> bool:
        """Free the version on device and host once no call uses it; returns whether it was there.

        Raises:
            AdapterInUse: calls used it during all of the wait.
            Unavailable: the engine did not answer.
        """
        key = version.key
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
        # Out of the table before the first await: no call can lease it any more.
        leaving = asyncio.create_task(self._leave(self._residents.pop(key).load))
        await asyncio.shield(leaving)
        return True

    async def retire(self, version: AdapterVersion) -> bool:
        """Unload a version that was removed from the catalog, once its calls have ended.

        Returns whether it is gone already.
        """
        tasks = {self.begin_to_retire(each) for each in (version, *self._sums_with(version))}
        done, _ = await asyncio.wait(tasks, timeout=self._wait_seconds)
        return tasks == done

    def _sums_with(self, version: AdapterVersion) -> list[AdapterVersion]:
        """The resident sums that a version is a part of: they end with it."""
        held = [resident.load.version for resident in self._residents.values()]
        sums = (each for each in held if is_sum(each.label))
        return [each for each in sums if version.label in part_labels(each.label)]

    def begin_to_retire(self, version: AdapterVersion) -> asyncio.Task[None]:
        """Like `retire`, but does not wait. Idempotent."""
        key = version.key
        if key not in self._retiring:
            self._retiring[key] = task = asyncio.create_task(self._retire(key, version))
            task.add_done_callback(lambda _: self._retiring.pop(key))
        return self._retiring[key]

    async def _retire(self, key: VersionKey, version: AdapterVersion) -> None:
        with suppress(Unavailable):  # a dead engine holds nothing
            while key in self._residents or self._admissions.get(key):
                if admission := self._admissions.get(key):  # of a call that began earlier
                    await asyncio.wait({admission})
                with suppress(AdapterInUse):
                    await self.unload(version)
        self._used_at.pop(key, None)
        self._metrics.removed(version.label)

    async def _leave(self, load: Load) -> None:
        self._leaving += 1  # its place is not free before the engine let go
        try:
            await self._loader.remove(load)
        except EngineGone as error:
            raise without_engine(error) from None
        finally:
            self._leaving -= 1

    async def _take(self, version: AdapterVersion) -> Resident:
        """Take a lease on the version's place; it may still be loading."""
        key = version.key
        while (resident := self._residents.get(key)) is None:
            await self._admissions.wait(key, partial(self._admit, key, version))
        resident.users += 1
        return resident

    async def _admit(self, key: VersionKey, version: AdapterVersion) -> None:
        """Start loading the version as soon as a place is free."""
        queue = self._sums_queue if is_sum(version.label) else self._queue
        try:
            async with asyncio.timeout(self._wait_seconds), queue:
                load = self._loader.prepare(version)  # may raise, so before any eviction
                while key not in self._residents:
                    if not self._begin_load(key, load):
                        await self._wait_freed()
        except TimeoutError:
            raise self._busy(is_sum(version.label)) from None

    def _begin_load(self, key: VersionKey, load: Load) -> bool:
        """Start a load if there is a place, or one that is not used; a sum has those of sums."""
        among = None
        if is_sum(key.label):
            sums = [each for each in self._residents if is_sum(each.label)]
            among = sums if len(sums) >= self.most_sums else None
        if among is None and len(self._residents) + self._leaving < self._capacity:
            self._start_load(key, load, None)
            return True
        if (leaving := self._evict_coldest(among)) is None:
            return False
        self._start_load(key, load, leaving)
        return True

    def _busy(self, for_sum: bool) -> Unavailable:
        said = f"All {self._capacity} places for adapters are in use"
        if for_sum:
            said = f"All {self.most_sums} places for sums, or all for adapters, are in use"
        option = "--max-sums" if for_sum else "--max-cpu-loras"
        return Unavailable(
            f"{said}. Try again, or start the server with a larger {option}.",
            code="adapters_busy",
            retry_after=1,
        )

    async def _wait_freed(self) -> None:
        """Wait for a lease to end, but not for long.

        The engine drops the sequence of a caller that hung up one step after its call ended,
        without a notice.
        """
        self._freed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(_ROOM_POLL_SECONDS):
                await self._freed.wait()

    def _start_load(self, key: VersionKey, load: Load, leaving: Load | None) -> None:
        task = asyncio.create_task(self._run(key, load, leaving))
        # No caller may be left to await it: its error is in the metrics and in the log.
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._residents[key] = Resident(load, task)

    async def _run(self, key: VersionKey, load: Load, leaving: Load | None) -> None:
        try:
            await self._loader.run(load, leaving)
        except BaseException:
            if not load.lease.lost:
                del self._residents[key]
            raise

    async def _wait_loaded(self, resident: Resident, call: Call | None) -> None:
        if resident.is_loaded:
            return
        if call is not None:
            call.load_started = time.monotonic()
        version = resident.load.version
        try:
            # Shielded: a caller that hangs up must not cancel a load that others wait for.
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

    def _evict_coldest(self, among: Iterable[VersionKey] | None = None) -> Load | None:
        """Free the place of the least recently used adapter, or of these; the caller unloads it.

        None when each is in use, loading or pinned.
        """
        idle = [
            (self._residents[key].last_used, key)
            for key in (self._residents if among is None else among)
            if key not in self._pinned and self._is_idle(self._residents[key])
        ]
        if not idle:
            return None
        last_used, key = min(idle)
        # Out of the table before the first await: no call can lease it any more.
        load = self._residents.pop(key).load
        self._metrics.evicted(load.version, time.monotonic() - last_used)
        return load

    def _is_idle(self, resident: Resident) -> bool:
        return (
            resident.users == 0
            and resident.loaded.done()
            and not self._engine.is_using(resident.load.lease.engine_name)
        )


@dataclass(slots=True)
class _Turn:
    task: asyncio.Task[None]
    waiting: int = 0


class Admissions:
    """Turns in the queue for a place: one per version, shared by all calls that wait for it.

    With a turn each, later calls would wait behind strangers for what is resident by then. When
    the last waiting call hangs up, the turn is cancelled and nothing is evicted for it.
    """

    def __init__(self) -> None:
        self._turns: dict[VersionKey, _Turn] = {}

    def get(self, key: VersionKey) -> asyncio.Task[None] | None:
        turn = self._turns.get(key)
        return turn.task if turn else None

    async def wait(self, key: VersionKey, admit: Callable[[], Coroutine[None, None, None]]) -> None:
        """Wait until `admit` has run; the first to wait starts it. Raises what `admit` raises."""
        turn = self._turns.get(key)
        if turn is None or turn.task.done():
            turn = self._turns[key] = _Turn(asyncio.create_task(admit()))
            # If the last waiting call hangs up just when it fails, its error is not retrieved.
            turn.task.add_done_callback(lambda task: task.cancelled() or task.exception())
        turn.waiting += 1
        try:
            await asyncio.shield(turn.task)
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                turn.task.cancel()
            if (turn.task.done() or not turn.waiting) and self._turns.get(key) is turn:
                del self._turns[key]
