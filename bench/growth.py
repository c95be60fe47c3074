"""Whether a server's memory grows with the calls it answers: samples, and the line through them.

Knows nothing of what the calls are.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bench.errors import OptionsClash, SideFailed
from loadtest.servers import processes

SETTLED_SECONDS = 60.0  # what a server builds up at its first calls is no growth
MIB = 1 << 20


class Sample(NamedTuple):
    """`calls` answered so far and bytes held (PSS), `seconds` after the start."""

    seconds: float
    calls: int
    held: int


def session_of(pid: int) -> int:
    """The session that a server has to itself; raises SideFailed or OptionsClash."""
    try:
        session = os.getsid(pid)
    except ProcessLookupError:
        raise SideFailed(f"there is no process {pid}: give the server's pid") from None
    if session == os.getsid(0):
        raise OptionsClash(
            "the server is in this command's own session, whose memory would be counted too:"
            " start it with `setsid lorry serve ...`"
        )
    return session


async def sample_while(
    running: asyncio.Task[Any], session: int, calls: Callable[[], int], every: float
) -> list[Sample]:
    """Sample every `every` seconds until the task is done; raises SideFailed if the server ends."""
    began, samples = time.perf_counter(), []
    while not running.done():
        held = await asyncio.to_thread(processes.held_bytes, session)
        if not held:
            raise SideFailed(f"the server (session {session}) has ended: its log says why")
        samples.append(Sample(time.perf_counter() - began, calls(), held))
        await asyncio.wait({running}, timeout=every)
    return samples


def summarize(samples: Sequence[Sample]) -> dict[str, object]:
    """Of what came after the first minute; raises OptionsClash when that is less than two samples.

    The slope is that of the least squares; None where no call was answered.
    """
    settled = [each for each in samples if each.seconds >= SETTLED_SECONDS]
    if len(settled) < 2:
        raise OptionsClash("the first minute does not count: give --minutes 2 or more")
    first, last = settled[0], settled[-1]
    return {
        "start_mib": round(first.held / MIB, 1),
        "end_mib": round(last.held / MIB, 1),
        "mib_per_1000_calls": _slope(settled),
        "calls": last.calls - first.calls,
        "seconds": round(last.seconds - first.seconds, 1),
        "samples": len(settled),
    }


def _slope(samples: Sequence[Sample]) -> float | None:
    thousands = [each.calls / 1000 for each in samples]
    if thousands[0] == thousands[-1]:
        return None
    held = [each.held / MIB for each in samples]
    return round(statistics.linear_regression(thousands, held).slope, 4)
