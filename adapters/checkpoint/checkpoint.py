"""Reads a PEFT adapter folder and judges whether a base model can serve it.

One pass finds every problem. An adapter that passes fits the base exactly; the engine itself
silently accepts adapters that do not. Knows nothing of stores, names or engines.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from adapters.checkpoint.base import Base, Shape, is_called
from adapters.checkpoint.pairs import (
    RIGHT_BASE,
    SAVE_WHOLE,
    Pair,
    merge_causes,
    pair_tensors,
)
from adapters.checkpoint.peft_config import MAX_RANK, MAX_SCALE, PeftConfig, read_peft_config
from adapters.checkpoint.tensors import (
    FLOATS,
    MAX_HEADER_BYTES,
    Magnitude,
    Tensor,
    TensorsMalformed,
    measure,
    read_tensors,
)
from adapters.errors import CheckpointInvalid, Problem, quote
from adapters.store.files import WEIGHTS, FileRefused, open_adapter_file

# Limit of scale * |A| * |B| in Frobenius norms, which bounds |scale * B A|. Real adapters are far
# below: A starts at norm sqrt(rank / 3), and a B of 4096 x 128 values of 0.05 has norm 36, so 500
# at scale 2. At the limit, activations of norm 1,000 stay 30 orders under bfloat16's overflow.
MAX_DELTA_NORM = 1e5
# The largest float16: the engine folds the scale into B in the base's own type.
MAX_VALUE = 65504.0

TRAIN_AGAIN = "train again with a smaller learning rate, or from an earlier checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The facts of a valid adapter. `rank` is the largest of any module: the engine's slot size.

    `warnings` are reasons to doubt it, though it can be served.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    base_name: str | None
    size_bytes: int
    tensor_count: int
    warnings: tuple[Problem, ...] = ()


def largest_weights(base: Base) -> int:
    """The largest weights file for this base, in bytes: MAX_RANK on every linear, in F32."""
    return MAX_HEADER_BYTES + 4 * MAX_RANK * sum(map(sum, base.linears.values()))


def read_checkpoint(
    folder: Path, base: Base, *, max_rank: int = MAX_RANK, values: bool = True
) -> Checkpoint:
    """The facts of an adapter that `base` can serve; raises CheckpointInvalid.

    Without `values` only the headers are read: for bytes whose values were judged at publishing,
    and whose digest shows that they are the same.
    """
    checkpoint, problems = inspect_checkpoint(folder, base, max_rank=max_rank, values=values)
    if problems or checkpoint is None:
        raise CheckpointInvalid(problems)
    return checkpoint


def inspect_checkpoint(
    folder: Path,
    base: Base,
    *,
    max_rank: int = MAX_RANK,
    names: Collection[str] | None = None,
    values: bool = True,
) -> tuple[Checkpoint | None, list[Problem]]:
    """Like read_checkpoint, but returns the problems.

    `names` are the names of the base that the adapter's config may claim; any if None.
    """
    config, problems = read_peft_config(folder, max_rank)
    if config and names is not None and not is_called(config.base_name, names):
        problems.append(_explain_other_base(config.base_name, base))
    found: list[Problem] = []  # in the tensors
    unread: list[Problem] = []
    try:
        with open_adapter_file(folder, WEIGHTS) as file:
            tensors = read_tensors(folder / WEIGHTS)
            pairs, found = pair_tensors(tensors, base)
            found += _find_absent(pairs, tensors, base, config)
            for pair in pairs.values():
                found += _judge_pair(file, pair, base.linears[pair.module], config, values)
    except FileRefused as refused:
        unread = [refused.problem]
    except TensorsMalformed as error:
        unread = [Problem(error.code, WEIGHTS, quote(str(error)), SAVE_WHOLE)]
    problems += [*merge_causes(found, known={problem.code for problem in problems}), *unread]
    if config is None or problems:
        return None, problems
    return _describe(config, pairs, tensors, folder), []


def _explain_other_base(claimed: str | None, base: Base) -> Problem:
    said = f"is {quote(claimed or '')}, the base given is {quote(base.name)}"
    fix = (
        "publish it for that model; if it is the same, say so: with --base-name or"
        " --allow-base-mismatch, of a server with --served-model-name or --allow-base-mismatch"
    )
    return Problem("base_mismatch", "base_model_name_or_path", said, fix)


def _describe(
    config: PeftConfig, pairs: Mapping[str, Pair], tensors: Mapping[str, Tensor], folder: Path
) -> Checkpoint:
    return Checkpoint(
        rank=config.largest_rank,
        alpha=config.alpha,
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in pairs})),
        base_name=config.base_name,
        size_bytes=(folder / WEIGHTS).stat().st_size,
        tensor_count=len(tensors),
        warnings=tuple(_find_doubts(pairs)),
    )


def _find_doubts(pairs: Mapping[str, Pair]) -> Iterator[Problem]:
    if all(pair.change == 0 for pair in pairs.values()):
        said = "changes nothing: every lora_B, or every lora_A, is zero; it answers as the base"
        fix = "check that training ran, and that the trained weights were saved"
        yield Problem("nothing_learnt", WEIGHTS, said, fix)


def _find_absent(
    pairs: Mapping[str, Pair],
    tensors: Mapping[str, Tensor],
    base: Base,
    config: PeftConfig | None,
) -> Iterator[Problem]:
    if not tensors:
        yield Problem("weights_empty", WEIGHTS, "holds no tensors", SAVE_WHOLE)
    elif pairs and config and (lost := _lost_modules(pairs, base, config.targets)):
        said = f"lacks {len(lost)} modules that its config targets, {quote(lost[0])} first"
        yield Problem("modules_missing", WEIGHTS, said, f"{SAVE_WHOLE}, or {RIGHT_BASE}")


def _lost_modules(pairs: Mapping[str, Pair], base: Base, targets: Sequence[str]) -> list[str]:
    """Modules that the config targets, and PEFT therefore saves, but the file lacks."""
    names = frozenset(targets)
    return [
        module
        for module in base.linears
        if module not in pairs and not names.isdisjoint(_suffixes(module))
    ]


def _suffixes(module: str) -> Iterator[str]:
    parts = module.split(".")
    return (".".join(parts[start:]) for start in range(len(parts)))


def _judge_pair(
    file: BinaryIO, pair: Pair, shape: Shape, config: PeftConfig | None, values: bool
) -> list[Problem]:
    problems = list(_find_misshapen(pair, shape, config))
    scale = config.scale_of(pair.module) if config else 1.0
    if scale > MAX_SCALE:
        said = f"is scaled by {scale:.3g} (alpha over rank), the limit is {MAX_SCALE:g}"
        problems.append(Problem("scale_too_large", quote(pair.module), said, "lower lora_alpha"))
    # Misshapen tensors are not read: the base's shapes do not bound their sizes.
    if values and not problems:
        problems += _find_bad_values(file, pair, scale)
    return problems


def _find_misshapen(pair: Pair, shape: Shape, config: PeftConfig | None) -> Iterator[Problem]:
    if pair.a is None or pair.b is None:
        absent = "lora_A" if pair.a is None else "lora_B"
        yield Problem("pair_incomplete", quote(pair.module), f"has no {absent}", SAVE_WHOLE)
    rank = config.rank_of(pair.module) if config else None
    for tensor in pair.tensors:
        if tensor.dtype not in FLOATS:
            said = f"has type {tensor.dtype}, not BF16, F16 or F32"
            fix = "save the adapter unquantized, in bfloat16"
            yield Problem("dtype_unsupported", quote(tensor.name), said, fix)
        yield from _judge_shape(tensor, tensor is pair.a, shape, rank)


def _judge_shape(tensor: Tensor, is_a: bool, base: Shape, rank: int | None) -> Iterator[Problem]:
    out_features, in_features = base
    side, wanted = (1, in_features) if is_a else (0, out_features)
    if len(tensor.shape) != 2 or tensor.shape[side] != wanted:
        expected = ("rank", wanted) if is_a else (wanted, "rank")
        said = f"has shape {tensor.shape}, the base needs ({expected[0]}, {expected[1]})"
        yield Problem("shape_mismatch", quote(tensor.name), said, RIGHT_BASE)
    elif tensor.shape[1 - side] != (rank or tensor.shape[1 - side]) or 0 in tensor.shape:
        said = f"has rank {tensor.shape[1 - side]}, the config says {rank}"
        yield Problem("rank_mismatch", quote(tensor.name), said, SAVE_WHOLE)


def _find_bad_values(file: BinaryIO, pair: Pair, scale: float) -> Iterator[Problem]:
    sizes: list[Magnitude] = []
    for tensor in pair.tensors:
        size = measure(file, tensor)
        reach = size.largest * (scale if tensor is pair.b else 1.0)
        if not reach < float("inf"):
            said = "holds values that are not finite"
            yield Problem("value_not_finite", quote(tensor.name), said, TRAIN_AGAIN)
        elif reach > MAX_VALUE:
            said = f"reaches {reach:.3g} with its scale, the limit is {MAX_VALUE:g}"
            yield Problem("value_too_large", quote(tensor.name), said, TRAIN_AGAIN)
        else:
            sizes.append(size)
    if len(sizes) < 2:
        return
    pair.change = scale * sizes[0].norm * sizes[1].norm
    if pair.change > MAX_DELTA_NORM:
        bound = f"{pair.change:.3g}, the limit is {MAX_DELTA_NORM:g}"
        said = f"can change the base's weights by {bound}"
        yield Problem("delta_too_large", quote(pair.module), said, TRAIN_AGAIN)
