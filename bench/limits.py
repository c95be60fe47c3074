"""What limits and usage cost a call: `python -m bench.limits [--catalog postgresql://...]`.

Calls arrive, reserve, end and are counted as in a server, without HTTP and engine, under limits of
their key, of the adapter and of the key on it, beside others that run and with full windows. With
a catalog in PostgreSQL, rounds that share the limits go on beside them.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from opentelemetry.trace import INVALID_SPAN
from prometheus_client import CollectorRegistry

from adapters.catalog import Catalog
from adapters.catalog.limits import RuleId
from adapters.keys import Budget, Key, RateLimits
from server.call import Call, Sequence
from server.engine.interface import Work
from server.gate.quotas import Quotas
from server.gate.sharing import Sharing
from server.gate.usage import UsageCounts
from server.telemetry.metrics import Metrics
from server.telemetry.recorder import response_headers

GOAL_MS = 0.2
_MANY = 10**9
_LIMITS = RateLimits(_MANY, _MANY, _MANY, Budget(_MANY, "month"))


@dataclass(slots=True)
class Stats:
    """The fields of vLLM's RequestStateStats that a call reads."""

    num_generation_tokens: int = 32
    queued_ts: float = 0.0
    scheduled_ts: float = 1.0
    first_token_ts: float = 1.0
    last_token_ts: float = 2.0


class Desk:
    """The parts of a server that hold calls to limits."""

    def __init__(self, catalog: Catalog) -> None:
        metrics = Metrics(CollectorRegistry(), "base")
        self.quotas, self.usage = Quotas(metrics), UsageCounts()
        self.sharing = Sharing(catalog.usage, self.quotas, self.usage, metrics)
        self._keys = [_make_key(f"key-{number}") for number in range(50)]
        rules = {RuleId(key.name, "base"): _LIMITS for key in self._keys}
        self.quotas.set_rules(rules | {RuleId("", "base"): _LIMITS})

    async def begin(self, number: int) -> Call:
        call = Call("r", "e", "/v1/completions", "text_completion", "base", INVALID_SPAN)
        call.key = self._keys[number % len(self._keys)]
        call.resolved = True
        await self.quotas.arrive(call)
        assert call.allowance is not None
        await call.allowance.reserve(Work("r", 128, 1, 32))
        call.sequences.append(Sequence("r", 128, Stats()))
        return call

    def end(self, call: Call) -> None:
        call.status = 200
        response_headers(call)
        self.usage.record(call)
        self.quotas.settle(call)


def _make_key(name: str) -> Key:
    scopes = frozenset({"inference"})
    now = datetime.now(UTC)
    return Key(name, name, "lk-", scopes, ("*",), True, 1.0, now, limits=_LIMITS)  # type: ignore[arg-type]


async def measure(catalog: Catalog, calls: int, running: int) -> list[float]:
    """Seconds that each call takes in all."""
    desk = Desk(catalog)
    beside = [asyncio.create_task(each.run()) for each in (desk.sharing, desk.quotas)]
    others = [await desk.begin(number) for number in range(running)]
    found = []
    for number in range(calls):
        began = time.perf_counter()
        call = await desk.begin(number)
        desk.end(call)
        found.append(time.perf_counter() - began)
        if number % 10 == 0:
            await asyncio.sleep(0.001)  # rounds and ticks go on
    for call in others:
        desk.end(call)
    for task in beside:
        task.cancel()
    await desk.sharing.close()
    return found


def main(
    catalog: Annotated[str, typer.Option(help="PostgreSQL; by default a file.")] = "",
    calls: Annotated[int, typer.Option(min=100)] = 20_000,
    running: Annotated[int, typer.Option(min=0, help="Other calls that run.")] = 24,
) -> None:
    """Print the time that limits and usage add to a call, in milliseconds."""
    with tempfile.TemporaryDirectory() as folder, Catalog.open(Path(folder), catalog) as opened:
        found = asyncio.run(measure(opened, calls, running))
    cuts = statistics.quantiles(found, n=100)
    p50, p99 = 1000 * statistics.median(found), 1000 * cuts[98]
    typer.echo(f"{calls} calls beside {running}: p50 {p50:.3f} ms, p99 {p99:.3f} ms")
    raise typer.Exit(0 if p50 < GOAL_MS else 1)


if __name__ == "__main__":
    typer.run(main)
