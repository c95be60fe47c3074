"""The order in which calls enter the engine: fair among flows, and among adapters for its slots.

A flow is one caller's use of one adapter. Each has a counter of the tokens it was served, divided
by its weight, and the waiting flow with the smallest is next (virtual token counters: Sheng et al.,
arXiv 2401.00588). Work on adapters that are inside goes on while others wait for a slot, but not
for long: the slot with the least work left is drained for the flow that waits (locality within a
bound: Cao et al., arXiv 2501.14312). Pure bookkeeping: no clock, no event loop, no engine.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapters.catalog import VersionKey

PROMPT_TOKEN = 1.0  # what a token costs a flow; as in the paper
OUTPUT_TOKEN = 2.0
_IDLE_FLOWS = 4096  # whose counters are remembered

Rank = tuple[float, ...]  # smaller is sooner
_LAST: Rank = (math.inf,)


@dataclass(slots=True)
class Limits:
    """What may be inside the engine, and wait for it, at once; times are in seconds.

    `adapters` are distinct ones, of which at most `unpinned()` are not pinned. `slot_seconds` is
    the least time that an adapter keeps its slot while others wait for one, and the least time that
    they wait. A flow that is not served for `wait_seconds` goes before all that were. One that was
    away comes back at most `credit` tokens behind the others.
    """

    sequences: int
    adapters: int
    prefill_tokens: int
    calls: int = 1024
    tokens: int = 1 << 20
    credit: float = 1000.0
    wait_seconds: float = 5.0
    slot_seconds: float = 0.5
    is_pinned: Callable[[VersionKey], bool] = lambda _: False
    unpinned: Callable[[], float] = lambda: math.inf


@dataclass(slots=True, eq=False)
class Entry:
    """One request of a call: `sequences` answers to a prompt of `prompt` tokens.

    While it is inside, its owner keeps `running`, `prefilling` and `left` up to date.
    """

    flow: str
    adapter: VersionKey | None  # None is the base, which needs no slot
    prompt: int
    sequences: int = 1
    left: int = 0  # tokens that it may still generate, at most
    weight: float = 1.0
    joined: float = 0.0  # when it began to wait
    running: int = 0  # sequences inside
    prefilling: bool = False  # inside, without a first token


@dataclass(slots=True, eq=False)
class Flow:
    counter: float = 0.0
    waiting: deque[Entry] = field(default_factory=deque)
    inside: int = 0
    unserved_since: float = 0.0  # its last dispatch, or when it began to wait
    served: int = 0  # number of the dispatch that served it last

    def rank(self, now: float, wait_seconds: float) -> Rank:
        if now - self.unserved_since >= wait_seconds:
            return (0, self.unserved_since, self.served)
        return (1, self.counter, self.served)


@dataclass(slots=True, eq=False)
class Slot:
    """An adapter that is inside the engine or on its way in."""

    since: float
    is_loaded: bool = False
    is_draining: bool = False
    inside: set[Entry] = field(default_factory=set)
    served: bool = False

    @property
    def left(self) -> int:
        return sum(entry.left for entry in self.inside)


class QueueFull(Exception):
    """Too many calls or tokens wait; `entry` is the one to refuse, which may be another's."""

    def __init__(self, entry: Entry, reason: str) -> None:
        super().__init__(reason)
        self.entry = entry
        self.reason = reason


class FairQueue:
    """Call `bring_in` and `dispatch` until both return None whenever something has changed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside: set[Entry] = set()
        self._slots: dict[VersionKey, Slot] = {}
        self._waiting: dict[str, Flow] = {}  # the flows with entries that wait
        self._served: OrderedDict[str, Flow] = OrderedDict()  # the others, the last idle at the end
        self._dispatches = 0
        self._tokens = 0
        self._calls = 0

    # ---- what waits

    @property
    def calls(self) -> int:
        return self._calls

    @property
    def tokens(self) -> int:
        """Prompt tokens that wait."""
        return self._tokens

    def waiting(self) -> Iterator[Entry]:
        for flow in self._waiting.values():
            yield from flow.waiting

    def room_for(self, flow: str, tokens: int = 0) -> str | None:
        """Why a further entry of `flow` would be refused at once; None if it would not be."""
        reason = self._overflow(tokens)
        if reason is None or self._longer_than(flow) is not None:
            return None
        return reason

    def _overflow(self, tokens: int) -> str | None:
        if self._calls >= self.limits.calls:
            return "calls"
        if self._calls and self._tokens + tokens > self.limits.tokens:
            return "tokens"
        return None

    def _longer_than(self, flow: str) -> Flow | None:
        """The flow with the most waiting calls, if it has more than `flow` would have."""
        own = len(self._waiting[flow].waiting) if flow in self._waiting else 0
        longest = max(self._waiting.values(), key=lambda each: len(each.waiting))
        return longest if len(longest.waiting) > own + 1 else None

    def join(self, entry: Entry, now: float) -> list[Entry]:
        """Let it wait. Returns the entries of longer flows that must leave to make room for it.

        Raises QueueFull if the entry itself is refused.
        """
        removed: list[Entry] = []
        while (reason := self._overflow(entry.prompt)) is not None:
            longer = self._longer_than(entry.flow)
            if longer is None:
                raise QueueFull(entry, reason)
            self.leave(last := longer.waiting[-1])
            removed.append(last)
        entry.joined = now
        self._wait(entry, now)
        return removed

    def _wait(self, entry: Entry, now: float) -> None:
        flow = self._waiting.get(entry.flow)
        if flow is None:
            flow = self._served.pop(entry.flow, None) or Flow()
            # No more than a little credit for the time that it was away.
            flow.counter = max(flow.counter, self._least_counter() - self.limits.credit)
            flow.unserved_since = now
            self._waiting[entry.flow] = flow
        flow.waiting.append(entry)
        self._calls += 1
        self._tokens += entry.prompt

    def _least_counter(self) -> float:
        busy = [flow.counter for flow in self._waiting.values()]
        busy = busy or [flow.counter for flow in self._served.values() if flow.inside]
        return min(busy, default=0.0)

    def leave(self, entry: Entry) -> None:
        """It waits no more: its caller has hung up, or it is refused. Idempotent."""
        flow = self._waiting.get(entry.flow)
        if flow is not None and entry in flow.waiting:
            flow.waiting.remove(entry)
            self._left(entry, flow)

    def _left(self, entry: Entry, flow: Flow) -> None:
        self._calls -= 1
        self._tokens -= entry.prompt
        if not flow.waiting:
            del self._waiting[entry.flow]
            self._served[entry.flow] = flow
            while len(self._served) > _IDLE_FLOWS:
                idle = next((name for name, each in self._served.items() if not each.inside), None)
                if idle is None:
                    break
                del self._served[idle]

    def _flow(self, name: str) -> Flow | None:
        return self._waiting.get(name) or self._served.get(name)

    # ---- what is inside

    def charge(self, entry: Entry, cost: float) -> None:
        """Add to what the entry's flow was served (`PROMPT_TOKEN`, `OUTPUT_TOKEN`)."""
        if (flow := self._flow(entry.flow)) is not None:
            flow.counter += cost / entry.weight

    def end(self, entry: Entry) -> None:
        """An entry that was inside has left the engine."""
        self.inside.discard(entry)
        if (flow := self._flow(entry.flow)) is not None:
            flow.inside -= 1
        if entry.adapter is not None and (slot := self._slots.get(entry.adapter)) is not None:
            slot.inside.discard(entry)

    def loaded(self, adapter: VersionKey) -> None:
        """The adapter that `bring_in` returned can be used."""
        self._slots[adapter].is_loaded = True

    def not_loaded(self, adapter: VersionKey) -> list[Entry]:
        """It could not be loaded: these entries waited for it, and leave."""
        del self._slots[adapter]
        lost = [entry for entry in self.waiting() if entry.adapter == adapter]
        for entry in lost:
            self.leave(entry)
        return lost

    def release_idle(self) -> list[VersionKey]:
        """Free the slots that nothing uses or waits for; returns their adapters."""
        wanted = {flow.waiting[0].adapter for flow in self._waiting.values()}
        idle = [
            adapter
            for adapter, slot in self._slots.items()
            if slot.is_loaded and not slot.inside and (slot.is_draining or adapter not in wanted)
        ]
        for adapter in idle:
            del self._slots[adapter]
        return idle

    def clear_slots(self) -> None:
        """The engine has ended, and all that was inside with it."""
        self._slots.clear()

    # ---- decisions

    def bring_in(self, now: float) -> Entry | None:
        """The entry whose adapter is to be loaded now; starts to drain a slot if none is free."""
        entry, _ = self._first(now, lambda each: self._is_out(each) and self._has_slot_for(each))
        if entry is not None and entry.adapter is not None:
            self._slots[entry.adapter] = Slot(since=now)
            return entry
        entry, rank = self._first(now, self._is_out)
        if entry is not None:
            self._drain(entry, rank, now)
        return None

    def dispatch(self, now: float) -> Entry | None:
        """The entry that enters the engine now."""
        if sum(entry.running for entry in self.inside) >= self.limits.sequences:
            return None
        entry, _ = self._first(now, self._is_open)
        if entry is None or not self._fits(entry):
            return None
        flow = self._waiting[entry.flow]
        flow.waiting.popleft()
        self._left(entry, flow)
        self._dispatches += 1
        flow.served, flow.unserved_since = self._dispatches, now
        flow.inside += 1
        entry.running, entry.prefilling = entry.sequences, True
        self.inside.add(entry)
        if entry.adapter is not None:
            slot = self._slots[entry.adapter]
            slot.inside.add(entry)
            slot.served = True
        self.charge(entry, PROMPT_TOKEN * entry.prompt)
        return entry

    def _first(self, now: float, is_wanted: Callable[[Entry], bool]) -> tuple[Entry | None, Rank]:
        best, least = None, _LAST
        for flow in self._waiting.values():
            if is_wanted(flow.waiting[0]):
                rank = flow.rank(now, self.limits.wait_seconds)
                if rank < least:
                    best, least = flow.waiting[0], rank
        return best, least

    def _is_open(self, entry: Entry) -> bool:
        if entry.adapter is None:
            return True
        slot = self._slots.get(entry.adapter)
        return slot is not None and slot.is_loaded and not slot.is_draining

    def _fits(self, entry: Entry) -> bool:
        prefill = sum(each.prompt for each in self.inside if each.prefilling)
        return not prefill or prefill + entry.prompt <= self.limits.prefill_tokens

    def _is_out(self, entry: Entry) -> bool:
        return entry.adapter is not None and entry.adapter not in self._slots

    def _has_slot_for(self, entry: Entry) -> bool:
        if entry.adapter is None or len(self._slots) >= self.limits.adapters:
            return False
        is_pinned = self.limits.is_pinned(entry.adapter)
        return is_pinned or self._unpinned_inside() < self.limits.unpinned()

    def _unpinned_inside(self) -> int:
        return sum(not self.limits.is_pinned(each) for each in self._slots)

    def _drain(self, entry: Entry, rank: Rank, now: float) -> None:
        """Close the slot with the least work left for `entry`, unless enough are closed already."""
        draining = sum(slot.is_draining for slot in self._slots.values())
        if draining >= min(self._adapters_without_slot(), max(1, self.limits.adapters // 2)):
            return
        if now - self._waiting[entry.flow].unserved_since < self.limits.slot_seconds:
            return
        only_unpinned = len(self._slots) < self.limits.adapters
        closable = [
            (slot.left, adapter)
            for adapter, slot in self._slots.items()
            if slot.served
            and not slot.is_draining
            and (not slot.inside or now - slot.since >= self.limits.slot_seconds)
            and not (only_unpinned and self.limits.is_pinned(adapter))
            and self._rank_of(adapter, now) > rank
        ]
        if closable:
            _, adapter = min(closable, key=lambda each: each[0])
            self._slots[adapter].is_draining = True

    def _adapters_without_slot(self) -> int:
        heads = {flow.waiting[0].adapter for flow in self._waiting.values()}
        return len(heads - self._slots.keys() - {None})

    def _rank_of(self, adapter: VersionKey, now: float) -> Rank:
        return self._first(now, lambda each: each.adapter == adapter)[1]
