"""A thousand adapters under power-law traffic beside eight: throughput, failures, wrong answers.

    python -m bench.many publish --from ADAPTER_FOLDER --base BASE --store DIR [--count 1000]
    python -m bench.many run --url http://127.0.0.1:8000 [--count 1000] [--rounds 4] [--seconds 20]

`publish` makes the adapters, many-0000 and so on: each scales B by its own factor, 0.5 to 1.5.
`run` speaks HTTP to a server that runs; rounds with eight adapters and with all take turns.
`misnamed` counts answers that name another adapter, `changed` those that differ from what the
same adapter answered to the same prompt before (tokens that are level may fall either way). The
last line is JSON.
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

import httpx2

HOT, STREAMS, TOKENS = 8, 24, 24
PROMPTS = ("two blue lamps to Oslo", "one oak desk to Bergen by Friday", "nine red chairs")


def name_of(number: int) -> str:
    return f"many-{number:04d}"


def publish_all(options: argparse.Namespace) -> dict[str, float]:
    from safetensors.torch import load_file, save_file

    from adapters.publish import publish

    began = time.perf_counter()
    weights = load_file(options.source / "adapter_model.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copyfile(options.source / "adapter_config.json", folder / "adapter_config.json")
        for number in range(options.count):
            file = folder / "adapter_model.safetensors"
            file.unlink(missing_ok=True)
            scale = 0.5 + number / options.count
            changed = {k: v * scale if "lora_B" in k else v for k, v in weights.items()}
            save_file({k: v.contiguous() for k, v in changed.items()}, file, {"format": "pt"})
            publish(
                folder,
                name=name_of(number),
                store=options.store,
                base=options.base,
                allow_base_mismatch=True,
            )
    return {"published": options.count, "seconds": time.perf_counter() - began}


class Traffic:
    """Closed loop: a call's adapter is drawn when its stream is free."""

    def __init__(self, client: httpx2.AsyncClient, count: int, alpha: float) -> None:
        self._client = client
        self._weights = [1 / (rank + 1) ** alpha for rank in range(count)]
        self._dice = random.Random(7)
        self._known: dict[tuple[int, str], str] = {}
        self.failed: Counter[str] = Counter()
        self.answered = self.misnamed = self.changed = 0
        self.used: set[int] = set()

    async def run(self, count: int, seconds: float) -> float:
        """Tokens per second with the first `count` adapters."""
        until, made = time.perf_counter() + seconds, [0]
        began = time.perf_counter()
        await asyncio.gather(*(self._stream(count, until, made) for _ in range(STREAMS)))
        return made[0] / (time.perf_counter() - began)

    async def _stream(self, count: int, until: float, made: list[int]) -> None:
        while time.perf_counter() < until:
            number = self._dice.choices(range(count), self._weights[:count])[0]
            tokens = await self._call(number, self._dice.choice(PROMPTS))
            made[0] += tokens

    async def _call(self, number: int, prompt: str) -> int:
        name = name_of(number)
        body = {"model": name, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True}
        response = await self._client.post("/v1/completions", json=body | {"temperature": 0})
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
        traffic = Traffic(client, options.count, options.alpha)
        await traffic.run(HOT, 3.0)
        pairs = []
        for _ in range(options.rounds):
            few = await traffic.run(HOT, options.seconds)
            pairs.append((few, await traffic.run(options.count, options.seconds)))
    ratios = sorted(many / few for few, many in pairs)
    return {
        "few_tokens_per_second": sorted(few for few, _ in pairs)[len(pairs) // 2],
        "many_tokens_per_second": sorted(many for _, many in pairs)[len(pairs) // 2],
        "ratio": ratios[len(ratios) // 2],
        "ratios": [round(ratio, 3) for ratio in ratios],
        "adapters_used": len(traffic.used),
        "answered": traffic.answered,
        "misnamed": traffic.misnamed,
        "changed": traffic.changed,
        "failed": dict(traffic.failed),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    making = commands.add_parser("publish")
    making.add_argument("--from", dest="source", type=Path, required=True)
    making.add_argument("--base", type=Path, required=True)
    making.add_argument("--store", type=Path, required=True)
    running = commands.add_parser("run")
    running.add_argument("--url", required=True)
    running.add_argument("--rounds", type=int, default=4)
    running.add_argument("--seconds", type=float, default=20.0, help="length of half a round")
    running.add_argument("--alpha", type=float, default=1.0, help="the power law's exponent")
    for command in (making, running):
        command.add_argument("--count", type=int, default=1000)
    options = parser.parse_args()
    is_run = options.command == "run"
    print(json.dumps(asyncio.run(measure(options)) if is_run else publish_all(options)))  # noqa: T201


if __name__ == "__main__":
    main()
