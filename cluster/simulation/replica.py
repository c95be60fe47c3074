"""One server of the simulation: calls wait for a place, a slot and their adapter, then run."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf
from typing import Final

from cluster.simulation.machine import Machine

Schedule = Callable[[float, Callable[[float], None]], None]


@dataclass(slots=True, eq=False)
class Call:
    """A call to an adapter, or to the base (None). Times are seconds of the simulation."""

    arrived: float
    adapter: str | None
    tokens: float
    replica: str = ""
    started: float = inf
    was_resident: bool = False  # its adapter, when the call got its place
    was_cut: bool = False  # it had begun when its replica died


@dataclass(slots=True)
class Steps:
    """Sequences that run together. All get their next token at the same time, so one number, the
    tokens that a sequence would have which ran all the time, says how far each of them is."""

    machine: Machine
    adapters: Counter[str] = field(default_factory=Counter)
    _progress: float = 0.0
    _seen: float = 0.0
    _running: list[tuple[float, int, Call]] = field(default_factory=list)
    _number: int = 0

    def __len__(self) -> int:
        return len(self._running)

    def advance(self, now: float) -> None:
        if self._running:
            self._progress += (now - self._seen) / self._step()
        self._seen = now

    def add(self, call: Call) -> None:
        self._number += 1
        heappush(self._running, (self._progress + call.tokens, self._number, call))
        if call.adapter is not None:
            self.adapters[call.adapter] += 1

    def end_first(self) -> None:
        """Take out the call that ends first."""
        _, _, call = heappop(self._running)
        if call.adapter is not None:
            self.adapters[call.adapter] -= 1
            if not self.adapters[call.adapter]:
                del self.adapters[call.adapter]

    def cut(self) -> None:
        for _, _, call in self._running:
            call.was_cut = True

    def seconds_left(self) -> float:
        """Until the next call ends, if none joins."""
        return max(0.0, self._running[0][0] - self._progress) * self._step()

    def _step(self) -> float:
        return self.machine.step(len(self._running), len(self.adapters))


class SimulatedReplica:
    """First come, first served; a call whose adapter lacks a slot is passed by those that have one.
    After `patience_seconds` the slot with the fewest calls takes no more, as in Lorry's gate.
    """

    def __init__(self, name: str, machine: Machine, schedule: Schedule) -> None:
        self.name: Final = name
        self.capacity: Final = float(machine.sequences)
        self.loads: list[float] = []  # when each began
        self._machine = machine
        self._schedule = schedule
        self._turn = 0
        self._forget()

    def _forget(self) -> None:
        self.in_flight = 0
        self.steps = Steps(self._machine)
        self._waiting: deque[Call] = deque()
        self._loading: dict[str, list[Call]] = {}
        self._resident: OrderedDict[str, None] = OrderedDict()  # the least recently used first
        self._draining: str | None = None
        self._turn += 1

    def take(self, call: Call, now: float) -> None:
        call.replica = self.name
        self.in_flight += 1
        self._waiting.append(call)
        self._go_on(now)

    def die(self) -> list[Call]:
        """Lose everything. Returns the calls that had not begun, which others may answer."""
        self.steps.cut()
        left = [*self._waiting, *(call for calls in self._loading.values() for call in calls)]
        self._forget()
        return left

    def _go_on(self, now: float) -> None:
        """Start what can start; come back when the next call ends, unless something else comes."""
        self.steps.advance(now)
        self._admit(now)
        self._turn += 1
        if len(self.steps):
            turn = self._turn
            self._schedule(now + self.steps.seconds_left(), lambda at: self._end_call(at, turn))

    def _end_call(self, now: float, turn: int) -> None:
        if turn != self._turn:
            return
        self.steps.advance(now)
        self.steps.end_first()
        self.in_flight -= 1
        if self._draining not in self.steps.adapters:
            self._draining = None
        self._go_on(now)

    def _admit(self, now: float) -> None:
        passed: list[Call] = []
        while self._waiting and self._occupied() < self._machine.sequences:
            call = self._waiting.popleft()
            if self._has_slot(call.adapter):
                self._start(call, now)
                continue
            passed.append(call)
            if self._draining is None and now - call.arrived >= self._machine.patience_seconds:
                slots = self.steps.adapters
                self._draining = min(slots, key=slots.__getitem__, default=None)
        self._waiting.extendleft(reversed(passed))

    def _occupied(self) -> int:
        return len(self.steps) + sum(map(len, self._loading.values()))

    def _has_slot(self, adapter: str | None) -> bool:
        if adapter is None or adapter in self._loading:
            return True
        if adapter in self.steps.adapters:
            return adapter != self._draining
        return len(self.steps.adapters) + len(self._loading) < self._machine.slots

    def _start(self, call: Call, now: float) -> None:
        adapter = call.adapter
        call.was_resident = adapter is None or adapter in self._resident
        if adapter is None or call.was_resident:
            self._run(call, now)
        elif adapter in self._loading:
            self._loading[adapter].append(call)
        else:
            self._load(adapter, [call], now)

    def _load(self, adapter: str, calls: list[Call], now: float) -> None:
        self.loads.append(now)
        self._loading[adapter] = calls
        if len(self._resident) + len(self._loading) > self._machine.places:
            coldest = next(each for each in self._resident if each not in self.steps.adapters)
            del self._resident[coldest]

        def loaded(at: float) -> None:
            if self._loading.get(adapter) is calls:  # else the replica died meanwhile
                self._loaded(adapter, at)

        self._schedule(now + self._machine.load_seconds, loaded)

    def _loaded(self, adapter: str, now: float) -> None:
        self.steps.advance(now)
        for call in self._loading.pop(adapter):
            self._run(call, now)
        self._go_on(now)

    def _run(self, call: Call, now: float) -> None:
        call.started = now
        self.steps.add(call)
        if call.adapter is not None:
            self._resident[call.adapter] = None
            self._resident.move_to_end(call.adapter)
