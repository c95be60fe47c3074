"""The order in which calls enter the engine: fair among flows, and among adapters for its slots.

A flow is one caller's use of one adapter. Each has a counter of the tokens it was served, divided
by its weight (virtual token counters: Sheng et al., arXiv 2401.00588). Next is the waiting flow
whose counter would be the smallest after its next call (finish tags, as in weighted fair queueing),
so that a short call does not wait behind a crowd of long ones. Adapters that are inside go on while
others wait for a slot, but not for long: the slot with the least work left is drained for the flow
that waits (locality within a bound: Cao et al., arXiv 2501.14312). Pure bookkeeping: no clock, no
event loop, no engine.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapters.catalog import VersionKey

PROMPT_TOKEN = 1.0  # what a token costs a flow; as in the paper
OUTPUT_TOKEN = 2.0
_EXPECTED_TOKENS = 256  # of an answer, at most: few reach their limit
_IDLE_FLOWS = 4096  # whose counters are remembered
_MOMENT_SECONDS = 1.0  # idle for less is not away

Rank = tuple[float, ...]  # smaller is sooner
_LAST: Rank = (math.inf,)


@dataclass(slots=True)
class Limits:
    """What may be inside the engine, and wait for it, at once; times are in seconds.

    `adapters` are distinct ones, of which at most `unpinned()` are not pinned, and at most `sums`
    are sums of adapters. `slot_seconds` is
    the least time that an adapter keeps its slot while others wait for one, and the least time that
    they wait. A flow that is not served for `wait_seconds` has every second turn; with all of them,
    a crowd that waits for long would be served first come, first served. One that was
    idle for a moment comes back at most `credit` tokens behind the others.
    """

    sequences: int
    adapters: int
    prefill_tokens: int
    sums: float = math.inf
    calls: int = 1024
    tokens: int = 1 << 20
    credit: float = 1000.0
    wait_seconds: float = 30.0
    slot_seconds: float = 0.5
    is_pinned: Callable[[VersionKey], bool] = lambda _: False
    is_sum: Callable[[VersionKey], bool] = lambda _: False
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
    member: str = ""  # who asks, of those that share the flow
    joined: float = 0.0  # when it began to wait
    running: int = 0  # sequences inside
    prefilling: bool = False  # inside, without a first token

    @property
    def cost(self) -> float:
        """What it is expected to be charged, before it enters."""
        output = min(self.left, self.sequences * _EXPECTED_TOKENS)
        return (PROMPT_TOKEN * self.prompt + OUTPUT_TOKEN * output) / self.weight


@dataclass(slots=True, eq=False)
class Flow:
    counter: float = 0.0
    waiting: deque[Entry] = field(default_factory=deque)
    tokens: int = 0  # of the prompts that wait
    inside: int = 0
    unserved_since: float = 0.0  # its last dispatch, or when it began to wait
    ended: float = -math.inf  # when it last had nothing inside any more
    served: int = 0  # number of the dispatch that served it last


@dataclass(slots=True, eq=False)
class Slot:
    """An adapter that is inside the engine or on its way in."""

    since: float  # its first use, once it was `served`
    is_loaded: bool = False
    is_draining: bool = False
    inside: set[Entry] = field(default_factory=set)
    served: bool = False

    @property
    def left(self) -> int:
        return sum(entry.left for entry in self.inside)


def _take_turn(waiting: deque[Entry], entry: Entry) -> None:
    """Those who share a flow take turns: an entry waits behind as many of each other's as wait of
    its own."""
    own = sum(each.member == entry.member for each in waiting)
    turns: Counter[str] = Counter()
    for place, each in enumerate(waiting):
        turns[each.member] += 1
        if turns[each.member] > own + 1:
            waiting.insert(place, entry)
            return
    waiting.append(entry)


class QueueFull(Exception):
    """Too many `calls` or `tokens` (its text) wait, and no flow has more of them than this one."""


class FairQueue:
    """Call `bring_in` and `dispatch` until both return None whenever something has changed."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside: set[Entry] = set()
        self._slots: dict[VersionKey, Slot] = {}
        self._waiting: dict[str, Flow] = {}  # the flows with entries that wait
        self._served: OrderedDict[str, Flow] = OrderedDict()  # the others, the last idle at the end
        self._floor = 0.0  # the least counter of those that waited last: others come back near it
        self._dispatches = 0
        self._by_age = False  # whether the last one had waited too long
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
        if reason is None or self._larger_than(flow, reason) is not None:
            return None
        return reason

    def _overflow(self, tokens: int) -> str | None:
        if self._calls >= self.limits.calls:
            return "calls"
        if self._calls and self._tokens + tokens > self.limits.tokens:
            return "tokens"
        return None

    def _larger_than(self, name: str, reason: str) -> Flow | None:
        """The flow with the most waiting calls or tokens, if it has more than `name` has.

        Each flow keeps one call.
        """
        own = self._waiting.get(name) or Flow()
        if reason == "calls":
            largest = max(self._waiting.values(), key=lambda each: len(each.waiting))
            return largest if len(largest.waiting) > len(own.waiting) + 1 else None
        several = (each for each in self._waiting.values() if len(each.waiting) > 1)
        largest = max(several, key=lambda each: each.tokens, default=own)
        return largest if largest.tokens > own.tokens else None

    def join(self, entry: Entry, now: float) -> list[Entry]:
        """Let it wait. Returns the entries of larger flows that must leave to make room for it.

        Raises QueueFull if the entry itself is refused.
        """
        removed: list[Entry] = []
        while (reason := self._overflow(entry.prompt)) is not None:
            larger = self._larger_than(entry.flow, reason)
            if larger is None and removed:
                break  # over by one prompt: better than to refuse them for nothing
            if larger is None:
                raise QueueFull(reason)
            self.leave(last := larger.waiting[-1])
            removed.append(last)
        entry.joined = now
        _take_turn(self._wait(entry, now).waiting, entry)
        return removed

    def rejoin(self, entry: Entry, now: float) -> None:
        """Let one wait that was inside an engine which has ended: before the others of its flow.

        It is never refused.
        """
        entry.joined = now
        self._wait(entry, now).waiting.appendleft(entry)

    def _wait(self, entry: Entry, now: float) -> Flow:
        flow = self._waiting.get(entry.flow)
        if flow is None:
            self._raise_floor()
            flow = self._served.pop(entry.flow, None) or Flow()
            # A flow that was away gets no credit for that time. One that is idle for a moment, as
            # a closed loop is between two calls, keeps what it was due, up to a bound.
            is_back = not flow.inside and now - flow.ended > _MOMENT_SECONDS
            credit = 0.0 if is_back else self.limits.credit
            flow.counter = max(flow.counter, self._floor - credit)
            flow.unserved_since = now
            self._waiting[entry.flow] = flow
        flow.tokens += entry.prompt
        self._calls += 1
        self._tokens += entry.prompt
        return flow

    def _raise_floor(self) -> None:
        """Up to the least counter of those that wait, or else of those inside.

        Never down: each of many that come would else begin before the one that came last.
        """
        busy = self._waiting or {each.flow: self._served[each.flow] for each in self.inside}
        self._floor = max(self._floor, min((each.counter for each in busy.values()), default=0.0))

    def leave(self, entry: Entry) -> None:
        """It waits no more: its caller has hung up, or it is refused. Idempotent."""
        flow = self._waiting.get(entry.flow)
        if flow is not None and entry in flow.waiting:
            flow.waiting.remove(entry)
            self._left(entry, flow)

    def _left(self, entry: Entry, flow: Flow) -> None:
        flow.tokens -= entry.prompt
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

    def end(self, entry: Entry, now: float) -> None:
        """An entry that was inside has left the engine. Idempotent."""
        if entry not in self.inside:
            return
        if not self._waiting:  # it may be the last one, after which nothing tells the floor
            self._raise_floor()
        self.inside.remove(entry)
        if (flow := self._flow(entry.flow)) is not None:
            flow.inside -= 1
            flow.ended = now
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
        if len(self._slots) < self.limits.adapters:
            entry, _ = self._first(now, self._may_come())
            if entry is not None and entry.adapter is not None:
                self._slots[entry.adapter] = Slot(since=now)
                return entry
        entry, rank = self._first(now, self._is_out)
        if entry is not None:
            self._drain(entry, rank, now)
        else:
            for slot in self._slots.values():
                slot.is_draining = False  # whoever waited for it has hung up, or has another
        return None

    def dispatch(self, now: float) -> Entry | None:
        """The entry that enters the engine now."""
        if sum(entry.running for entry in self.inside) >= self.limits.sequences:
            return None
        entry, rank = self._first(now, self._is_open)
        if entry is None or not self._fits(entry):
            return None
        self._by_age = rank[0] == 0
        flow = self._waiting[entry.flow]
        flow.waiting.popleft()
        flow.inside += 1  # before `_left`, which forgets flows that have nothing inside
        self._left(entry, flow)
        self._dispatches += 1
        flow.served, flow.unserved_since = self._dispatches, now
        entry.running, entry.prefilling = entry.sequences, True
        self.inside.add(entry)
        if entry.adapter is not None:
            slot = self._slots[entry.adapter]
            slot.inside.add(entry)
            if not slot.served:
                slot.served, slot.since = True, now
        self.charge(entry, PROMPT_TOKEN * entry.prompt)
        return entry

    def _first(self, now: float, is_wanted: Callable[[Entry], bool]) -> tuple[Entry | None, Rank]:
        best, least = None, _LAST
        for flow in self._waiting.values():
            if is_wanted(flow.waiting[0]) and (rank := self._rank(flow, now)) < least:
                best, least = flow.waiting[0], rank
        return best, least

    def _rank(self, flow: Flow, now: float) -> Rank:
        if not self._by_age and now - flow.unserved_since >= self.limits.wait_seconds:
            return (0, flow.unserved_since, flow.served)
        return (1, flow.counter + flow.waiting[0].cost, flow.served)

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

    def _may_come(self) -> Callable[[Entry], bool]:
        """Whether a free slot is for an entry's adapter too."""
        is_pinned = self.limits.is_pinned
        unpinned = sum(not is_pinned(each) for each in self._slots)
        only_pinned = unpinned >= self.limits.unpinned()
        no_sum = self._sums_are_full()

        def may_come(entry: Entry) -> bool:
            if entry.adapter is None or not self._is_out(entry):
                return False
            if no_sum and self.limits.is_sum(entry.adapter):
                return False
            return not only_pinned or is_pinned(entry.adapter)

        return may_come

    def _sums_are_full(self) -> bool:
        return sum(self.limits.is_sum(each) for each in self._slots) >= self.limits.sums

    def _drain(self, entry: Entry, rank: Rank, now: float) -> None:
        """Close the slot with the least work left for `entry`, unless enough are closed already."""
        if now - self._waiting[entry.flow].unserved_since < self.limits.slot_seconds:
            return
        ranks = self._ranks(now)
        draining = sum(slot.is_draining for slot in self._slots.values())
        without_slot = len(ranks.keys() - self._slots.keys() - {None})
        if draining >= min(without_slot, max(1, self.limits.adapters // 2)):
            return
        assert entry.adapter is not None
        only_sums = self.limits.is_sum(entry.adapter) and self._sums_are_full()
        only_unpinned = len(self._slots) < self.limits.adapters
        closable = [
            (slot.left, adapter)
            for adapter, slot in self._slots.items()
            if slot.served
            and not slot.is_draining
            and (not slot.inside or now - slot.since >= self.limits.slot_seconds)
            and not (only_unpinned and self.limits.is_pinned(adapter))
            and (self.limits.is_sum(adapter) or not only_sums)
            and ranks.get(adapter, _LAST) > rank
        ]
        if closable:
            _, adapter = min(closable, key=lambda each: each[0])
            self._slots[adapter].is_draining = True

    def _ranks(self, now: float) -> dict[VersionKey | None, Rank]:
        """Those of the adapters that flows wait for: each that of its first flow."""
        ranks: dict[VersionKey | None, Rank] = {}
        for flow in self._waiting.values():
            adapter = flow.waiting[0].adapter
            rank = self._rank(flow, now)
            ranks[adapter] = min(rank, ranks.get(adapter, _LAST))
        return ranks
