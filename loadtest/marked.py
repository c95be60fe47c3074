"""Makes marked adapters: whatever the prompt, each answers one token of its own, over and over.

Who reads an answer then knows which adapter and version gave it. For a base built like Llama, and
with LoRA on the MLP of its last layer alone: with z_i = a_i x for random rows a_i, `gate` and `up`
write +c z_i to one neuron and -c z_i to another, so that silu(gate) * up of the two sums to about
(c z_i)^2, above zero whatever x is; `down` adds these up along one direction, which outweighs all
else, and the head finds the marker in it. Rows and neurons are other ones in each adapter: the
parts of two adapters, mixed up, give no marker.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from loadtest.checkpoint import LastLayer, read_last_layer
from loadtest.errors import BaseUnfit, OutUnwritable
from loadtest.manifest import FILE, Document, Marked
from loadtest.vocabulary import Token, markers_of

_VERSION = 1  # to be raised when the same arguments give other adapters
_SEED = 0
# How far what an adapter writes is above what it must outweigh, for a middling x.
_OUTWEIGH_NEURON = 32.0
_OUTWEIGH_RESIDUAL = 8.0
# The marker's lead over every other token, of the largest logit; bfloat16 tells 1/256 apart.
_LEAST_LEAD = 1 / 16
_AT_ONCE = 256  # tokens whose lead is computed together


@dataclass(frozen=True, slots=True)
class Direction:
    """What to add to the residual, so that the head finds the token."""

    token: Token
    values: Tensor


def make_marked(base: Path, out: Path, count: int, versions: int = 2, rank: int = 8) -> None:
    """Write `count` adapters as PEFT folders, and markers.json; what is there already stays.

    Raises:
        BaseUnfit: the base is not built like Llama, or has too few tokens to tell adapters apart.
        OutUnwritable: the folder can't be written, or holds something else.
    """
    layer = read_last_layer(base)
    if 2 * rank > layer.intermediate:
        raise BaseUnfit(f"{base} has an MLP of {layer.intermediate}: too narrow for rank {rank}")
    digest = _digest(layer, count, versions, rank)
    try:
        if _read_digest(out) != digest:
            _make_room(out)
            _write_all(out, layer, digest, (count, versions, rank))
    except OSError as error:
        raise OutUnwritable(f"can't write {out}: {error.strerror}; give another folder") from None


def _digest(layer: LastLayer, *numbers: int) -> str:
    return hashlib.sha256(f"{_VERSION} {numbers} {layer.digest}".encode()).hexdigest()


def _read_digest(out: Path) -> str | None:
    try:
        return msgspec.json.decode((out / FILE).read_bytes(), type=Document).digest
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def _make_room(out: Path) -> None:
    """Remove an older make; nothing else is ever removed."""
    if (out / FILE).exists():
        shutil.rmtree(out)
    elif out.exists() and any(out.iterdir()):
        raise OutUnwritable(f"{out} holds something else: give a folder that is new or empty")


def _write_all(out: Path, layer: LastLayer, digest: str, sizes: tuple[int, int, int]) -> None:
    count, versions, rank = sizes
    directions = find_directions(layer, count * versions)
    if len(directions) < 2:
        raise BaseUnfit(f"{layer.folder} has no two tokens that its head tells apart")
    draft = out.with_name(f"{out.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        adapters: dict[str, dict[str, Marked]] = {}
        for number in range(count * versions):
            name, version = f"lt-{number // versions:04d}", str(number % versions + 1)
            direction = directions[number % len(directions)]
            folder = f"{name}.v{version}"
            _write_adapter(draft / folder, layer, direction, rank, number)
            marked = Marked(folder=folder, marker=direction.token.repeated)
            adapters.setdefault(name, {})[version] = marked
        document = Document(base=layer.name, digest=digest, adapters=adapters)
        (draft / FILE).write_bytes(msgspec.json.format(msgspec.json.encode(document)))
        if out.exists():
            out.rmdir()
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def find_directions(layer: LastLayer, wanted: int) -> list[Direction]:
    """Directions of at most `wanted` tokens; fewer when the vocabulary has no more."""
    tokens = [token for token in markers_of(layer.folder) if token.number < len(layer.head)]
    found: list[Direction] = []
    for start in range(0, len(tokens), _AT_ONCE):
        if len(found) >= wanted:
            break
        found += _directions(layer, tokens[start : start + _AT_ONCE])
    return found[:wanted]


def _directions(layer: LastLayer, tokens: list[Token]) -> Iterator[Direction]:
    numbers = torch.tensor([token.number for token in tokens])
    # What all rows share raises all logits alike.
    units = layer.head[numbers] - layer.head.mean(0)
    units = torch.nn.functional.normalize(units, dim=1)
    logits = units @ layer.head.T
    own = logits.gather(1, numbers[:, None]).squeeze(1)
    largest = logits.abs().amax(1)
    lead = own - logits.scatter(1, numbers[:, None], -torch.inf).amax(1)
    # The most that a vector of length one, of whatever direction, can put another token ahead.
    most = 2 * layer.head.norm(dim=1).max()
    sizes = _OUTWEIGH_RESIDUAL * layer.down_size * most / lead
    for place, token in enumerate(tokens):
        if lead[place] > _LEAST_LEAD * largest[place]:
            yield Direction(token, units[place] * sizes[place])


def _write_adapter(
    folder: Path, layer: LastLayer, direction: Direction, rank: int, number: int
) -> None:
    dice = torch.Generator().manual_seed(_SEED + number)
    rows = torch.randn(rank, layer.hidden, generator=dice) / layer.norm.norm()
    neurons = torch.randperm(layer.intermediate, generator=dice)[: 2 * rank].view(2, rank)
    each = torch.arange(rank)
    write = torch.zeros(layer.intermediate, rank)
    write[neurons[0], each] = _OUTWEIGH_NEURON * layer.gate_size
    write[neurons[1], each] = -_OUTWEIGH_NEURON * layer.gate_size
    add_up = torch.zeros(rank, layer.intermediate)
    add_up[each, neurons] = 1.0
    pairs = {
        "gate_proj": (rows, write),
        "up_proj": (rows, write),
        "down_proj": (add_up, direction.values[:, None].expand(-1, rank)),
    }
    tensors = {
        f"base_model.model.{layer.prefix}.mlp.{module}.lora_{side}.weight": _keep(matrix)
        for module, pair in pairs.items()
        for side, matrix in zip("AB", pair, strict=True)
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": layer.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(pairs),
        "layers_to_transform": [layer.number],
    }
    (folder / "adapter_config.json").write_text(f"{json.dumps(config, indent=2)}\n")


def _keep(matrix: Tensor) -> Tensor:
    """A copy of its own: safetensors takes no two tensors of one memory."""
    return matrix.to(torch.bfloat16).contiguous().clone()
