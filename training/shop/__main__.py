"""Writes the shop's data sets: `python -m training.shop --out examples/shop/data`."""

import argparse
import sys
from pathlib import Path

from training.shop.dataset import write_datasets


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training.shop", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="decides every text (default: 0)")
    arguments = parser.parse_args()
    for path in write_datasets(arguments.out, arguments.seed):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
