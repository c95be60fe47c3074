"""The merged weights, one file of the base after another: W + scale * B A.

The sum is computed in fp32 and rounded once. PEFT's `merge_and_unload` computes the same, but needs
the whole model in memory (in fp32, if it is not to round twice), and on a model in NF4 it packs the
sum into NF4 again. Here the memory is that of the largest file.
"""

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from adapters.checkpoint.base import weights_files
from adapters.checkpoint.pairs import PREFIX
from adapters.checkpoint.peft_config import PeftConfig
from adapters.checkpoint.tensors import FLOATS, read_tensors
from adapters.store.files import WEIGHTS
from training.errors import BaseInvalid, MergeFailed
from training.nf4 import quantized_linears, round_to_nf4

Into = Literal["full", "nf4"]


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter adds to one weight: scale * B A."""

    a: torch.Tensor  # (rank, in)
    b: torch.Tensor  # (out, rank)
    scale: float

    def __call__(self) -> torch.Tensor:
        return self.scale * (self.b.float() @ self.a.float())


def read_deltas(folder: Path, config: PeftConfig) -> dict[str, Delta]:
    """What a valid adapter adds, by the name of the base's weight."""
    tensors = load_file(folder / WEIGHTS)
    modules = {
        name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        for name in tensors
        if name.endswith(".lora_A.weight")
    }
    return {
        f"{module}.weight": Delta(
            tensors[f"{PREFIX}{module}.lora_A.weight"],
            tensors[f"{PREFIX}{module}.lora_B.weight"],
            config.scale_of(module),
        )
        for module in modules
    }


def quantized_weights(folder: Path) -> frozenset[str]:
    """The names of the weights that NF4 quantizes in this base; raises BaseInvalid."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    wanted = frozenset(f"{name}.weight" for name in quantized_linears(model))
    stored = {name for path in weights_files(folder) for name in read_tensors(path)}
    if strange := sorted(wanted - stored):
        raise BaseInvalid(
            f"{folder}: its files do not name {strange[0]}, which training quantizes",
            "merge with --into full",
        )
    return wanted


def merged_bytes(folder: Path, dtype: torch.dtype) -> int:
    """The bytes of the base's weights when its floats have this type."""
    return sum(
        math.prod(tensor.shape) * dtype.itemsize
        if tensor.dtype in FLOATS
        else tensor.end - tensor.begin
        for path in weights_files(folder)
        for tensor in read_tensors(path).values()
    )


def merge_file(
    source: Path,
    target: Path,
    deltas: Mapping[str, Delta],
    quantized: Set[str],
    dtype: torch.dtype,
) -> None:
    """Write one file of the base with the deltas added; raises MergeFailed.

    The weights named in `quantized` are rounded to NF4 first.
    """
    with safe_open(source, framework="pt") as file:
        merged = {
            name: _merge(name, file.get_tensor(name), deltas.get(name), name in quantized, dtype)
            for name in file.keys()  # noqa: SIM118
        }
    save_file(merged, target, metadata={"format": "pt"})
    target.chmod(0o644)  # safetensors lets nobody else read it


def _merge(
    name: str, weight: torch.Tensor, delta: Delta | None, rounds: bool, dtype: torch.dtype
) -> torch.Tensor:
    if not weight.is_floating_point():
        return weight
    merged = round_to_nf4(weight) if rounds else weight
    if delta is not None:
        merged = merged.float() + delta()
    merged = merged.to(dtype)
    if not torch.isfinite(merged).all():
        raise MergeFailed(
            f"{name}: has values that {dtype} can't hold", "merge with --dtype bf16 or fp32"
        )
    return merged
