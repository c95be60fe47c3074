"""A base model, for adapters to fit: its linear layers by name and shape, and its identity.

Reads the base's config.json and the headers of its safetensors files, never its values.
Knows nothing of adapters or of how the base is run.

The identity is a digest of the architecture: a copy of the base in another precision or another
place is the same base. It distinguishes two sizes of a family, but not two fine-tunes of one size;
their names do.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters.checkpoint.tensors import TensorsMalformed, read_tensors
from adapters.errors import BaseUnreadable, quote
from adapters.hub import model_of

# The linears whose adapters are served; Phi-3 has some of them in one. Embeddings and the output
# head are not: an adapter there slows every step of every request, and some of those requests crash
# the engine. Nor are the experts of a mixture (EXPERT), though their linears have the same names.
LLAMA_LINEARS = frozenset(
    {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
)
FUSED_LINEARS = frozenset({"qkv_proj", "gate_up_proj"})
SERVED_MODULES = LLAMA_LINEARS | FUSED_LINEARS
# Families built like Llama: their layers follow from the config alone.
LLAMA_LIKE = frozenset(
    {
        "cohere",
        "cohere2",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "ministral",
        "mistral",
        "olmo2",
        "qwen2",
        "qwen3",
        "smollm3",
        "stablelm",
    }
)
PHI_LIKE = frozenset({"phi3"})
# The keys that determine the function and the shapes. Left out: keys that a copy in another
# precision changes (quantization_config, dtype), and those for training, sampling or a library.
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
# Suffixes that tools append to the name of a base that they quantize.
PACKED = re.compile(r"(-unsloth)?-(bnb-)?(4bit|8bit|nf4|int8)$")
INDEX = "model.safetensors.index.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_INDEX_BYTES = 64 << 20
MAX_LAYERS = 1024
LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")
EXPERT = re.compile(r"\.experts\.")

Shape = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Base:
    """A base model's servable linears: module name -> (out_features, in_features).

    `digest` is its identity, `names` are its names (see `is_called`), and `vocabulary` is the
    number of its tokens' embeddings, if its config says it.
    """

    name: str
    architecture: str
    linears: Mapping[str, Shape]
    digest: str
    names: frozenset[str]
    vocabulary: int | None = None

    @property
    def layers(self) -> int:
        found = (LAYER.search(module) for module in self.linears)
        return 1 + max((int(layer[1]) for layer in found if layer), default=-1)


def read_base(folder: Path) -> Base:
    """Read a base model folder (a transformers model, quantized or not); raises BaseUnreadable."""
    config = _read_config(folder)
    # The packed weights of a quantized base do not show the shapes; its config does. It also stands
    # in for weights that were not fetched.
    has_plain_weights = not config.get("quantization_config") and any(
        path.exists() for path in weights_files(folder)
    )
    linears = _linears_from_headers(folder) if has_plain_weights else {}
    linears = linears or _linears_from_config(folder, config)
    named = {module: shape for module, shape in linears.items() if _ends(module) in LLAMA_LINEARS}
    architectures = config.get("architectures") or [config.get("model_type")]
    names = (str(folder), str(folder.resolve()), config.get("_name_or_path"))
    vocabulary = config.get("vocab_size")
    cached = model_of(folder)
    return Base(
        name=cached.repo if cached else folder.resolve().name,
        architecture=str(architectures[0] if isinstance(architectures, list) else architectures),
        linears={name: each for name, each in linears.items() if not EXPERT.search(name)},
        # Of these names only, experts too: what is served may change, and a base stays the same.
        digest=_identify(folder, config, named),
        names=frozenset(name for name in names if isinstance(name, str) and name),
        vocabulary=vocabulary if isinstance(vocabulary, int) else None,
    )


def _identify(folder: Path, config: Mapping[str, Any], linears: Mapping[str, Shape]) -> str:
    try:
        return digest_base(config, linears)
    except (OverflowError, TypeError, ValueError) as error:
        raise BaseUnreadable(
            f"the config of the base in {quote(str(folder))} has an invalid number",
            "give the folder of a transformers model",
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    return _read_json(folder / "config.json", MAX_CONFIG_BYTES)


def _read_json(path: Path, max_bytes: int) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(max_bytes))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BaseUnreadable(
            f"there is no base model in {quote(str(path.parent))}",
            "give the folder that holds the base's config.json",
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise BaseUnreadable(
            f"the base model's {quote(str(path))} cannot be read",
            "give the folder of a transformers model",
        ) from error
    if not isinstance(value, dict):
        raise BaseUnreadable(f"{quote(str(path))} is not a model's config", "check the folder")
    return value


def _linears_from_headers(folder: Path) -> dict[str, Shape]:
    linears: dict[str, Shape] = {}
    for path in weights_files(folder):
        try:
            tensors = read_tensors(path)
        except TensorsMalformed as error:
            raise BaseUnreadable(
                f"the base model's {quote(path.name)} is damaged: {quote(str(error))}",
                "fetch the base again",
            ) from error
        for name, tensor in tensors.items():
            module = name.removesuffix(".weight")
            if module != name and len(tensor.shape) == 2 and _is_adaptable(module):
                linears[module] = (tensor.shape[0], tensor.shape[1])
    return linears


def weights_files(folder: Path) -> list[Path]:
    """The base's safetensors files: those in its index, else all except an adapter's."""
    if (folder / INDEX).exists():
        index = _read_json(folder / INDEX, MAX_INDEX_BYTES).get("weight_map")
        names = list(index.values()) if isinstance(index, dict) else []
        if not names or not all(isinstance(name, str) for name in names):
            raise BaseUnreadable(f"the base's {INDEX} names no files", "fetch the base again")
        return [folder / Path(name).name for name in sorted(set(names))]
    files = sorted(folder.glob("*.safetensors"))
    return [path for path in files if not path.name.startswith("adapter_")]


def _is_adaptable(module: str) -> bool:
    return _ends(module) in SERVED_MODULES and LAYER.search(module) is not None


def _ends(module: str) -> str:
    return module.rpartition(".")[2]


def _linears_from_config(folder: Path, config: Mapping[str, Any]) -> dict[str, Shape]:
    family = str(config.get("model_type"))
    if family not in LLAMA_LIKE | PHI_LIKE:
        raise BaseUnreadable(
            f"the config of the {quote(family)} model in {quote(str(folder))} does not determine"
            " its linear layers",
            "keep the unquantized base's safetensors files in the folder",
        )
    hidden = _positive(config, "hidden_size")
    inner = _positive(config, "intermediate_size")
    heads = _positive(config, "num_attention_heads")
    groups = _positive(config, "num_key_value_heads", heads)
    width = _positive(config, "head_dim", max(hidden // heads, 1))
    shapes = {
        "self_attn.q_proj": (heads * width, hidden),
        "self_attn.k_proj": (groups * width, hidden),
        "self_attn.v_proj": (groups * width, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
    }
    if family in PHI_LIKE:
        shapes = {
            "self_attn.qkv_proj": ((heads + 2 * groups) * width, hidden),
            "mlp.gate_up_proj": (2 * inner, hidden),
        }
    shapes |= {
        "self_attn.o_proj": (hidden, heads * width),
        "mlp.down_proj": (hidden, inner),
    }
    layers = min(_positive(config, "num_hidden_layers"), MAX_LAYERS)
    return {
        f"model.layers.{layer}.{module}": shape
        for layer in range(layers)
        for module, shape in shapes.items()
    }


def _positive(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BaseUnreadable(
            f"the base's config.json has no usable {key!r}", "give a transformers model's folder"
        )
    return value


def digest_base(config: Mapping[str, Any], linears: Mapping[str, tuple[int, int]]) -> str:
    """The identity of a base, from its config.json and its linears (name -> shape)."""
    facts: dict[str, Any] = {key: config.get(key) for key in IDENTIFYING}
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    facts["num_key_value_heads"] = config.get("num_key_value_heads") or heads
    facts["head_dim"] = config.get("head_dim")
    if facts["head_dim"] is None and isinstance(heads, int) and isinstance(hidden, int) and heads:
        facts["head_dim"] = hidden // heads
    epsilons = (config[key] for key in NORM_EPSILONS if config.get(key) is not None)
    facts["norm_eps"] = next(epsilons, None)
    # transformers omits it when it is true.
    facts["tie_word_embeddings"] = config.get("tie_word_embeddings", True)
    facts["rope"] = _read_rope(config)
    facts["linears"] = {name: list(shape) for name, shape in linears.items()}
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def _read_rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """transformers 5 has rope_parameters, 4 has two keys for the same: one form of both."""
    found = config.get("rope_parameters") or config.get("rope_scaling")
    rope = dict(found) if isinstance(found, dict) else {}
    rope["rope_type"] = rope.pop("type", None) or rope.get("rope_type") or "default"
    rope.setdefault("rope_theta", config.get("rope_theta") or 10_000.0)
    return {key: float(value) if isinstance(value, int) else value for key, value in rope.items()}


def short_name(name: str) -> str:
    """The part of a hub id or a path that names the model, without a quantization suffix.

    "Org/Tiny", "/models/tiny/", "D:\\models\\tiny" and "models--Org--Tiny/snapshots/<commit>" are
    all "tiny". ModelScope writes the dots of a name as "___" in its cache.
    """
    parts = [part for part in re.split(r"[/\\]", name.strip()) if part not in ("", ".", "..")]
    if len(parts) >= 2 and parts[-2] == "snapshots" and parts[:-2]:
        parts = parts[:-2]
    last = parts[-1] if parts else ""
    if last.startswith("models--"):
        last = last.rpartition("--")[2]
    return PACKED.sub("", last.replace("___", ".").lower())


def is_called(claimed: str | None, names: Iterable[str]) -> bool:
    """Whether an adapter's base_model_name_or_path may mean a base with these names.

    True for an adapter that names no base.
    """
    return not claimed or short_name(claimed) in {short_name(name) for name in names if name}
