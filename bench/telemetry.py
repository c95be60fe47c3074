"""What recording costs: throughput with metrics, spans and log, over the same server without.

    python -m bench.telemetry [--rounds 12] [--answers 2] [--out .lorry/bench] [--tiny]

Starts one server on the bench's model, with NF4 and eight adapters, and keeps 24 streams on it.
Rounds with and without recording take turns, each beside its neighbour in time. The ratio is the
median of the rounds' own; goal 0.99. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from bench.errors import SideFailed
from bench.model import FULL, TINY, Home, prepare
from bench.options import at_least_one
from bench.workload import adapter_names
from loadtest.errors import ServerFailed
from loadtest.servers.environment import ROOT
from loadtest.servers.launch import Launch, free_port

STREAMS, PROMPT_TOKENS, OUTPUT_TOKENS = 24, 128, 32
ADAPTERS = adapter_names(16, 8)
GOAL = 0.99


def publish(home: Home, base: Path) -> Path:
    """A store with the adapters, made once."""
    store = base.with_name("store")
    if not store.exists():
        for name in ADAPTERS:
            command = [
                *(sys.executable, "-m", "lorry", "adapters", "publish", str(home.adapters / name)),
                *("--name", name, "--base", str(base), "--base-name", "bench"),
                *("--store", str(store)),
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return store


@contextlib.contextmanager
def serving(home: Home, base: Path, store: Path) -> Iterator[tuple[str, int]]:
    """The address and process id of a server that can be switched; raises ServerFailed."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "bench.telemetry_server", "serve", str(base.resolve())),
        *("--store", str(store.resolve()), "--port", str(port), "--served-model-name", "bench"),
    ]
    log = home.logs / "telemetry.log"
    log.unlink(missing_ok=True)
    launch = Launch(command, {"PYTHONPATH": str(ROOT)}, port=port, ready="/readyz", log=log)
    launch.start()
    try:
        yield launch.url, launch.session
    finally:
        launch.stop()


@dataclass(frozen=True, slots=True)
class Half:
    """The same answers with or without recording."""

    seconds: float
    cpu: float  # seconds of the server's own process, in which all is recorded


async def answer_all(client: httpx2.AsyncClient, vocabulary: int, seed: int, answers: int) -> None:
    """So many answers on each of the streams, one after the other."""
    dice = random.Random(seed)

    async def stream(number: int) -> None:
        for _ in range(answers):
            body = {
                "model": ADAPTERS[number % len(ADAPTERS)],
                "prompt": dice.choices(range(2, vocabulary), k=PROMPT_TOKENS),
                "max_tokens": OUTPUT_TOKENS,
                "ignore_eos": True,
                "stream": True,
            }
            async with client.stream("POST", "/v1/completions", json=body) as response:
                response.raise_for_status()
                events = [line async for line in response.aiter_lines() if line.startswith("data:")]
            if events[-1:] != ["data: [DONE]"] or '"error"' in events[-2]:
                raise SideFailed(f"an answer ended with {events[-2:]}")

    await asyncio.gather(*(stream(number) for number in range(STREAMS)))


async def measure(
    url: str, pid: int, vocabulary: int, rounds: int, answers: int
) -> list[tuple[Half, Half]]:
    """With and without, of each round; which goes first takes turns as well."""
    pairs = []
    async with httpx2.AsyncClient(base_url=url, timeout=600) as client:

        async def half(number: signal.Signals, seed: int) -> Half:
            await asyncio.sleep(0.5)  # what ended last is recorded by then
            os.kill(pid, number)
            cpu, began = cpu_seconds(pid), time.perf_counter()
            await answer_all(client, vocabulary, seed, answers)
            return Half(time.perf_counter() - began, cpu_seconds(pid) - cpu)

        for number in (signal.SIGUSR2, signal.SIGUSR1):
            await half(number, -int(number))  # everything has been used once
        for turn in range(rounds):
            order = (signal.SIGUSR1, signal.SIGUSR2)
            # Prompts of their own, or the second would find the first's in the prefix cache.
            halves = {
                number: await half(number, 2 * turn + place)
                for place, number in enumerate(order if turn % 2 else order[::-1])
            }
            pairs.append((halves[signal.SIGUSR1], halves[signal.SIGUSR2]))
            with_, without = pairs[-1]
            print(f"with {with_.seconds:.2f} s, without {without.seconds:.2f} s", file=sys.stderr)  # noqa: T201
    return pairs


def cpu_seconds(pid: int) -> float:
    # "PID (NAME) STATE ...": utime and stime are the 14th and 15th field.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def summarize(pairs: list[tuple[Half, Half]]) -> dict[str, Any]:
    ratios = [without.seconds / with_.seconds for with_, without in pairs]
    middle = statistics.median(ratios)
    cores = len(os.sched_getaffinity(0))
    cpu = [(with_.cpu - without.cpu) / (without.seconds * cores) for with_, without in pairs]
    return {
        "ratio": round(middle, 4),
        "goal": GOAL,
        "reached": middle >= GOAL,
        "ratios": [round(ratio, 3) for ratio in ratios],
        # Steadier than the ratio on a machine with neighbours: what recording takes of all cores.
        "share_of_cpu": round(statistics.median(cpu), 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least_one, default=12)
    parser.add_argument("--answers", type=int, default=2, help="of each stream, in half a round")
    parser.add_argument("--out", type=Path, default=Path(".lorry/bench"))
    parser.add_argument("--tiny", action="store_true", help="a tiny model: the cost at its worst")
    options = parser.parse_args()
    home = prepare(options.out, TINY if options.tiny else FULL)
    base = home.base
    try:
        with serving(home, base, publish(home, base)) as (url, pid):
            pairs = asyncio.run(measure(url, pid, home.vocabulary, options.rounds, options.answers))
    except (SideFailed, ServerFailed) as error:
        parser.exit(1, f"error: {error}\n")
    print(json.dumps(summarize(pairs)))  # noqa: T201


if __name__ == "__main__":
    main()
