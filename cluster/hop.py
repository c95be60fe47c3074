"""What the gateway costs: the same calls through it and to the replicas themselves, in turn."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

import aiohttp

OUTPUT_TOKENS = 32
_CALLS = 48  # in a round
_PROMPT = "The quick brown fox jumps over the lazy dog. " * 12


@dataclass(slots=True)
class Round:
    """What the streams of one round measured, in seconds."""

    first: list[float] = field(default_factory=list)  # until the first token
    gaps: list[float] = field(default_factory=list)  # between two pieces of a stream
    seconds: float = 0.0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Cost:
    """Medians over the rounds: milliseconds until the first token and between two pieces (p50 of
    each round), and tokens a second."""

    streams: int
    first_ms: tuple[float, float]  # directly, through the gateway
    gap_ms: tuple[float, float]
    rate: tuple[float, float]

    def lines(self) -> list[str]:
        (d_first, g_first), (d_gap, g_gap), (d_rate, g_rate) = self.first_ms, self.gap_ms, self.rate
        return [
            f"{self.streams} streams: tokens/s {d_rate:.0f} directly, {g_rate:.0f} through the "
            f"gateway ({g_rate / d_rate:.3f})",
            f"  first token, p50: {d_first:.1f} ms directly, {g_first:.1f} through the gateway "
            f"({g_first - d_first:+.1f})",
            f"  between tokens, p50: {d_gap:.1f} ms directly, {g_gap:.1f} through the gateway "
            f"({g_gap - d_gap:+.1f})",
        ]


async def measure(
    gateway: str,
    replicas: Sequence[str],
    model: str,
    *,
    headers: Mapping[str, str],
    streams: int,
    rounds: int,
) -> Cost:
    """Some calls of each stream in each of `rounds` rounds, by both ways.

    Directly, the calls take the replicas in turn, as the gateway does with calls of the base.
    """
    ways: dict[str, list[Round]] = {"directly": [], "gateway": []}
    calls = max(2, _CALLS // streams)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:
        await _run(session, [gateway, *replicas], model, streams, 2)  # warm
        for number in range(rounds):
            order = list(ways) if number % 2 else list(ways)[::-1]
            for way in order:
                urls = [gateway] if way == "gateway" else replicas
                ways[way].append(await _run(session, urls, model, streams, calls))

    def both(figure: str) -> tuple[float, float]:
        direct, through = (
            median(_figures(each)[figure] for each in ways[way]) for way in ("directly", "gateway")
        )
        return direct, through

    return Cost(streams, both("first"), both("gap"), both("rate"))


def _figures(round_: Round) -> dict[str, float]:
    return {
        "first": 1e3 * median(round_.first),
        "gap": 1e3 * median(round_.gaps),
        "rate": round_.tokens / round_.seconds,
    }


async def _run(
    session: aiohttp.ClientSession, urls: Sequence[str], model: str, streams: int, calls: int
) -> Round:
    found, turns = Round(), itertools.cycle(urls)
    started = time.perf_counter()

    async def stream() -> None:
        for _ in range(calls):
            await _ask(session, next(turns), model, found)

    await asyncio.gather(*(stream() for _ in range(streams)))
    found.seconds = time.perf_counter() - started
    return found


async def _ask(session: aiohttp.ClientSession, url: str, model: str, found: Round) -> None:
    body = {
        "model": model,
        "prompt": _PROMPT,
        "max_tokens": OUTPUT_TOKENS,
        "ignore_eos": True,
        "stream": True,
    }
    data, headers = json.dumps(body).encode(), {"content-type": "application/json"}
    last = time.perf_counter()
    is_first = True
    async with session.post(f"{url}/v1/completions", data=data, headers=headers) as answer:
        answer.raise_for_status()
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                continue
            now = time.perf_counter()
            (found.first if is_first else found.gaps).append(now - last)
            is_first, last = False, now
            found.tokens += 1
