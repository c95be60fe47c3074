"""What marked adapters need to know of a base: its last layer's MLP, its last norm and its head."""

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

# Families whose MLP is silu(gate) * up, added to the residual as it is, with plain RMS norms.
FAMILIES = ("llama", "ministral", "mistral", "qwen2", "qwen3", "smollm3")
_INDEX = "model.safetensors.index.json"
_EMBEDDINGS = "model.embed_tokens.weight"


@dataclass(frozen=True, slots=True)
class LastLayer:
    """All in float32. `head` has the last norm's weight in it, so that it acts on the residual."""

    folder: Path
    number: int
    norm: Tensor  # of the MLP's input
    head: Tensor  # (vocabulary, hidden)
    gate_size: float  # the largest row of gate and up, for a middling input; at least 1
    down_size: float  # the largest column of down; at least 1
    intermediate: int
    digest: str

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def hidden(self) -> int:
        return len(self.norm)

    @property
    def prefix(self) -> str:
        return f"model.layers.{self.number}"


def read_last_layer(folder: Path) -> LastLayer:
    """Raises BaseUnfit: there is no such base, or one that is not built like Llama."""
    config = _read_config(folder)
    number = int(config["num_hidden_layers"]) - 1
    prefix = f"model.layers.{number}"
    norm, last, gate, up, down = (
        f"{prefix}.post_attention_layernorm.weight",
        "model.norm.weight",
        *(f"{prefix}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    )
    head = _EMBEDDINGS if config.get("tie_word_embeddings") else "lm_head.weight"
    tensors = _read(folder, [norm, last, gate, up, down, head])
    rows = torch.cat([tensors[gate], tensors[up]]) * tensors[norm]
    return LastLayer(
        folder=folder,
        number=number,
        norm=tensors[norm],
        head=tensors[head] * tensors[last],
        gate_size=max(1.0, rows.norm(dim=1).max().item()),
        down_size=max(1.0, tensors[down].norm(dim=0).max().item()),
        intermediate=len(tensors[gate]),
        digest=_digest(folder, tensors),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise BaseUnfit(f"can't read {path}: {error.strerror}; give a model's folder") from None
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
    try:
        index = json.loads((folder / _INDEX).read_bytes())["weight_map"]
    except FileNotFoundError:
        index = {}
    tensors = {}
    try:
        with ExitStack() as stack:
            for name in names:
                file = folder / index.get(name, "model.safetensors")
                opened = stack.enter_context(safe_open(file, framework="pt"))
                tensors[name] = opened.get_tensor(name).float()
    except (OSError, SafetensorError) as error:
        raise BaseUnfit(f"{folder} lacks weights of a model built like Llama: {error}") from None
    return tensors


def _digest(folder: Path, tensors: dict[str, Tensor]) -> str:
    state = hashlib.sha256()
    for name in ("config.json", "tokenizer.json"):
        if (folder / name).exists():
            state.update((folder / name).read_bytes())
    for tensor in tensors.values():
        state.update(tensor.contiguous().numpy())
    return state.hexdigest()
