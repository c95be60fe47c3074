"""What the gateway asks of whatever picks replicas for it (cluster/routing.py, on Ray)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Target:
    """A replica: its name, and where its HTTP is."""

    name: str
    url: str


class NoReplica(Exception):
    """No replica takes calls now."""


class Picker(Protocol):
    @property
    def in_flight(self) -> Mapping[str, int]:
        """Calls of this gateway by the replica's name; without those that have none."""

    def pick(
        self, model: str | None, avoided: Collection[str], within: float
    ) -> AbstractAsyncContextManager[Target]:
        """A replica for one call, which counts there until the block ends.

        `model` is what the call says; None goes to the least loaded. Avoided replicas are picked
        only if there are no others. Raises NoReplica after `within` seconds without one.
        """

    def suspect(self, name: str) -> None:
        """A call to this replica failed: others are picked first for a while."""

    @property
    def targets(self) -> Sequence[Target]:
        """All replicas that take calls now, by name."""
