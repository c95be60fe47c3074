"""Rewrites an adapter of mlx-lm as PEFT writes it: the same values, transposed and renamed.

mlx-lm keeps lora_a as (in, rank) and lora_b as (rank, out), adds `scale` times their product, and
has a config of its own: the arguments of its command. PEFT divides alpha by the rank, so alpha is
scale times rank. No value is changed, whatever its type.

https://github.com/ml-explore/mlx-lm: mlx_lm/tuner/lora.py, mlx_lm/tuner/utils.py (load_adapters).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np

from adapters.checkpoint.npz import Array, NpzMalformed, read_npz
from adapters.checkpoint.peft_config import MAX_SCALE, is_alpha
from adapters.checkpoint.tensors import TensorsMalformed, encode_header, read_tensors
from adapters.errors import CheckpointInvalid, Problem, quote, unwritable
from adapters.store.files import (
    CONFIG,
    MLX,
    MLX_NPZ,
    MLX_WEIGHTS,
    WEIGHTS,
    FileRefused,
    open_adapter_file,
    read_object,
    too_large,
    write_durably,
)

PREFIX = "base_model.model."
SIDES = {"lora_a": "lora_A", "lora_b": "lora_B"}
MAX_TENSOR_BYTES = 256 << 20  # rank 512 on 65,536 features in F32 is half of it
MAX_NAME = 512
SIZES = {"BF16": 2, "F16": 2, "F32": 4}
NPY_TYPES = {"<f2": "F16", "<f4": "F32"}
# What mlx-community appends to the name of a base.
CONVERTED_BASE = re.compile(r"-(mlx|bf16|fp16|[2-8]bit)(-mlx)?$", re.IGNORECASE)

TRAIN_LORA = "train with `mlx_lm.lora --fine-tune-type lora`, on linear layers"
WRITE_AGAIN = "train again with a current mlx-lm, or copy the whole folder"


def is_mlx(folder: Path) -> bool:
    """Whether a folder holds an adapter of mlx-lm and none of PEFT."""
    names = {name for name in (WEIGHTS, *MLX) if (folder / name).exists()}
    return bool(names) and WEIGHTS not in names


def convert(folder: Path, into: Path, max_bytes: int) -> Problem:
    """Write PEFT's two files to `into`, durably; what was done.

    Raises CheckpointInvalid or StoreUnwritable.
    """
    try:
        scale, base = _read_config(folder)
        name = _weights_name(folder)
        with open_adapter_file(folder, name, max_bytes) as file:
            factors = _open_npz(file) if name == MLX_NPZ else _open_safetensors(folder, file)
            _check_sizes(factors, name, max_bytes)
            modules = _pair(factors, name)
            _write(into / CONFIG, [_config(modules, factors, scale, base)])
            _write(into / WEIGHTS, _weights(factors))
    except FileRefused as refused:
        raise CheckpointInvalid([refused.problem]) from refused
    ranks = {factor.shape[1] for key, factor in factors.items() if key.endswith(".lora_a")}
    rank = max(ranks)
    said = (
        f"was written by mlx-lm: {len(factors):,} tensors were transposed and named as PEFT's, and"
        f" scale {scale:g} at rank {rank} is lora_alpha {scale * rank:g}"
    )
    fix = "check that it answers as it did where it was trained"
    return Problem("converted_from_mlx", name, said, fix)


@dataclass(frozen=True, slots=True)
class _Factor:
    """One tensor, not yet read. `read` returns its values row by row, or raises FileRefused."""

    dtype: str
    shape: tuple[int, int]
    read_bytes: Callable[[int], bytes]

    @property
    def size(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]

    def read(self) -> bytes:
        return self.read_bytes(self.size)


def _weights_name(folder: Path) -> str:
    return MLX_NPZ if not (folder / MLX_WEIGHTS).exists() else MLX_WEIGHTS


def _read_config(folder: Path) -> tuple[float, str]:
    """The scale and the base's name; raises FileRefused."""
    try:
        raw = read_object(folder, CONFIG)
    except ValueError as error:
        said = "is not a JSON object in UTF-8 with finite numbers"
        raise FileRefused(Problem("config_malformed", CONFIG, said, WRITE_AGAIN)) from error
    kind = "dora" if raw.get("use_dora") else raw.get("fine_tune_type", "lora")
    if kind != "lora":
        shown = quote(kind) if isinstance(kind, str) else "no text"
        said = f"is {shown}, only lora can be served"
        raise FileRefused(Problem("mlx_unsupported", "fine_tune_type", said, TRAIN_LORA))
    parameters = raw.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, dict) else None
    if not is_alpha(scale) or scale > MAX_SCALE:
        shown = f"is {quote(str(scale))}" if isinstance(scale, int | float) else "is no number"
        said = f"{shown}, it must be a number above 0, and {MAX_SCALE:g} at most"
        raise FileRefused(Problem("alpha_invalid", "lora_parameters.scale", said, WRITE_AGAIN))
    base = raw.get("model")
    return float(scale), CONVERTED_BASE.sub("", base) if isinstance(base, str) else ""


def _open_safetensors(folder: Path, file: IO[bytes]) -> dict[str, _Factor]:
    def read(begin: int, size: int) -> bytes:
        try:
            file.seek(begin)
            raw = file.read(size)
        except OSError as error:
            raise _malformed(MLX_WEIGHTS, str(error)) from error
        if len(raw) != size:
            raise _malformed(MLX_WEIGHTS, "it ends in the middle of a tensor")
        return raw

    try:
        tensors = read_tensors(folder / MLX_WEIGHTS)
    except TensorsMalformed as error:
        said = quote(str(error))
        raise FileRefused(Problem(error.code, MLX_WEIGHTS, said, WRITE_AGAIN)) from error
    return {
        name: _factor(name, each.dtype, each.shape, partial(read, each.begin))
        for name, each in tensors.items()
    }


def _open_npz(file: IO[bytes]) -> dict[str, _Factor]:
    def read(array: Array, size: int) -> bytes:
        try:
            return array.read(size)
        except NpzMalformed as error:
            raise _malformed(MLX_NPZ, str(error)) from error

    try:
        arrays = read_npz(file)
    except NpzMalformed as error:
        raise _malformed(MLX_NPZ, str(error)) from error
    return {
        name: _factor(name, NPY_TYPES.get(each.kind, each.kind), each.shape, partial(read, each))
        for name, each in arrays.items()
    }


def _factor(
    name: str, dtype: str, shape: tuple[int, ...], read_bytes: Callable[[int], bytes]
) -> _Factor:
    return _Factor(_check_type(name, dtype), _check_shape(name, shape), read_bytes)


def _check_sizes(factors: Mapping[str, _Factor], file: str, max_bytes: int) -> None:
    """Raise FileRefused if one is too large, or all: those of an npz may share their bytes."""
    for name, factor in factors.items():
        if factor.size > MAX_TENSOR_BYTES:
            said = f"has shape {factor.shape}, more than any linear needs"
            raise FileRefused(Problem("shape_mismatch", quote(name), said, TRAIN_LORA))
    if sum(factor.size for factor in factors.values()) > max_bytes:
        raise FileRefused(too_large(file, max_bytes))


def _check_type(name: str, dtype: str) -> str:
    if dtype not in SIZES:
        said = f"has type {quote(dtype)}, not BF16, F16 or F32"
        fix = "train again with a current mlx-lm, which writes adapters.safetensors"
        raise FileRefused(Problem("dtype_unsupported", quote(name), said, fix))
    return dtype


def _check_shape(name: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(name) > MAX_NAME or name.rpartition(".")[2] not in SIDES:
        said = "is not called MODULE.lora_a or MODULE.lora_b"
        raise FileRefused(Problem("tensor_name_unsupported", quote(name), said, TRAIN_LORA))
    if len(shape) != 2:
        said = "adapts the experts of a mixture all at once, which is not served"
        if len(shape) != 3:
            said = f"has {len(shape)} dimensions, a factor of a LoRA has two"
        raise FileRefused(Problem("mlx_unsupported", quote(name), said, TRAIN_LORA))
    if min(shape) < 1:
        said = f"has shape {shape}, which holds nothing"
        raise FileRefused(Problem("weights_malformed", quote(name), said, WRITE_AGAIN))
    return shape[0], shape[1]


def _pair(factors: Mapping[str, _Factor], file: str) -> list[str]:
    """The modules, each of which has both factors; raises FileRefused."""
    if not factors:
        raise FileRefused(Problem("weights_empty", file, "holds no tensors", WRITE_AGAIN))
    modules = sorted({name.rpartition(".")[0] for name in factors})
    for module in modules:
        a, b = (factors.get(f"{module}.{side}") for side in SIDES)
        if a is None or b is None or a.shape[1] != b.shape[0]:
            said = "has not both of lora_a and lora_b, of one rank"
            raise FileRefused(Problem("pair_incomplete", quote(module), said, WRITE_AGAIN))
    return modules


def _config(modules: list[str], factors: Mapping[str, _Factor], scale: float, base: str) -> bytes:
    """Each module by its whole name, as mlx-lm trains some of the layers only."""
    ranks = {module: factors[f"{module}.lora_a"].shape[1] for module in modules}
    rank = max(ranks.values())
    others = {module: each for module, each in ranks.items() if each != rank}
    config: dict[str, Any] = {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "lora_alpha": scale * rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": modules,
        "task_type": "CAUSAL_LM",
        "rank_pattern": {re.escape(module): each for module, each in others.items()},
        "alpha_pattern": {re.escape(module): each * scale for module, each in others.items()},
    }
    return json.dumps(config, indent=2).encode() + b"\n"


def _weights(factors: Mapping[str, _Factor]) -> Iterator[bytes]:
    """The pieces of a safetensors file, one tensor in memory at a time."""
    header, position = {}, 0
    in_order = sorted(factors.items())
    for name, factor in in_order:
        module, _, side = name.rpartition(".")
        header[f"{PREFIX}{module}.{SIDES[side]}.weight"] = {
            "dtype": factor.dtype,
            "shape": factor.shape[::-1],
            "data_offsets": [position, position + factor.size],
        }
        position += factor.size
    yield encode_header({"__metadata__": {"format": "pt"}} | header)
    for _, factor in in_order:
        raw = np.frombuffer(factor.read(), f"<u{SIZES[factor.dtype]}")
        yield raw.reshape(factor.shape).T.tobytes()


def _write(path: Path, pieces: Iterator[bytes] | list[bytes]) -> None:
    try:
        write_durably(path, pieces)
    except OSError as error:  # of the writing: what reading raises is a FileRefused
        said = f"writing the converted adapter to {quote(str(path.parent))} failed"
        hint = "nothing was published: check its rights and free space, then try again"
        raise unwritable(said, error, hint) from error


def _malformed(where: str, said: str) -> FileRefused:
    return FileRefused(Problem("weights_malformed", where, quote(said), WRITE_AGAIN))
