"""A base with one adapter merged into its weights: W + alpha/r * B A, computed in float32.

    python -m loadtest.peers.merged BASE ADAPTER OUT

The alternative way to serve adapters: one model and one server for each. Unchanged files of the
base become links. For LoRA with one rank and scale, like marked adapters.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

_PREFIX = "base_model.model."
_WEIGHTS = "*.safetensors"


def write_merged(base: Path, adapter: Path, out: Path) -> None:
    """Write a model folder, replacing `out`."""
    deltas = read_deltas(adapter)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    for path in sorted(base.iterdir()):
        if not (path.match(_WEIGHTS) and _merge_file(path, deltas, out / path.name)):
            (out / path.name).symlink_to(path.resolve())
    if deltas:
        raise ValueError(f"{base} has no {', '.join(sorted(deltas))}")


def read_deltas(adapter: Path) -> dict[str, Tensor]:
    """The matrix added to each weight of the base, by name."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale = config["lora_alpha"] / config["r"]
    tensors = load_file(adapter / "adapter_model.safetensors")
    deltas = {}
    for name, a in tensors.items():
        module, is_a, _ = name.removeprefix(_PREFIX).partition(".lora_A.weight")
        if is_a:
            b = tensors[f"{_PREFIX}{module}.lora_B.weight"]
            deltas[f"{module}.weight"] = scale * (b.float() @ a.float())
    return deltas


def _merge_file(path: Path, deltas: dict[str, Tensor], out: Path) -> bool:
    """Write the file if it has weights to merge, and remove these from `deltas`."""
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    if not names & deltas.keys():
        return False
    tensors = load_file(path)
    for name in names & deltas.keys():
        weight = tensors[name]
        tensors[name] = (weight.float() + deltas.pop(name)).to(weight.dtype)
    save_file(tensors, out, metadata={"format": "pt"})
    return True


if __name__ == "__main__":
    write_merged(*map(Path, sys.argv[1:4]))
