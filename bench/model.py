"""Builds the measured model: a random Llama and random PEFT adapters, the same every time.

The weights mean nothing, but no product is zero and every adapter has an effect. The model stays
between runs, in a folder named by the digest of its shape.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.checkpoint.base import LLAMA_LINEARS
from adapters.checkpoint.stacking import Weighted, stack
from bench.errors import OutUnwritable
from bench.workload import adapter_names, sum_names

if TYPE_CHECKING:
    import torch

_VERSION = 3  # raise it when the same shape gets other weights
_SEED = 0
# The size of a linear's output relative to its input. With one gain for all linears, the mean over
# the prompt outweighs the last token: an answer repeats one token, which would hide most errors.
_GAIN = 0.64
_GAIN_INTO_MLP = 1.28
_EMBEDDING_SPREAD = 0.04
# An adapter moves a linear's output by a sixth to a third of its size.
_DELTA_SPREAD = 0.2
_SUM_WEIGHTS = (0.7, -0.5)


@dataclass(frozen=True, slots=True)
class Shape:
    hidden: int = 1024
    layers: int = 12
    intermediate: int = 2048
    heads: int = 16
    vocabulary: int = 1024
    positions: int = 4096
    # (rank, number of adapters); those of rank 8 are the parts of sums, two of each
    adapters: tuple[tuple[int, int], ...] = ((16, 32), (64, 8), (8, 16))

    def linears(self) -> Iterator[tuple[str, int, int]]:
        """Name, outputs and inputs of each linear with an adapter."""
        for layer in range(self.layers):
            for name in sorted(LLAMA_LINEARS):
                block = "self_attn" if name[0] in "qkvo" else "mlp"
                wide = name in ("gate_proj", "up_proj")
                outputs = self.intermediate if wide else self.hidden
                inputs = self.intermediate if name == "down_proj" else self.hidden
                yield f"model.layers.{layer}.{block}.{name}", outputs, inputs


FULL = Shape()
# Shows that everything runs; its figures mean nothing.
TINY = Shape(hidden=128, layers=2, intermediate=256, heads=2, vocabulary=256)


@dataclass(frozen=True, slots=True)
class Home:
    """The folders of the model, its adapters, and the sides' caches and logs."""

    base: Path
    adapters: Path
    cache: Path
    logs: Path
    vocabulary: int


def prepare(out: Path, shape: Shape) -> Home:
    """The model under `out`; built if it is missing.

    Raises:
        OutUnwritable: the folder can't be written.
    """
    folder = out.resolve() / f"model-{_digest(shape)}"
    home = Home(
        base=folder / "base",
        adapters=folder / "adapters",
        cache=out.resolve() / "cache",
        logs=out.resolve() / "logs",
        vocabulary=shape.vocabulary,
    )
    try:
        home.logs.mkdir(parents=True, exist_ok=True)
        if not folder.exists():
            _write(folder, shape)
    except OSError as error:
        raise OutUnwritable(f"can't write {out}: {error.strerror}; try --out FOLDER") from None
    return home


def _digest(shape: Shape) -> str:
    text = json.dumps([_VERSION, _SEED, asdict(shape)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _write(folder: Path, shape: Shape) -> None:
    draft = folder.with_name(f"{folder.name}.{os.getpid()}")
    try:
        _write_base(draft / "base", shape)
        for rank, count in shape.adapters:
            for number, name in enumerate(adapter_names(rank, count)):
                _write_adapter(draft / "adapters" / name, shape, rank, number)
        _write_sums(draft / "adapters", dict(shape.adapters).get(8, 0) // 2)
        draft.rename(folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write_sums(folder: Path, count: int) -> None:
    """As a server stacks them, of two adapters of rank 8 each."""
    names = iter(adapter_names(8, 2 * count))
    for name in sum_names(count):
        (folder / name).mkdir()
        parts = [Weighted(folder / next(names), weight) for weight in _SUM_WEIGHTS]
        stack(parts, folder / name, "bench")


def _write_base(folder: Path, shape: Shape) -> None:
    import torch

    rng = torch.Generator().manual_seed(_SEED)
    tensors = {
        "model.embed_tokens.weight": _normal(rng, shape.vocabulary, shape.hidden, _EMBEDDING_SPREAD)
    }
    for name, outputs, inputs in shape.linears():
        gain = _GAIN_INTO_MLP if name.endswith(("gate_proj", "up_proj")) else _GAIN
        tensors[f"{name}.weight"] = _normal(rng, outputs, inputs, gain / math.sqrt(inputs))
    norms = [
        f"model.layers.{layer}.{norm}"
        for layer in range(shape.layers)
        for norm in ("input_layernorm", "post_attention_layernorm")
    ]
    for name in [*norms, "model.norm"]:
        tensors[f"{name}.weight"] = torch.ones(shape.hidden, dtype=torch.bfloat16)
    _save(folder, "model.safetensors", tensors, "config.json", _base_config(shape))
    _write_tokenizer(folder, shape.vocabulary)


def _write_tokenizer(folder: Path, vocabulary: int) -> None:
    """A word for each token: `lorry serve` needs a tokenizer, the bench's sides do not."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {f"w{number}": number for number in range(vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "w1"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _base_config(shape: Shape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.intermediate,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.positions,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }


def _write_adapter(folder: Path, shape: Shape, rank: int, number: int) -> None:
    import torch

    rng = torch.Generator().manual_seed(_SEED + 1000 * rank + number + 1)
    alpha = 2 * rank
    tensors = {}
    for name, outputs, inputs in shape.linears():
        prefix = f"base_model.model.{name}"
        spread_b = _DELTA_SPREAD / (alpha / rank * math.sqrt(rank))
        tensors[f"{prefix}.lora_A.weight"] = _normal(rng, rank, inputs, 1 / math.sqrt(inputs))
        tensors[f"{prefix}.lora_B.weight"] = _normal(rng, outputs, rank, spread_b)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "bench",
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted(LLAMA_LINEARS),
    }
    _save(folder, "adapter_model.safetensors", tensors, "adapter_config.json", config)


def _normal(rng: torch.Generator, rows: int, columns: int, spread: float) -> torch.Tensor:
    import torch

    return torch.empty(rows, columns, dtype=torch.bfloat16).normal_(0, spread, generator=rng)


def _save(
    folder: Path, weights: str, tensors: dict[str, torch.Tensor], config: str, fields: Any
) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(tensors, folder / weights, metadata={"format": "pt"})
    (folder / config).write_text(f"{json.dumps(fields, indent=2)}\n")
