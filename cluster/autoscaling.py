"""How many servers: enough for the calls in flight, and one more at least while calls wait."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

IN_FLIGHT, WAITING, CAPACITY = "in_flight", "waiting", "capacity"


class QueuePolicy:
    """Ray Serve's policy object (AutoscalingPolicy.policy_function): called with its context."""

    def __init__(self, calls_per_replica: float = 0.0) -> None:
        self._calls_per_replica = calls_per_replica

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        latest = {
            name: [series[-1].value for series in by_replica.values() if series]
            for name, by_replica in (ctx.raw_metrics or {}).items()
        }
        return decide(latest, ctx.current_num_replicas, self._calls_per_replica), {}


def decide(
    latest: Mapping[str, Sequence[float]], running: int, calls_per_replica: float = 0.0
) -> int:
    """The number of servers that the load asks for, without bounds.

    `latest` has what each server said last of IN_FLIGHT, WAITING and CAPACITY. A server is there
    for `calls_per_replica` calls, or for what its engine works on at once. Waiting calls ask for
    one more than there are: their adapters may wait for slots while sequences are free.
    """
    capacities = latest.get(CAPACITY) or [1.0]
    each = calls_per_replica or sum(capacities) / len(capacities)
    wanted = math.ceil(sum(latest.get(IN_FLIGHT, ())) / max(each, 1.0))
    if len(latest.get(IN_FLIGHT, ())) < running:
        wanted = max(wanted, running)  # a server too busy to say anything is not idle
    if sum(latest.get(WAITING, ())) >= 1:
        wanted = max(wanted, running + 1)
    return max(wanted, 1)
