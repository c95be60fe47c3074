"""Holds each request until it is its turn to enter the engine, with its adapter there.

vLLM's handler has made tokens of the prompt by then, so the queue counts real tokens. What runs
inside is read off the calls' sequences at each decision, not counted up and down.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from adapters.catalog import AdapterVersion, VersionKey
from adapters.sums import is_sum
from server.call import Call, Lease, Sequence
from server.engine.interface import EngineGone, Work
from server.errors import MAX_RETRY_SECONDS, QueueIsFull
from server.gate.queue import OUTPUT_TOKEN, PROMPT_TOKEN, Entry, FairQueue, Limits, QueueFull
from server.residency.loading import Resident, without_engine
from server.residency.residency import Residency
from server.telemetry.metrics import Metrics

_RATE_SECONDS = 30.0  # of dispatches, by which Retry-After is estimated


class PlainAdmission:
    """First come, first served: requests wait for their adapter, and then inside the engine."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency

    @asynccontextmanager
    async def enter(self, call: Call, work: Work) -> AsyncIterator[Lease | None]:
        if call.allowance is not None:
            await call.allowance.reserve(work)
        call.waiting += 1
        try:
            await self._residency.wait_engine()
            if call.version is None:
                resident = None
            else:
                resident = await self._residency.hold(call.version, call)
        finally:
            call.waiting -= 1
        if resident is None:
            yield None
            return
        try:
            yield resident.load.lease
        finally:
            self._residency.release(resident)

    def check_room(self, call: Call) -> None:
        del call

    def step_made(self) -> None:
        pass

    def engine_lost(self) -> None:
        pass

    def engine_back(self) -> None:
        pass

    def engine_ended(self) -> None:
        pass


@dataclass(slots=True, eq=False)
class Place:
    """A request in the queue or inside the engine; `turn` has its lease once it may enter."""

    call: Call
    work: Work
    entry: Entry
    turn: asyncio.Future[Lease | None]
    is_waiting: bool = True
    charged: int = 0  # generated tokens, of those that its flow was charged for
    refunded: int = 0  # cached prompt tokens

    @property
    def sequences(self) -> list[Sequence]:
        wanted = self.work.request_id
        return [each for each in self.call.sequences if each.engine_request_id == wanted]


@dataclass(slots=True, eq=False)
class Bringing:
    """An adapter's way into the engine: `task` ends when it is loaded and held."""

    version: AdapterVersion
    task: asyncio.Task[Resident]
    started: float
    was_cold: bool  # not in the engine's memory when it began


class FairAdmission:
    """server/gate/queue.py for real calls. Give it an engine's residency before the first call."""

    def __init__(
        self,
        limits: Limits,
        residency: Residency,
        metrics: Metrics,
    ) -> None:
        self._queue = FairQueue(limits)
        self._residency = residency
        self._metrics = metrics
        self._places: dict[Entry, Place] = {}
        self._bringing: dict[VersionKey, Bringing] = {}
        self._held: dict[VersionKey, Resident] = {}
        self._dispatched: deque[float] = deque()
        self._is_open = True
        self._is_due = False  # `_advance`, by the event loop
        self._has_ended = False
        limits.is_pinned = residency.is_pinned
        limits.is_sum = lambda key: is_sum(key.label)
        limits.unpinned = lambda: residency.most_unpinned

    @asynccontextmanager
    async def enter(self, call: Call, work: Work) -> AsyncIterator[Lease | None]:
        if call.allowance is not None:
            await call.allowance.reserve(work)
        place = self._join(call, work)
        try:
            yield await place.turn
        finally:
            self._leave(place)

    def check_room(self, call: Call) -> None:
        if reason := self._queue.room_for(call.queue_flow):
            raise self._refusal(call, reason)

    def step_made(self) -> None:
        if self._queue.calls:
            self._advance()

    def engine_lost(self) -> None:
        """The engine has ended, and its adapters with it: none enters until `engine_back`."""
        self._is_open = False
        for bringing in self._bringing.values():
            bringing.task.cancel()
        self._bringing.clear()
        self._held.clear()
        self._queue.clear_slots()

    def engine_back(self) -> None:
        """A new engine is there; what it holds, `residency` knows."""
        self._is_open = True
        self._advance()

    def engine_ended(self) -> None:
        """There will be no other engine: refuse all that wait."""
        self._has_ended = True
        for entry in tuple(self._queue.waiting()):
            place = self._places[entry]
            self._wait_no_more(place)
            self._queue.leave(entry)
            if not place.turn.done():
                place.turn.set_exception(without_engine(EngineGone("the engine ended")))

    # ---- waiting

    def _join(self, call: Call, work: Work) -> Place:
        if self._has_ended:
            raise without_engine(EngineGone("the engine ended"))
        version = call.version
        entry = Entry(
            flow=call.queue_flow,
            adapter=None if version is None else version.key,
            prompt=work.prompt,
            sequences=work.sequences,
            left=work.sequences * work.tokens,
            weight=call.weight,
            member=call.queue_member,
        )
        place = Place(call, work, entry, asyncio.get_running_loop().create_future())
        try:
            removed = self._wait(entry, work)
        except QueueFull as error:
            raise self._refusal(call, str(error)) from None
        call.queued = call.queued or entry.joined
        call.waiting += 1
        self._places[entry] = place
        for other in removed:
            self._refuse(self._places[other])
        self._advance()
        return place

    def _wait(self, entry: Entry, work: Work) -> list[Entry]:
        """Returns those that leave for it; raises QueueFull."""
        now = time.monotonic()
        if work.is_again:
            self._queue.rejoin(entry, now)
            return []
        return self._queue.join(entry, now)

    def _refuse(self, place: Place) -> None:
        self._wait_no_more(place)
        if not place.turn.done():
            place.turn.set_exception(self._refusal(place.call, "displaced"))

    def _refusal(self, call: Call, reason: str) -> QueueIsFull:
        self._metrics.queue_refused(call, reason)
        return QueueIsFull(
            "Too many calls wait for the engine already. Try again later.",
            retry_after=self._retry_seconds(),
        )

    def _retry_seconds(self) -> float:
        """When as many calls as wait now will have entered, at the rate of the last while."""
        self._forget_old(time.monotonic())
        if not self._dispatched:
            return MAX_RETRY_SECONDS / 4
        rate = len(self._dispatched) / max(time.monotonic() - self._dispatched[0], 1.0)
        return min(max(self._queue.calls / rate, 1.0), MAX_RETRY_SECONDS)

    def _forget_old(self, now: float) -> None:
        while self._dispatched and self._dispatched[0] < now - _RATE_SECONDS:
            self._dispatched.popleft()

    def _leave(self, place: Place) -> None:
        entry = self._places.pop(place.entry).entry
        if entry in self._queue.inside:
            self._settle(place)
            self._queue.end(entry, time.monotonic())
        elif place.is_waiting:
            self._wait_no_more(place)
            self._queue.leave(entry)
            self._give_up_bringing(entry)
        self._advance_soon()

    def _wait_no_more(self, place: Place) -> None:
        place.is_waiting = False
        place.call.waiting -= 1

    def _give_up_bringing(self, entry: Entry) -> None:
        """Nobody waits for this adapter any more: no other is to be evicted for it."""
        key = entry.adapter
        if key is None or key not in self._bringing:
            return
        if not any(each.adapter == key for each in self._queue.waiting()):
            self._bringing.pop(key).task.cancel()
            self._queue.not_loaded(key)

    # ---- entering

    def _advance_soon(self) -> None:
        """Once for all that leave together: with many flows each time takes milliseconds."""
        if not self._is_due:
            self._is_due = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Let in all whose turn it is."""
        self._is_due = False
        now = time.monotonic()
        for entry in tuple(self._queue.inside):
            self._settle(self._places[entry])
        while self._is_open:
            released = self._queue.release_idle()
            for key in released:
                self._residency.release(self._held.pop(key))
            if (cold := self._queue.bring_in(now)) is not None:
                self._bring_in(self._places[cold])
            elif (next_in := self._queue.dispatch(now)) is not None:
                self._let_in(self._places[next_in], now)
            elif not released:
                return

    def _let_in(self, place: Place, now: float) -> None:
        entry, call = place.entry, place.call
        self._wait_no_more(place)
        if place.turn.done():  # its caller hangs up just now: it does not enter
            self._queue.charge(entry, -PROMPT_TOKEN * entry.prompt)
            self._queue.end(entry, now)
            return
        self._forget_old(now)
        self._dispatched.append(now)
        call.queued = entry.joined  # of its latest request: a call may send several in turn
        self._metrics.queue_left(call, now - entry.joined)
        lease = None if entry.adapter is None else self._held[entry.adapter].load.lease
        place.turn.set_result(lease)

    def _bring_in(self, place: Place) -> None:
        version = place.call.version
        assert version is not None
        was_cold = not self._residency.is_loaded(version)
        task = asyncio.create_task(self._residency.hold(version))
        bringing = Bringing(version, task, time.monotonic(), was_cold)
        self._bringing[version.key] = bringing
        task.add_done_callback(lambda _: self._brought_in(bringing))

    def _brought_in(self, bringing: Bringing) -> None:
        key, task = bringing.version.key, bringing.task
        if self._bringing.get(key) is not bringing:
            if not task.cancelled() and task.exception() is None:
                self._residency.release(task.result())
            return
        del self._bringing[key]
        self._note_load(bringing)
        if task.cancelled() or task.exception() is not None:
            for entry in self._queue.not_loaded(key):
                self._fail(self._places[entry], task)
        else:
            self._held[key] = task.result()
            self._queue.loaded(key)
        self._advance()

    def _fail(self, place: Place, load: asyncio.Task[Resident]) -> None:
        self._wait_no_more(place)
        if place.turn.done():
            return
        if load.cancelled():  # the server's loop ends
            place.turn.cancel()
        elif error := load.exception():
            place.turn.set_exception(error)

    def _note_load(self, bringing: Bringing) -> None:
        """These calls met a cold adapter."""
        if not bringing.was_cold:
            return
        for entry in self._queue.waiting():
            if entry.adapter == bringing.version.key:
                call = self._places[entry].call
                call.load_started = max(bringing.started, entry.joined)
                call.load_ended = time.monotonic()

    def _settle(self, place: Place) -> None:
        """Take over what the engine has done for a request since it was asked last."""
        entry, sequences = place.entry, place.sequences
        if not sequences:
            return  # not handed to the engine yet
        generated = sum(each.stats.num_generation_tokens for each in sequences)
        cached = sum(each.cached_tokens for each in sequences if not each.shares_prompt)
        cost = OUTPUT_TOKEN * (generated - place.charged) - PROMPT_TOKEN * (cached - place.refunded)
        if cost:
            self._queue.charge(entry, cost)
        place.charged, place.refunded = generated, cached
        entry.running = entry.sequences - sum(each.finish_reason is not None for each in sequences)
        entry.prefilling = bool(entry.running) and not generated
        entry.left = max(entry.sequences * place.work.tokens - generated, 0)
        if not entry.running:  # the caller may still read: that takes nothing from others
            self._queue.end(entry, time.monotonic())
