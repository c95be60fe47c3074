"""Writes the weighted sum of several adapters as one adapter: their ranks side by side.

    sum of w * s * B A  =  [w1 s1 B1 | w2 s2 B2 | ...] [A1; A2; ...]

is exact for any ranks and targets, as PEFT's `combination_type="cat"` is. Here w is an adapter's
weight and s its own scale (alpha over the rank, or over its root) in that module; they are in the
B's, in float32, and the scale of what is written is 1. The same parts make the same bytes. Reads
objects of the store, whose names and shapes were judged at publishing. Knows nothing of names.
"""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from adapters.checkpoint.base import Base, Shape
from adapters.checkpoint.checkpoint import Checkpoint, read_checkpoint
from adapters.checkpoint.pairs import PREFIX, SIDES, split_name
from adapters.checkpoint.peft_config import MAX_RANK, PeftConfig, read_peft_config
from adapters.checkpoint.tensors import (
    Floats,
    Tensor,
    TensorsMalformed,
    encode_header,
    read_floats,
    read_tensors,
)
from adapters.errors import CheckpointInvalid, Problem, SumInvalid, quote
from adapters.store.files import CONFIG, WEIGHTS, FileRefused, open_adapter_file, write_durably

PUBLISH_AGAIN = "publish the adapter again"
_A, _B = SIDES


@dataclass(frozen=True, slots=True)
class Weighted:
    """A published adapter's folder, and its weight in the sum."""

    folder: Path
    weight: float


@dataclass(frozen=True, slots=True)
class _Factors:
    """One adapter's factors for one module, not yet read: A is (rank, in), B is (out, rank)."""

    file: BinaryIO
    a: Tensor
    b: Tensor
    scale: float  # with the weight

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def shape(self) -> Shape:
        return self.b.shape[0], self.a.shape[1]


def stack(parts: Sequence[Weighted], into: Path, base_name: str | None) -> dict[str, Shape]:
    """Write PEFT's two files to `into`, durably; returns the base's shapes of the adapted modules.

    One module is in memory at a time. Raises CheckpointInvalid, or OSError.
    """
    with ExitStack() as opened:
        modules = _group(parts, opened)
        ranks = {name: sum(each.rank for each in group) for name, group in modules.items()}
        write_durably(into / CONFIG, [_config(ranks, base_name)])
        write_durably(into / WEIGHTS, _weights(modules))
    return {name: group[0].shape for name, group in modules.items()}


def judge(folder: Path, base: Base, max_rank: int = MAX_RANK) -> Checkpoint:
    """The facts of a stacked adapter; raises SumInvalid where weights make it too large."""
    try:
        return read_checkpoint(folder, base, max_rank=max_rank)
    except CheckpointInvalid as error:
        first = error.problems[0]
        said = f"added up with these weights, {first.where} {first.message}"
        raise SumInvalid(said, "give smaller weights, or fewer parts") from error


def base_of(modules: dict[str, Shape], name: str, digest: str | None) -> Base:
    """As much of a base as adapters show that were published for it."""
    return Base(name, "", modules, digest or "", frozenset())


def _group(parts: Sequence[Weighted], opened: ExitStack) -> dict[str, list[_Factors]]:
    """The factors by module, in the order of the modules' names."""
    found: dict[str, list[_Factors]] = {}
    for part in parts:
        for module, factors in _open(part, opened):
            group = found.setdefault(module, [])
            group.append(factors)
            if factors.shape != group[0].shape:
                said = f"has the shapes {group[0].shape} and {factors.shape} in two parts of a sum"
                fix = "add up adapters of one base"
                raise CheckpointInvalid([Problem("shape_mismatch", quote(module), said, fix)])
    return dict(sorted(found.items()))


def _open(part: Weighted, opened: ExitStack) -> Iterator[tuple[str, _Factors]]:
    config, problems = read_peft_config(part.folder, MAX_RANK)
    if config is None:
        raise CheckpointInvalid(problems)
    try:
        file = opened.enter_context(open_adapter_file(part.folder, WEIGHTS))
        tensors = read_tensors(part.folder / WEIGHTS)
    except FileRefused as refused:
        raise CheckpointInvalid([refused.problem]) from refused
    except TensorsMalformed as error:
        raise _malformed(error) from error
    for module in {split_name(name)[0]: None for name in tensors}:
        yield module, _pick(part, config, file, tensors, module)


def _pick(
    part: Weighted, config: PeftConfig, file: BinaryIO, tensors: dict[str, Tensor], module: str
) -> _Factors:
    a, b = (tensors.get(f"{PREFIX}{module}{suffix}") for suffix in (_A, _B))
    if a is None or b is None or len(a.shape) != 2 or a.shape[:1] != b.shape[1:]:
        problem = Problem("pair_incomplete", quote(module), "has not both factors", PUBLISH_AGAIN)
        raise CheckpointInvalid([problem])
    return _Factors(file, a, b, part.weight * config.scale_of(module))


def _config(ranks: dict[str, int], base_name: str | None) -> bytes:
    """Each module by its whole name: parts may adapt others in each layer."""
    rank = max(ranks.values())
    others = {re.escape(name): each for name, each in ranks.items() if each != rank}
    config: dict[str, Any] = {
        "base_model_name_or_path": base_name,
        "bias": "none",
        "lora_alpha": rank,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(ranks),
        "task_type": "CAUSAL_LM",
        "rank_pattern": others,
        "alpha_pattern": others,
    }
    return json.dumps(config, indent=2).encode() + b"\n"


def _weights(modules: dict[str, list[_Factors]]) -> Iterator[bytes]:
    """The pieces of a safetensors file. The A's keep their type if they have one in common."""
    kinds = {each.a.dtype for group in modules.values() for each in group}
    kind = kinds.pop() if len(kinds) == 1 else "F32"
    header: dict[str, Any] = {}
    end = 0
    for name, group in modules.items():
        outputs, inputs = group[0].shape
        rank = sum(each.rank for each in group)
        for suffix, dtype, shape in ((_A, kind, (rank, inputs)), (_B, "F32", (outputs, rank))):
            begin, end = end, end + shape[0] * shape[1] * (4 if dtype == "F32" else 2)
            entry = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
            header[f"{PREFIX}{name}{suffix}"] = entry
    yield encode_header({"__metadata__": {"format": "pt"}} | header)
    for group in modules.values():
        for each in group:
            yield _read_a(each, as_it_is=kind != "F32")
        scaled = [_read(each.file, each.b) * np.float32(each.scale) for each in group]
        yield np.hstack(scaled).astype("<f4", copy=False).tobytes()


def _read_a(factors: _Factors, as_it_is: bool) -> bytes:
    if not as_it_is:
        return _read(factors.file, factors.a).astype("<f4", copy=False).tobytes()
    factors.file.seek(factors.a.begin)
    return factors.file.read(factors.a.end - factors.a.begin)


def _read(file: BinaryIO, tensor: Tensor) -> Floats:
    try:
        return read_floats(file, tensor)
    except TensorsMalformed as error:
        raise _malformed(error) from error


def _malformed(error: TensorsMalformed) -> CheckpointInvalid:
    return CheckpointInvalid([Problem(error.code, WEIGHTS, quote(str(error)), PUBLISH_AGAIN)])
