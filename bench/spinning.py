"""How long OpenMP's threads should spin while they wait: alone, and beside a busy process.

    python -m bench.spinning [--counts 0,1000,5000,300000] [--rounds 5] [--out .lorry/bench]

One engine on the bench's NF4 model with eight adapters for each GOMP_SPINCOUNT (300000 is about
OpenMP's own default), all up at once and run in turn. Tokens per second, medians of the rounds,
with one stream and with 24; the busy process takes what it can get of one core. The last line is
JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.conduct import WARM_SEED
from bench.model import FULL, prepare
from bench.options import at_least_one
from bench.rows import EIGHT, MIXED, OURS4
from bench.sides import Sides
from bench.spec import SideSpec
from bench.workload import Workload

WORKLOADS = {"1 stream": Workload(streams=1, adapters=EIGHT), "24 streams": MIXED}


@contextlib.contextmanager
def neighbour() -> Iterator[None]:
    """A process that computes without end."""
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        busy.kill()
        busy.wait()


def measure(counts: list[int], rounds: int, out: Path) -> list[dict[str, str | float]]:
    specs = {count: SideSpec(OURS4.kind, OURS4.quantization, 8, spin=count) for count in counts}
    table: list[dict[str, str | float]] = []
    with Sides(prepare(out, FULL)) as sides:
        sides.start(list(specs.values()))
        for spec in specs.values():
            for workload in WORKLOADS.values():
                sides.answer(spec, workload.warm_up(), WARM_SEED)
        for place in ("alone", "beside a busy process"):
            with contextlib.nullcontext() if place == "alone" else neighbour():
                for name, workload in WORKLOADS.items():
                    rates: dict[int, list[float]] = {count: [] for count in counts}
                    for number in range(rounds):
                        for count, spec in specs.items():
                            rates[count].append(sides.answer(spec, workload, number).rate)
                    medians = {str(n): round(statistics.median(r), 1) for n, r in rates.items()}
                    table.append({"where": place, "streams": name, **medians})
                    print(table[-1], file=sys.stderr)  # noqa: T201
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--counts", default="0,1000,5000,300000")
    parser.add_argument("--rounds", type=at_least_one, default=5)
    parser.add_argument("--out", type=Path, default=Path(".lorry/bench"))
    options = parser.parse_args()
    counts = [int(count) for count in options.counts.split(",")]
    print(json.dumps(measure(counts, options.rounds, options.out)))  # noqa: T201


if __name__ == "__main__":
    main()
