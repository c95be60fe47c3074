"""Which bases can be served, by config.json and the headers of the weights.

What vLLM or Lorry's kernels can't serve is refused here by name. Some of it would end the engine at
the first call only: vLLM loads it, warms up, and reports ready. Imports neither torch nor vLLM.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from server.errors import ModelNotFound, ModelUnsupported

FAMILIES = "docs/bases.md"
MAX_CONFIG_BYTES = 1 << 20
GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")  # of a mixture, in its config
# Of vLLM's attention on a processor (`CPUAttentionBackend.get_supported_head_sizes`).
HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# vLLM's rotary embedding there (`csrc/cpu/pos_encoding.cpp`) writes both halves of the rotated part
# by eight values at once, past their ends if need be.
ROTARY_STEP = 16


def check_config(model: Path, quantization: str, *, on_processor: bool) -> None:
    """Check that the folder's config is that of a base that can be served here.

    Raises:
        ModelNotFound: no readable config.
        ModelUnsupported: a model of a kind that can't be served.
    """
    config = _read_config(model)
    name = _name(config)
    if not name.endswith(GENERATING):
        raise ModelUnsupported(
            f"{name} is not a model that generates text: serve a causal language model"
        )
    if on_processor:
        nested = config.get("text_config")  # of a multimodal model
        text = nested if isinstance(nested, dict) else config
        _check_experts(name, text, quantization)
        _check_attention(name, text)


def check_weights(model: Path) -> None:
    """Check that a folder whose config was found good has layers whose adapters are served.

    Raises:
        ModelNotFound: no safetensors.
        ModelUnsupported: no such layers, or the weights are damaged.
    """
    if not any(model.glob("*.safetensors")):
        raise ModelNotFound(f"{model} holds no *.safetensors, which weights have to be in")
    _check_linears(_name(_read_config(model)), model)


def _name(config: Mapping[str, Any]) -> str:
    return str(config["architectures"][0])


def _read_config(model: Path) -> dict[str, Any]:
    try:
        with (model / "config.json").open("rb") as file:
            config: dict[str, Any] = json.loads(file.read(MAX_CONFIG_BYTES))
        architectures = config.get("architectures")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ModelNotFound(f"{model} is not a model: can't read config.json ({error})") from None
    if not isinstance(architectures, list) or not architectures:
        raise ModelNotFound(f"{model} is not a model: its config.json names no architecture")
    return config


def _check_experts(name: str, config: Mapping[str, Any], quantization: str) -> None:
    if quantization == "bitsandbytes" and any(config.get(key) for key in EXPERTS):
        raise ModelUnsupported(
            f"{name} is a mixture of experts, which a processor can't run in NF4: serve it with "
            "--quantization none"
        )


def _check_attention(name: str, config: Mapping[str, Any]) -> None:
    width = config.get("head_dim")
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    if width is None and isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
        width = hidden // heads
    if not isinstance(width, int):
        return  # vLLM knows where else it stands
    if width not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise ModelUnsupported(
            f"{name} has attention heads of {width}, and vLLM's attention on a processor takes "
            f"{sizes} only: serve it on a GPU, or serve another base"
        )
    rotated = int(width * _rotated_share(config))
    if rotated % ROTARY_STEP:
        raise ModelUnsupported(
            f"{name} rotates {rotated} of the {width} values of a head, and on a processor it must "
            f"be a multiple of {ROTARY_STEP}: serve it on a GPU, or serve another base"
        )


def _rotated_share(config: Mapping[str, Any]) -> float:
    rope = config.get("rope_parameters")
    places = [config, *([rope] if isinstance(rope, dict) else [])]
    shares = (place.get(key) for place in places for key in ("partial_rotary_factor", "rotary_pct"))
    numbers = (each for each in shares if isinstance(each, int | float))
    return next((float(each) for each in numbers if 0 <= each <= 1), 1.0)


def _check_linears(name: str, model: Path) -> None:
    from adapters.checkpoint.base import SERVED_MODULES, read_base  # imports numpy
    from adapters.errors import BaseUnreadable

    try:
        linears = read_base(model).linears
    except BaseUnreadable as error:
        raise ModelUnsupported(f"{name} can't be served: {error}") from None
    if not linears:
        served = ", ".join(sorted(SERVED_MODULES))
        raise ModelUnsupported(
            f"{name} has none of the layers whose adapters Lorry serves ({served}): serve a base "
            f"of a family in {FAMILIES}"
        )
