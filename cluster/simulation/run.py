"""One run: replicas, seeded calls, and a way to place them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Final

from cluster.placement import BOUND, choose
from cluster.simulation.machine import Machine
from cluster.simulation.replica import Call, SimulatedReplica
from cluster.simulation.traffic import TOKENS, Traffic

Policy = Callable[[str | None, Sequence[SimulatedReplica]], SimulatedReplica]

PHASES: Final = (
    "steady",
    "a tenth of the replicas dies",
    "they return, empty",
    "one adapter surges",
)
_DEATHS, _RETURN, _SURGE = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Plan:
    """A fleet and what happens to it: a phase to warm up, then those of PHASES."""

    seed: int = 1
    replicas: int = 100
    adapters: int = 10_000
    load: float = 0.7  # of the tokens/s with all sequences and slots in use
    phase_seconds: float = 30.0
    machine: Machine = field(default_factory=Machine)

    def begin(self, phase: int) -> float:
        """Seconds; of the phase after the last: the end."""
        return (1 + phase) * self.phase_seconds

    @property
    def seconds(self) -> float:
        return self.begin(len(PHASES))

    @property
    def names(self) -> list[str]:
        return [f"replica-{number:03}" for number in range(self.replicas)]

    def names_up(self, phase: int) -> list[str]:
        """Most machines fail alone; a rack, a zone or a bad rollout takes several."""
        return self.names[max(1, self.replicas // 10) :] if phase == _DEATHS else self.names

    def traffic(self) -> Traffic:
        rate = self.load * self.replicas * self.machine.tokens_per_second / TOKENS
        return Traffic(self.seed, rate, self.adapters, surge_at=self.begin(_SURGE))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of each call, and when loads began."""

    calls: list[Call]
    loads: list[float]


def policies(seed: int, bound: float = BOUND) -> dict[str, Policy]:
    """The ways to place a call that are compared."""
    draw = random.Random(seed)
    return {
        "random": lambda _, replicas: draw.choice(replicas),
        "least loaded": lambda _, replicas: choose(None, replicas),
        "plain affinity": partial(choose, bound=inf),
        "bounded affinity": partial(choose, bound=bound),
    }


def simulate(plan: Plan, policy: Policy) -> Outcome:
    """Discrete events: arrivals in order, and a heap of what the replicas expect."""
    run = _Run(plan, policy)
    calls = []
    for call in plan.traffic().calls(plan.seconds):
        run.advance(call.arrived)
        run.place(call, call.arrived)
        calls.append(call)
    run.advance(inf)  # no more calls come: all that wait are answered
    return Outcome(calls, sorted(at for each in run.replicas for at in each.loads))


class _Run:
    def __init__(self, plan: Plan, policy: Policy) -> None:
        self._policy = policy
        self._events: list[tuple[float, int, Callable[[float], None]]] = []
        self._numbers = count()
        self.replicas = [SimulatedReplica(each, plan.machine, self._at) for each in plan.names]
        self._up = self.replicas
        for phase in range(len(PHASES)):
            self._at(plan.begin(phase), partial(self._set_up, set(plan.names_up(phase))))

    def _at(self, when: float, what: Callable[[float], None]) -> None:
        heappush(self._events, (when, next(self._numbers), what))

    def advance(self, until: float) -> None:
        while self._events and self._events[0][0] <= until:
            when, _, what = heappop(self._events)
            what(when)

    def place(self, call: Call, now: float) -> None:
        self._policy(call.adapter, self._up).take(call, now)

    def _set_up(self, names: set[str], now: float) -> None:
        dying = [each for each in self._up if each.name not in names]
        self._up = [each for each in self.replicas if each.name in names]
        for replica in dying:
            for call in replica.die():
                self.place(call, now)
