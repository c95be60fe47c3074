"""The parts of a base that marked adapters depend on: the last two MLPs, and the head."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from loadtest.errors import BaseUnfit

# Families with an MLP of silu(gate) * up, added unscaled to the residual, and plain RMS norms.
FAMILIES = ("llama", "ministral", "mistral", "qwen2", "qwen3", "smollm3")
_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
_LAST_NORM = "model.norm.weight"
_PARTS = ("post_attention_layernorm", "mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
# The linears of a layer, which trained adapters usually change.
LINEARS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@dataclass(frozen=True, slots=True)
class Layer:
    number: int
    norm: Tensor  # the weight of the norm before the MLP
    gate_size: float  # largest row norm of gate and up, scaled by the norm's weight; at least 1
    down_size: float  # largest column norm of down; at least 1

    @property
    def prefix(self) -> str:
        return f"model.layers.{self.number}.mlp"


@dataclass(frozen=True, slots=True)
class Ending:
    """All in float32. `head` includes the last norm's weight, so that it acts on the residual."""

    folder: Path
    layers: tuple[Layer, Layer]
    head: Tensor  # (vocabulary, hidden)
    intermediate: int
    linears: dict[str, tuple[int, int]]  # (out, in) of LINEARS in all layers, by module
    digest: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def hidden(self) -> int:
        return self.head.shape[1]


def read_ending(folder: Path) -> Ending:
    """Raises BaseUnfit: there is no such base, or its architecture is not like Llama's."""
    config = _read_config(folder)
    count = config.get("num_hidden_layers", 0)
    if count < 2:
        raise BaseUnfit(f"{folder} has {count} layers: marked adapters need two")
    head = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    names = [f"{head}.weight", _LAST_NORM]
    for number in (count - 2, count - 1):
        names += [f"model.layers.{number}.{part}.weight" for part in _PARTS]
    tensors = _read(folder, names)
    return Ending(
        folder=folder,
        layers=(_measure(tensors, count - 2), _measure(tensors, count - 1)),
        head=tensors[names[0]] * tensors[_LAST_NORM],
        intermediate=len(tensors[names[-2]]),
        linears=_read_shapes(folder),
        digest=_digest(folder, tensors),
    )


def _measure(tensors: dict[str, Tensor], number: int) -> Layer:
    norm, down, gate, up = (tensors[f"model.layers.{number}.{part}.weight"] for part in _PARTS)
    return Layer(
        number=number,
        norm=norm,
        gate_size=max(1.0, (torch.cat([gate, up]) * norm).norm(dim=1).max().item()),
        down_size=max(1.0, down.norm(dim=0).max().item()),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise BaseUnfit(
            f"can't read {path}: {error.strerror}; give the folder of a model"
        ) from None
    except ValueError as error:
        raise BaseUnfit(f"{path} is not JSON: {error}") from None
    family = config.get("model_type")
    if family not in FAMILIES or config.get("hidden_act", "silu") != "silu":
        raise BaseUnfit(
            f"{folder} is a {family} model with {config.get('hidden_act')}: marked adapters are "
            f"made for {', '.join(FAMILIES)} with silu"
        )
    if config.get("quantization_config"):
        raise BaseUnfit(f"the weights in {folder} are quantized: give the folder of the original")
    return dict(config)


def _read(folder: Path, names: list[str]) -> dict[str, Tensor]:
    index, tensors = _read_index(folder), {}
    try:
        with ExitStack() as stack:
            for name in names:
                file = folder / index.get(name, _SINGLE)
                opened = stack.enter_context(safe_open(file, framework="pt"))
                tensors[name] = opened.get_tensor(name).float()
    except (OSError, SafetensorError) as error:
        raise BaseUnfit(
            f"{folder} lacks weights of an architecture like Llama's: {error}"
        ) from None
    return tensors


def _read_shapes(folder: Path) -> dict[str, tuple[int, int]]:
    """Of a folder whose weights have been read."""
    shapes = {}
    for file in sorted({*_read_index(folder).values()} or {_SINGLE}):
        with safe_open(folder / file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118 - not a dict
                module = name.removesuffix(".weight")
                if module.endswith(LINEARS):
                    out, into = opened.get_slice(name).get_shape()
                    shapes[module] = (out, into)
    return shapes


def _read_index(folder: Path) -> dict[str, str]:
    """The file of each tensor; empty if all are in one file."""
    try:
        return dict(json.loads((folder / _INDEX).read_bytes())["weight_map"])
    except FileNotFoundError:
        return {}


def _digest(folder: Path, tensors: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).exists():
            state.update((folder / name).read_bytes())
    for tensor in tensors.values():
        state.update(tensor.contiguous().numpy().data)
    return state.hexdigest()
