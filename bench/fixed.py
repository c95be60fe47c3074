"""What a step costs whatever the model's width: milliseconds with little arithmetic.

    python -m bench.fixed [--rounds 40] [--quantization bitsandbytes] [--out .lorry/bench]

A model as deep as the bench's, with as many adapters, and an eighth as wide: what is left is mostly
calls, threads that are woken, and bookkeeping, of which a wider one has as much. base: LoRA off.
twin: the same in another process, so its difference is chance. base requests: LoRA on. mixed: eight
adapters. 24 streams; sides take turns, and each round begins with another. Medians of the rounds;
"more" is that of the rounds' own differences to base. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import get_args

from bench.conduct import WARM_SEED, rotate
from bench.model import FULL, Shape, prepare
from bench.options import at_least_one
from bench.rows import EIGHT, Entry
from bench.sides import Sides
from bench.spec import Quantization, SideSpec
from bench.workload import Workload

NARROW = Shape(hidden=128, layers=FULL.layers, intermediate=256, heads=2, vocabulary=256)
_STEPS = 64


def entries(quantization: Quantization) -> dict[str, Entry]:
    plain = Workload(prompt_tokens=16, output_tokens=_STEPS)
    mixed = Workload(prompt_tokens=16, output_tokens=_STEPS, adapters=EIGHT)
    base = SideSpec("lorry", quantization)
    ours = SideSpec("lorry", quantization, max_loras=8)
    return {
        "base": Entry(base, plain),
        "twin": Entry(SideSpec("lorry", quantization, is_twin=True), plain),
        "base requests": Entry(ours, plain),
        "mixed": Entry(ours, mixed),
    }


def measure(quantization: Quantization, rounds: int, sides: Sides) -> list[dict[str, str | float]]:
    """A line for each side.

    Raises:
        SideFailed: one of them did, so there is nothing to set side by side.
    """
    sides_of = entries(quantization)
    took: dict[Entry, list[float]] = {entry: [] for entry in sides_of.values()}
    sides.start(list({entry.side: None for entry in took}))
    for entry in took:
        sides.answer(entry.side, entry.workload.warm_up(), WARM_SEED)
    for number in range(rounds):
        for entry in rotate(list(took), number):
            took[entry].append(_milliseconds(sides, entry, number))
    base = took[sides_of["base"]]
    return [
        {"side": name, "ms a step": _median(took[entry]), "more": _median(_less(took[entry], base))}
        for name, entry in sides_of.items()
    ]


def _median(values: list[float]) -> float:
    return round(statistics.median(values), 2)


def _less(these: list[float], those: list[float]) -> list[float]:
    return [this - that for this, that in zip(these, those, strict=True)]


def _milliseconds(sides: Sides, entry: Entry, seed: int) -> float:
    """Of a step, the one with the prompts among them."""
    outcome = sides.answer(entry.side, entry.workload, seed)
    return 1000 * outcome.seconds / entry.workload.output_tokens


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=at_least_one, default=40)
    parser.add_argument("--quantization", choices=get_args(Quantization), default="bitsandbytes")
    parser.add_argument("--out", type=Path, default=Path(".lorry/bench"))
    options = parser.parse_args()
    with Sides(prepare(options.out, NARROW)) as sides:
        table = measure(options.quantization, options.rounds, sides)
    for line in table:
        print("  ".join(f"{name} {value}" for name, value in line.items()))  # noqa: T201
    print(json.dumps(table))  # noqa: T201


if __name__ == "__main__":
    main()
