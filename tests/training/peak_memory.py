"""The memory that a real run of ours takes, measured in this process: `python peak_memory.py JSON`.

Prints the bytes that the resident set grew at most, from before the run began.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401
import datasets  # noqa: F401
import peft  # noqa: F401
import trl  # noqa: F401
from transformers import AutoModelForCausalLM  # noqa: F401
from trl import SFTConfig, SFTTrainer  # noqa: F401

from training.progress import Control
from training.recipe import Recipe
from training.run import train


def status(field: str) -> int:
    """A size in bytes of this process, as the kernel counts it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def measure(asked: dict[str, Any]) -> int:
    """Two steps on rows that fill the length; the bytes at the peak over those before."""
    length, batch_size = asked["length"], asked["batch_size"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "train.jsonl"
        rows = [
            json.dumps({"prompt": f"{number} ", "completion": "two lamps please " * length})
            for number in range(2 * batch_size)
        ]
        data.write_text("\n".join(rows) + "\n")
        recipe = Recipe.model_validate(
            {
                "name": "peak",
                "base": asked["base"],
                "base_name": "base",
                "data": {"train": str(data)},
                "lora": {"rank": asked["rank"]},
                "optimization": {
                    "max_steps": 2,
                    "batch_size": batch_size,
                    "max_length": length,
                    "gradient_checkpointing": asked["checkpointing"],
                },
                "quantization": asked["quantization"],
            }
        )
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
        before = status("VmRSS")
        train(recipe, folder / "out", Control(lambda line: None))
        return status("VmHWM") - before


if __name__ == "__main__":
    sys.stdout.write(f"{measure(json.loads(sys.argv[1]))}\n")
