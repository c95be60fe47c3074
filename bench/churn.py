"""What running streams feel while other adapters are loaded: p99 gap between tokens, over none.

    LORRY_ADMIN_TOKEN=... python -m bench.churn --url http://127.0.0.1:8000 \\
        --streams hot-1,hot-2 --load cold-1,cold-2,cold-3 [--rounds 4] [--seconds 10]

Speaks HTTP to a server that runs. Rounds with and without loads take turns, so that a busy machine
meets both; in those with, the adapters of --load are loaded one after the other through the admin
API: name more than the server has places, so that each load is one. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time

import httpx2

PROMPT = "one two three four five six seven eight " * 4


async def stream(client: httpx2.AsyncClient, model: str, until: float, gaps: list[float]) -> None:
    """Calls one after the other; a gap is between two events of one answer."""
    body = {"model": model, "prompt": PROMPT, "max_tokens": 64, "ignore_eos": True, "stream": True}
    while time.perf_counter() < until:
        last = None
        async with client.stream("POST", "/v1/completions", json=body) as response:
            response.raise_for_status()
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    now = time.perf_counter()
                    if last is not None:
                        gaps.append(now - last)
                    last = now


async def churn(
    client: httpx2.AsyncClient, names: list[str], until: float, took: list[float]
) -> None:
    """Loads, as many as the time allows, at most one every 0.1 s."""
    while time.perf_counter() < until:
        name = names[len(took) % len(names)]
        began = time.perf_counter()
        response = await client.post(f"/admin/adapters/{name}/load")
        response.raise_for_status()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(max(0.0, 0.1 - took[-1]))


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


async def measure(options: argparse.Namespace) -> dict[str, float]:
    headers = {"authorization": f"Bearer {os.environ.get('LORRY_ADMIN_TOKEN', '')}"}
    gaps: dict[bool, list[float]] = {False: [], True: []}
    loads: list[float] = []
    async with httpx2.AsyncClient(base_url=options.url, headers=headers, timeout=120) as client:
        models = options.streams.split(",")
        await asyncio.gather(*(stream(client, model, 0.0, []) for model in models))
        for turn in range(2 * options.rounds):
            until = time.perf_counter() + options.seconds
            busy = turn % 2 == 1
            work = [stream(client, model, until, gaps[busy]) for model in models]
            if busy:
                work.append(churn(client, options.load.split(","), until, loads))
            await asyncio.gather(*work)
    still, churned = gaps[False], gaps[True]
    return {
        "gaps": len(still),
        "gaps_churn": len(churned),
        "loads": len(loads),
        "load_p50_ms": 1000 * percentile(loads, 0.5),
        "p50_ms": 1000 * percentile(still, 0.5),
        "p99_ms": 1000 * percentile(still, 0.99),
        "p50_churn_ms": 1000 * percentile(churned, 0.5),
        "p99_churn_ms": 1000 * percentile(churned, 0.99),
        "p99_ratio": percentile(churned, 0.99) / percentile(still, 0.99),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--url", required=True)
    parser.add_argument("--streams", required=True, help="models that stream all the time, a,b,c")
    parser.add_argument("--load", required=True, help="adapters to load in turn, a,b,c")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of half a round")
    result = asyncio.run(measure(parser.parse_args()))
    print(json.dumps({name: round(value, 3) for name, value in result.items()}))  # noqa: T201


if __name__ == "__main__":
    main()
