"""Which replicas there are, as Ray pushes it, and which of them a call goes to.

Ray Serve asks a deployment's `RequestRouter` for each call that goes through Ray, and tells it of
every replica that comes, goes or drains. Our calls do not go through Ray: the gateway chooses by
cluster/placement.py, in its own memory, and sends the bytes itself (decision 25).
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle
from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from cluster import placement
from cluster.gateway.picking import NoReplica, Target
from cluster.membership import Member, membership

logger = logging.getLogger("lorry.gateway.routing")

# Of an adapter (adapters/names.py); a sum goes by its first part.
_NAME = re.compile(r"\s*([A-Za-z0-9][A-Za-z0-9._-]{0,127})(?:[@*+\s]|$)")
_LOOK_SECONDS = 1.0  # between two questions for a deployment that is not there yet
_SUSPECT_SECONDS = 5.0  # for which a replica that failed a call is the last choice


class AdapterRouter(RequestRouter):
    """Tells the gateway which replicas there are."""

    def initialize_state(self, *, deployment: str) -> None:  # type: ignore[override]
        """Ray calls it with `RequestRouterConfig.request_router_kwargs`."""
        self._membership = membership(deployment)

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        super().update_replicas(replicas)
        members = [Member(**each.replica_metadata) for each in replicas if each.replica_metadata]
        self._membership.tell(members)

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """Any of them: only the handle's own questions come here."""
        return [candidate_replicas]


@dataclass(frozen=True, slots=True)
class _Loaded:
    """What placement knows of a member."""

    member: Member
    in_flight: int

    @property
    def name(self) -> str:
        return self.member.name

    @property
    def capacity(self) -> int:
        return self.member.capacity


def adapter_of(model: str | None, base: str) -> str | None:
    """The name that placement hashes: the adapter's without base and version.

    None is the base, and what no adapter's name can begin with: placement remembers names, and
    whoever sends one may have no key.
    """
    if model is None or model == base:
        return None
    found = _NAME.match(model.removeprefix(f"{base}:"))
    return found[1] if found else None


async def follow(application: str, deployment: str) -> None:
    """Have Ray tell this process of a deployment's replicas from now on.

    Waits for the deployment: applications of one config come up in any order.
    """
    while True:
        try:
            # Its router is made by the first question.
            handle: DeploymentHandle[Any] = serve.get_deployment_handle(deployment, application)
            await handle.broadcast("describe").results_async(return_exceptions=True)
        except Exception as error:  # noqa: BLE001 - Ray's, of several kinds, until it is there
            logger.debug("%s is not there yet: %s", application, error)
            await asyncio.sleep(_LOOK_SECONDS)
        else:
            return


class RayPicker:
    """Picks replicas for the gateway, and counts the calls that run there."""

    def __init__(self, deployment: str) -> None:
        self._membership = membership(deployment)
        self._in_flight: Counter[str] = Counter()
        self._suspects: dict[str, float] = {}  # until when

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Calls of this gateway by replica."""
        return self._in_flight

    @property
    def targets(self) -> list[Target]:
        return [Target(each.name, each.url) for each in self._membership.members]

    @asynccontextmanager
    async def pick(
        self, model: str | None, avoided: Collection[str], within: float
    ) -> AsyncIterator[Target]:
        try:
            async with asyncio.timeout(within):
                members = await self._membership.wait()
        except TimeoutError:
            raise NoReplica from None
        member = self._choose(members, model, avoided)
        self._in_flight[member.name] += 1
        try:
            yield Target(member.name, member.url)
        finally:
            self._in_flight[member.name] -= 1
            if not self._in_flight[member.name]:
                del self._in_flight[member.name]

    def suspect(self, name: str) -> None:
        """A call to this replica failed: others are asked first for a while."""
        self._suspects[name] = time.monotonic() + _SUSPECT_SECONDS

    def _choose(
        self, members: Sequence[Member], model: str | None, avoided: Collection[str]
    ) -> Member:
        now = time.monotonic()
        self._suspects = {name: until for name, until in self._suspects.items() if until > now}
        loaded = [_Loaded(each, self._in_flight[each.name]) for each in members]
        left = [each for each in loaded if each.name not in avoided]
        trusted = [each for each in left if each.name not in self._suspects]
        adapter = adapter_of(model, members[0].base)
        return placement.choose(adapter, trusted or left or loaded).member
