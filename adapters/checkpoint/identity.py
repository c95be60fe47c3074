"""Which base model an adapter was made for: a digest of what it computes with, and its names.

The digest covers the architecture, so that a copy of the base in another precision or place is the
same base; it tells two sizes of a family apart, but not two fine-tunes of one size: their names
do. Knows nothing of how a base is read.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

# What changes the function or the shapes. Left out: what a copy in another precision changes
# (quantization_config, dtype), and what only training, sampling or a library's version reads.
IDENTIFYING = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
)
NORM_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps")
# What tools append to the name of a base that they packed in fewer bits.
PACKED = re.compile(r"(-unsloth)?-(bnb-)?(4bit|8bit|nf4|int8)$")


def digest_base(config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> str:
    """The identity of a base, from its config.json and its linears."""
    facts: dict[str, Any] = {key: config.get(key) for key in IDENTIFYING}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    facts["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    facts["head_dim"] = config.get("head_dim")
    if facts["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        facts["head_dim"] = hidden // heads
    epsilons = (config[key] for key in NORM_EPSILONS if config.get(key) is not None)
    facts["norm_eps"] = next(epsilons, None)
    # transformers leaves it out where it is true.
    facts["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    facts["rope"] = _read_rope(config)
    facts["linears"] = {name: list(shape) for name, shape in linears.items()}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """One form of what transformers 5 calls rope_parameters and 4 has in two keys."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(found) if isinstance(found, dict) else {}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta") or 10_000.0)
    return {key: float(value) if isinstance(value, int) else value for key, value in rope.items()}


def short_name(name: str) -> str:
    """The part of a hub id or a path that names the model, however it is packed.

    "Org/Tiny", "/models/tiny/" and "models--Org--Tiny/snapshots/<commit>" are all "tiny".
    """
    parts = [part for part in PurePath(name.strip()).parts if part not in ("/", ".", "..")]
    if len(parts) >= 2 and parts[-2] == "snapshots" and parts[:-2]:
        parts = parts[:-2]
    last = parts[-1] if parts else ""
    if last.startswith("models--"):
        last = last.rpartition("--")[2]
    return PACKED.sub("", last.lower())


def is_called(claimed: str | None, names: Iterable[str]) -> bool:
    """Whether an adapter's base_model_name_or_path may mean a base of these names.

    An adapter that names no base claims nothing.
    """
    return not claimed or short_name(claimed) in {short_name(name) for name in names if name}
