"""The replicas that take calls now, as this process knows them.

A module of its own: Ray pickles the router's module by value, so that a router's globals are not
those of the process that it runs in, but what it imports is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Member:
    """A replica that takes calls: what it says of itself (`record_replica_metadata`)."""

    name: str
    url: str
    base: str
    capacity: int


class Membership:
    """The replicas of one deployment: Ray's thread writes them, the gateway's event loop reads."""

    def __init__(self) -> None:
        self.members: tuple[Member, ...] = ()
        self._waiting: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}

    def tell(self, members: Sequence[Member]) -> None:
        """Called from any thread."""
        self.members = tuple(sorted(members, key=lambda each: each.name))
        for event, loop in tuple(self._waiting.items()):
            loop.call_soon_threadsafe(event.set)

    async def wait(self) -> tuple[Member, ...]:
        """The members, once there are any."""
        if members := self.members:
            return members
        event = asyncio.Event()
        self._waiting[event] = asyncio.get_running_loop()
        try:
            while not (members := self.members):
                await event.wait()
                event.clear()
        finally:
            del self._waiting[event]
        return members


_memberships: dict[str, Membership] = {}  # by deployment, of this process


def membership(deployment: str) -> Membership:
    """What this process knows of a deployment with an AdapterRouter, once a handle asks for it."""
    return _memberships.setdefault(deployment, Membership())
