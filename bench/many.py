"""A thousand adapters under power-law traffic beside eight: throughput, failures, wrong answers.

    python -m bench.many publish --store DIR [--from ADAPTER_FOLDER --base BASE] [--count 1000]
    lorry serve BASE --store DIR --quantization none -- --no-enable-prefix-caching
    python -m bench.many run --url http://127.0.0.1:8000 [--streams 24] [--rounds 4] [--seconds 20]
    python -m bench.many watch --url http://127.0.0.1:8000 --pid PID --minutes 30 [--count 1000]

`publish` makes the adapters, many-0000 and so on: each scales B by its own factor, 0.5 to 1.5.
Without --from and --base they are of the bench's own model, made where `python -m bench` makes it.
`run` speaks HTTP to a server that runs; rounds with eight adapters and with all take turns.
`watch` keeps the traffic over all of them up and says how the server's memory (PSS of its session,
every 5 s, from the first minute on) grew with the calls; start the server with `setsid` for it.
`misnamed` counts answers that name another adapter, `changed` those that differ from what the
same adapter answered to the same prompt before (tokens that are level may fall either way, and on
the bench's random model they often are). `loads` and `load_ms` are the server's own count and mean
of what it loaded during the rounds. The last line is JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from bench.errors import BenchError, OptionsClash, SideFailed
from bench.growth import sample_while, session_of, summarize
from bench.options import at_least_one

HOT, PROMPTS = 8, 48
SAMPLE_SECONDS, LEAST_MINUTES = 5.0, 2
RETRY_SECONDS, WARM_SECONDS = 1.0, 3.0
LOAD_SECONDS = "lorry_adapter_load_seconds"
VOCABULARY = 896  # token ids that the bench's base and the demo's both have


def name_of(number: int) -> str:
    return f"many-{number:04d}"


def publish_all(options: argparse.Namespace) -> dict[str, object]:
    from safetensors.torch import load_file, save_file

    from adapters.catalog import Catalog
    from adapters.publish import Rules, publish
    from adapters.store import Store
    from bench.model import FULL, prepare

    source, base = options.source, options.base
    if source is None or base is None:
        home = prepare(options.out, FULL)
        source, base = home.adapters / "r16-00", home.base
    began = time.perf_counter()
    weights = load_file(source / "adapter_model.safetensors")
    rules = Rules(base, allow_base_mismatch=True)
    with tempfile.TemporaryDirectory() as scratch, Catalog.open(options.store) as catalog:
        folder, store = Path(scratch), Store(options.store)
        shutil.copyfile(source / "adapter_config.json", folder / "adapter_config.json")
        for number in range(options.count):
            file = folder / "adapter_model.safetensors"
            file.unlink(missing_ok=True)
            scale = 0.5 + number / options.count
            changed = {k: v * scale if "lora_B" in k else v for k, v in weights.items()}
            save_file({k: v.contiguous() for k, v in changed.items()}, file, {"format": "pt"})
            publish(folder, name_of(number), store=store, catalog=catalog, rules=rules)
    seconds = time.perf_counter() - began
    return {"published": options.count, "seconds": seconds, "base": str(base)}


class Traffic:
    """Closed loop: a call's adapter is drawn when its stream is free."""

    def __init__(self, client: httpx2.AsyncClient, options: argparse.Namespace) -> None:
        self._client = client
        self._tokens, self._streams = options.tokens, options.streams
        self._weights = [1 / (rank + 1) ** options.alpha for rank in range(options.count)]
        self._dice = dice = random.Random(7)
        words = range(VOCABULARY)
        self._prompts = [dice.choices(words, k=options.prompt_tokens) for _ in range(PROMPTS)]
        self._known: dict[tuple[int, int], str] = {}
        self.failed: Counter[str] = Counter()
        self.answered = self.misnamed = self.changed = 0
        self.used: set[int] = set()

    async def run(self, count: int, seconds: float) -> float:
        """Tokens per second with the first `count` adapters."""
        until, made = time.perf_counter() + seconds, [0]
        began = time.perf_counter()
        await asyncio.gather(*(self._stream(count, until, made) for _ in range(self._streams)))
        return made[0] / (time.perf_counter() - began)

    async def _stream(self, count: int, until: float, made: list[int]) -> None:
        while time.perf_counter() < until:
            number = self._dice.choices(range(count), self._weights[:count])[0]
            tokens = await self._call(number, self._dice.randrange(PROMPTS))
            made[0] += tokens

    async def _call(self, number: int, prompt: int) -> int:
        name = name_of(number)
        body = {"model": name, "prompt": self._prompts[prompt], "max_tokens": self._tokens}
        body["ignore_eos"] = True
        try:
            response = await self._client.post("/v1/completions", json=body | {"temperature": 0})
        except httpx2.TransportError:
            self.failed["unreachable"] += 1
            await asyncio.sleep(RETRY_SECONDS)
            return 0
        if response.status_code != 200:
            self.failed[response.json()["error"]["code"]] += 1
            return 0
        answer, label = response.json(), response.headers["x-lorry-adapter"]
        text = answer["choices"][0]["text"]
        self.answered += 1
        self.misnamed += not label == answer["model"] == f"{name}@1"
        self.changed += self._known.setdefault((number, prompt), text) != text
        self.used.add(number)
        return int(answer["usage"]["completion_tokens"])


async def measure(options: argparse.Namespace) -> dict[str, object]:
    async with httpx2.AsyncClient(base_url=options.url, timeout=120) as client:
        traffic = Traffic(client, options)
        if not await traffic.run(HOT, WARM_SECONDS):
            raise SideFailed(f"{options.url} answers no adapter: {dict(traffic.failed)}")
        pairs, began = [], await _loads(client)
        for _ in range(options.rounds):
            few = await traffic.run(HOT, options.seconds)
            pairs.append((few, await traffic.run(options.count, options.seconds)))
        ended = await _loads(client)
    loads = ended.number - began.number
    ratios = sorted(many / few for few, many in pairs)
    return {
        "few_tokens_per_second": sorted(few for few, _ in pairs)[len(pairs) // 2],
        "many_tokens_per_second": sorted(many for _, many in pairs)[len(pairs) // 2],
        "ratio": ratios[len(ratios) // 2],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "loads": loads,
        "load_ms": round(1000 * (ended.seconds - began.seconds) / max(1, loads), 1),
        "adapters_used": len(traffic.used),
        "answered": traffic.answered,
        "misnamed": traffic.misnamed,
        "changed": traffic.changed,
        "failed": dict(traffic.failed),
    }


class Loads(NamedTuple):
    """What a server has loaded so far."""

    number: int
    seconds: float


async def _loads(client: httpx2.AsyncClient) -> Loads:
    """Raises SideFailed where the server does not tell it."""
    try:
        answer = await client.get("/metrics")
    except httpx2.TransportError as error:
        raise SideFailed(f"the server does not tell what it loaded: {error}") from error
    series = "\n".join(line for line in answer.text.splitlines() if line.startswith(LOAD_SECONDS))
    if answer.status_code != 200 or not series:
        raise SideFailed(f"{answer.url} ({answer.status_code}) has no {LOAD_SECONDS}")
    samples = [s for family in text_string_to_metric_families(series) for s in family.samples]
    count, seconds = (
        sum(sample.value for sample in samples if sample.name == f"{LOAD_SECONDS}_{part}")
        for part in ("count", "sum")
    )
    return Loads(int(count), seconds)


async def watch(options: argparse.Namespace) -> dict[str, object]:
    """Raises a BenchError."""
    session = session_of(options.pid)
    async with httpx2.AsyncClient(base_url=options.url, timeout=120) as client:
        traffic = Traffic(client, options)
        run = asyncio.create_task(traffic.run(options.count, options.minutes * 60))
        try:
            samples = await sample_while(run, session, lambda: traffic.answered, SAMPLE_SECONDS)
            speed = await run
        finally:
            run.cancel()
    return summarize(samples) | {
        "tokens_per_second": round(speed, 1),
        "adapters_used": len(traffic.used),
        "misnamed": traffic.misnamed,
        "failed": dict(traffic.failed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("publish")
    making.add_argument("--from", dest="source", type=Path)
    making.add_argument("--base", type=Path)
    making.add_argument("--out", type=Path, default=Path(".lorry/bench"), help="the bench's model")
    making.add_argument("--store", type=Path, required=True)
    running = commands.add_parser("run")
    running.add_argument("--rounds", type=at_least_one, default=4)
    running.add_argument("--seconds", type=float, default=20.0, help="length of half a round")
    watching = commands.add_parser("watch")
    watching.add_argument("--pid", type=int, required=True, help="the server's")
    watching.add_argument("--minutes", type=float, required=True, help="2 or more")
    for command in (running, watching):
        command.add_argument("--url", required=True)
        command.add_argument("--alpha", type=float, default=1.0, help="the power law's exponent")
        command.add_argument("--streams", type=int, default=24, help="calls that run at a time")
        command.add_argument("--prompt-tokens", type=int, default=128)
        command.add_argument("--tokens", type=int, default=32, help="of an answer")
    for command in (making, running, watching):
        command.add_argument("--count", type=at_least_one, default=1000)
    options = parser.parse_args()
    try:
        print(json.dumps(run_command(options)))  # noqa: T201
    except BenchError as error:
        parser.exit(1, f"error: {error} ({error.code})\n")


def run_command(options: argparse.Namespace) -> dict[str, object]:
    match options.command:
        case "publish":
            return publish_all(options)
        case "run":
            return asyncio.run(measure(options))
    if options.minutes < LEAST_MINUTES:
        raise OptionsClash(f"the first minute does not count: --minutes {LEAST_MINUTES} or more")
    return asyncio.run(watch(options))


if __name__ == "__main__":
    main()
