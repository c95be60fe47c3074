"""What the server asks of an engine, how an engine fails, and the names it knows adapters by.

`server/engine/client.py` is the real one. Nothing here imports vLLM, so everything above the
engine can be tested with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from adapters.catalog import AdapterVersion
from server.call import Call, Lease


class EngineRefusal(Exception):
    """The engine read the adapter and refused it."""


class EngineGone(Exception):
    """The engine died or did not answer in time."""


class EngineSlow(EngineGone):
    """The engine did not answer in time; it may still live."""


@dataclass(frozen=True, slots=True)
class Death:
    """How an engine has ended."""

    cause: str  # for people
    from_outside: bool  # someone has ended its process: no request is to blame
    inside: tuple[Call, ...]  # the calls that had a request in it


@dataclass(frozen=True, slots=True)
class Work:
    """What one request asks of the engine; `tokens` is the most that each answer may have."""

    request_id: str  # vLLM's, which its sequences carry
    prompt: int  # tokens
    sequences: int
    tokens: int
    is_again: bool = False  # it was inside an engine that has ended: it is never refused


class Admission(Protocol):
    """In what order requests enter the engine."""

    def enter(self, call: Call, work: Work) -> AbstractAsyncContextManager[Lease | None]:
        """Wait for the turn, then hold the call's adapter (None: the base) for the block.

        Raises RequestError: too many wait already, or its adapter can't be loaded.
        """

    def check_room(self, call: Call) -> None:
        """Raises QueueIsFull if a request of this call would be refused at once."""

    def step_made(self) -> None:
        """The engine has made a step."""

    def engine_lost(self) -> None:
        """The engine has ended, and its adapters with it: none enters until `engine_back`."""

    def engine_back(self) -> None:
        """A new engine is there."""

    def engine_ended(self) -> None:
        """The engine does not come back: refuse all that wait."""


class AdapterEngine(Protocol):
    """Adapters in and out of an engine. `within` is a limit in seconds."""

    @property
    def max_sequences(self) -> int:
        """How many sequences it runs at once."""

    def admit_by(self, admission: Admission) -> None:
        """Let `admission` decide which request enters next."""

    def make_request(self, engine_name: str, integer_id: int, path: Path) -> Any:
        """vLLM's LoRARequest for the adapter in the folder `path`."""

    async def add_adapter(self, request: Any, leaving: Sequence[int], within: float) -> None:
        """Load it in the place of the ids in `leaving`; raises EngineRefusal or EngineGone."""

    async def remove_adapter(self, integer_id: int, within: float) -> None:
        """Remove it; an id that was never there is no error. Raises EngineGone."""

    async def held_adapters(self, within: float) -> Mapping[str, list[int]]:
        """The integer ids in host memory ("host") and in slots ("device"); raises EngineGone."""

    async def slot_changes(self, within: float) -> Mapping[str, list[str]] | None:
        """The engine-side names in slots now ("device"), and those that lost their slot since the
        last time this was asked ("displaced"); None where the engine can't say. Raises EngineGone.
        """

    async def ping(self) -> None:
        """Return when the engine's loop, between two steps, has answered; raises EngineGone."""

    def kill(self) -> None:
        """End the engine's process, which hangs."""

    def is_using(self, engine_name: str) -> bool:
        """Whether a request that runs or waits in the engine carries this adapter."""


def engine_name(version: AdapterVersion, integer_id: int) -> str:
    """The LoRARequest.lora_name of one load: unique per version and load, never used again."""
    return f"{version.label}#{version.digest[7:19]}.{integer_id}"


def label_of(engine_name: str) -> str:
    """NAME@VERSION of an engine-side name."""
    return engine_name.partition("#")[0]
