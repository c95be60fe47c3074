"""What the load generator's parent and its processes say to one another, one JSON line each.

The parent gives its order, and then for each phase Prepare and Begin. The worker answers Prepared,
Reports as long as the phase runs, and Drained.
"""

from __future__ import annotations

from typing import Any

import msgspec

from loadtest.drive.client import Target
from loadtest.records import Record


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What stays the same for all phases. It holds secrets: it travels by a pipe only."""

    scenario: dict[str, Any]
    models: list[str]  # of the run's adapters, by number
    base: str
    target: Target
    index: int
    processes: int


class Prepare(msgspec.Struct, frozen=True, tag="prepare"):
    """Plan this phase, which takes its time."""

    phase: str


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """The phase that was prepared begins at `at` (seconds of the clock that all share)."""

    at: float


class Prepared(msgspec.Struct, frozen=True, tag="prepared"):
    pass


class Report(msgspec.Struct, frozen=True, tag="report"):
    """How the phase stands, and what is new since the last report."""

    sent: int  # calls of the phase so far
    in_flight: int
    records: list[Record]
    lag: list[float]


class Drained(msgspec.Struct, frozen=True, tag="drained"):
    """Every call of the phase has ended and has been reported."""

    cpu_seconds: float  # of the process since its start


ToWorker = Prepare | Begin
FromWorker = Prepared | Report | Drained


def to_line(message: Order | ToWorker | FromWorker) -> bytes:
    return msgspec.json.encode(message) + b"\n"
