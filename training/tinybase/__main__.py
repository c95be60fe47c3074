"""Builds the tiny base: `python -m training.tinybase --out examples/shop/base`."""

import argparse
import sys
from pathlib import Path

DEFAULT_STEPS = 2000


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.tinybase", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="decides data and weights (default: 0)")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    arguments = parser.parse_args()
    # Imported here, so that --help is quick.
    import torch

    from training.tinybase.build import build_base
    from training.tinybase.pretrain import Schedule

    torch.set_num_threads(arguments.threads)
    schedule = Schedule(seed=arguments.seed, steps=arguments.steps)
    digest = build_base(arguments.out, schedule, print_line)
    print_line(f"sha256 {digest}")


def print_line(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
