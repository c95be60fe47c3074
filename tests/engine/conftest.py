"""Fixtures: a tiny random base, valid and broken adapters, and shared engines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from engine_process import OURS, STOCK, EngineProcess

from server.kernels import PORTABLE_VARIABLE

LAYERS, HIDDEN, INTERMEDIATE, VOCABULARY = 4, 128, 256, 512
HEADS, KV_HEADS, HEAD = 4, 2, 32
ATTENTION = {
    "self_attn.q_proj": (HEADS * HEAD, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD),
}
LINEARS = ATTENTION | {
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
TARGETS = [name.rpartition(".")[2] for name in LINEARS]
ENDS = {"model.embed_tokens": (HIDDEN, VOCABULARY), "lm_head": (VOCABULARY, HIDDEN)}

BLOCK = 32
KV_BLOCK_BYTES = LAYERS * KV_HEADS * BLOCK * 2 * HEAD * 2

# Different ranks below max_lora_rank 16; `gum` adapts two kinds of layers only.
GOOD = {
    "ash": (16, LINEARS),
    "birch": (8, LINEARS),
    "cedar": (4, LINEARS),
    "elm": (8, LINEARS),
    "gum": (4, {name: LINEARS[name] for name in ("self_attn.q_proj", "mlp.down_proj")}),
}
# Adapters of embeddings and lm_head (hazel), and of lm_head only (ivy).
WITH_ENDS = {"hazel": (8, LINEARS | ENDS), "ivy": (4, {"lm_head": ENDS["lm_head"]})}
ROOMY = {"kv_cache_memory_bytes": 64 * 2**20}
# Each engine has fewer slots than fitting adapters.
ENGINES = {
    # As Lorry runs vLLM on a bf16 base: compiled, with prefix caching.
    "plain": (GOOD, ROOMY | {"max_loras": 4, "lora_target_modules": TARGETS}),
    # NF4, with a KV cache, slots and steps too small for the requests.
    "cramped": (
        GOOD,
        {
            "quantization": "bitsandbytes",
            "max_loras": 2,
            "max_cpu_loras": 3,
            "max_num_seqs": 8,
            "max_num_batched_tokens": 64,
            "kv_cache_memory_bytes": 16 * KV_BLOCK_BYTES,
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "lora_target_modules": TARGETS,
        },
    ),
    # Adapters may target the embeddings and lm_head too.
    "open_ended": (
        (*WITH_ENDS, "ash", "birch"),
        ROOMY | {"max_loras": 3, "enforce_eager": True},
    ),
    # NF4 without the compiled kernels.
    "portable": (
        ("ash", "cedar", "gum"),
        {
            "quantization": "bitsandbytes",
            "max_loras": 2,
            "kv_cache_memory_bytes": 64 * 2**20,
            "lora_target_modules": TARGETS,
        },
    ),
    # vLLM without Lorry's plugin.
    "stock": (("ash", "birch", "hazel"), ROOMY | {"max_loras": 2, "enforce_eager": True}),
}
BROKEN = ("nan", "infinite", "huge", "loud")

# The values of NF4: it represents weights made of these and one scale exactly, so that the rounding
# of a kernel's dequantization does not change the tokens.
NF4 = (
    *(-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("base")
    generator = torch.Generator().manual_seed(3)
    values = torch.tensor(NF4)

    def linear(shape: tuple[int, int], scale: float) -> torch.Tensor:
        codes = torch.randint(16, (shape[0] * shape[1] // 64, 64), generator=generator)
        codes[:, 0] = 15  # every NF4 block has the same maximum
        return (values[codes] * scale).view(shape).bfloat16()

    # Tokens of different scale, so that near ties are rare.
    spread = torch.exp(0.3 * torch.randn(VOCABULARY, 1, generator=generator))
    tensors = {
        "model.embed_tokens.weight": torch.randn(VOCABULARY, HIDDEN, generator=generator),
        "lm_head.weight": spread * torch.randn(VOCABULARY, HIDDEN, generator=generator) / 5,
        "model.norm.weight": torch.ones(HIDDEN),
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        for name, shape in LINEARS.items():
            scale = 0.25 if "q_proj" in name or "k_proj" in name else 0.125
            tensors[f"{prefix}{name}.weight"] = linear(shape, scale)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(HIDDEN)
    save_file(
        {name: tensor.bfloat16() for name, tensor in tensors.items()}, folder / "model.safetensors"
    )
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of PEFT folders, valid and broken."""
    folder = tmp_path_factory.mktemp("adapters")
    for seed, (name, (rank, layers)) in enumerate((GOOD | WITH_ENDS).items()):
        _write_adapter(folder / name, rank, layers, seed)
    for seed, name in enumerate(BROKEN, start=100):
        _write_adapter(folder / name, 8, LINEARS, seed, broken=name)
    return folder


def _write_adapter(
    folder: Path, rank: int, layers: dict[str, tuple[int, int]], seed: int, broken: str = ""
) -> None:
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, (outputs, inputs) in _modules(layers):
        down = torch.randn(rank, inputs, generator=generator) / inputs**0.5
        up = torch.randn(outputs, rank, generator=generator) / rank**0.5
        if name == "lm_head":
            up *= 4  # the range of the base's logits
        if broken in ("nan", "infinite"):
            up[::7] = float("nan" if broken == "nan" else "inf")
        elif broken == "huge":
            down, up = down * 1e20, up * 1e20
        kind = "lora_embedding_{}" if "embed" in name else "lora_{}.weight"
        for letter, tensor in (("A", down), ("B", up)):
            key = f"base_model.model.{name}.{kind.format(letter)}"
            tensors[key] = tensor.bfloat16().contiguous()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 1e30 if broken == "loud" else rank,
        "target_modules": sorted(name.rpartition(".")[2] for name in layers),
        "bias": "none",
    }
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _modules(layers: dict[str, tuple[int, int]]) -> Iterable[tuple[str, tuple[int, int]]]:
    for name, shape in layers.items():
        if name in ENDS:
            yield name, shape
        else:
            for layer in range(LAYERS):
                yield f"model.layers.{layer}.{name}", shape


@pytest.fixture(scope="session")
def ranks() -> dict[str, int]:
    """The rank of every valid adapter."""
    return {name: rank for name, (rank, _) in (GOOD | WITH_ENDS).items()}


@pytest.fixture(scope="session")
def fleet(
    base: Path, adapters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], EngineProcess]]:
    """Engines by name, each started on first use."""
    common = {
        "model": str(base),
        "dtype": "bfloat16",
        "max_model_len": 256,
        "max_lora_rank": 16,
        "block_size": BLOCK,  # the smallest block of vLLM's CPU attention
    }
    started: dict[str, EngineProcess] = {}

    def engine(name: str) -> EngineProcess:
        if name not in started:
            fitting, settings = ENGINES[name]
            log = tmp_path_factory.mktemp(name) / "log"
            plugins = STOCK if name == "stock" else OURS
            env = {PORTABLE_VARIABLE: "1"} if name == "portable" else None
            started[name] = EngineProcess(common | settings, adapters, fitting, log, plugins, env)
        return started[name]

    yield engine
    for each in started.values():
        each.close()


@pytest.fixture
def plain(fleet: Callable[[str], EngineProcess]) -> EngineProcess:
    return fleet("plain")


@pytest.fixture
def cramped(fleet: Callable[[str], EngineProcess]) -> EngineProcess:
    return fleet("cramped")


@pytest.fixture
def open_ended(fleet: Callable[[str], EngineProcess]) -> EngineProcess:
    return fleet("open_ended")


@pytest.fixture
def portable(fleet: Callable[[str], EngineProcess]) -> EngineProcess:
    return fleet("portable")


@pytest.fixture
def stock(fleet: Callable[[str], EngineProcess]) -> EngineProcess:
    return fleet("stock")


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("plain", "open_ended")]


@pytest.fixture(params=["cramped", *SLOW])
def engine(request: pytest.FixtureRequest, fleet: Callable[[str], EngineProcess]) -> EngineProcess:
    """Each engine with Lorry's kernels in turn."""
    return fleet(request.param)
