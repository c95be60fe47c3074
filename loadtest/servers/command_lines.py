"""The command line of each kind of server, with the same engine flags for all."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Literal

from loadtest.plan.scenario import Server
from loadtest.servers.llama_cpp import LlamaCpp

# lorry: `lorry serve`. plain: the same with --admission plain. limited: called with a key that has
# limits. stock: vLLM's own server with its
# defaults. stock-tuned: with Lorry's process and thread settings. stock-base: stock-tuned without
# LoRA. merged: one stock server for each adapter, merged into the base. peft: transformers with
# PEFT's mixed batches. llamacpp: llama.cpp's server, see llama_cpp.py.
Kind = Literal[
    "lorry", "plain", "limited", "stock", "stock-tuned", "stock-base", "merged", "peft", "llamacpp"
]

_BYTES_PER_GIB = 1024**3
_NEVER = str(10**9)  # a limit that no run meets
# The modules that Lorry serves; by default vLLM prepares the head and the embeddings too.
_TARGETS = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a server serves, and how."""

    base: Path
    name: str  # the base's model name
    work: Path  # folder for the store, caches, merged models and logs
    options: Server
    adapters: Mapping[str, Path] = field(default_factory=dict)  # folders by name
    environment: Mapping[str, str] = field(default_factory=dict)  # of `lorry serve` alone
    given_up: Event = field(default_factory=Event)  # once set, nothing starts any more
    llama_cpp: LlamaCpp | None = None  # for that peer


def publish(setup: Setup, drop: Path, store: Path) -> list[str]:
    """Publish all adapters of a folder in one process."""
    return [
        *(sys.executable, "-m", "lorry", "adapters", "watch", str(drop)),
        *("--base", str(setup.base.resolve()), "--base-name", setup.name),
        *("--store", str(store), "--once", "--interval", "0.1"),
    ]


def make_key(store: Path) -> list[str]:
    """Print the secret of a key with each kind of limit, such as no run meets."""
    return [
        *(sys.executable, "-m", "lorry", "keys", "create", "--name", "loadtest"),
        *("--adapters", "*", "--base", "--scope", "inference", "--scope", "metrics"),
        *("--rpm", _NEVER, "--tpm", _NEVER, "--max-in-flight", _NEVER),
        *("--budget-tokens", "1G/month", "--store", str(store)),
    ]


def lorry(setup: Setup, port: int, store: Path) -> list[str]:
    options = setup.options
    return [
        *(sys.executable, "-m", "lorry", "serve", str(setup.base.resolve())),
        *("--store", str(store), "--port", str(port), "--served-model-name", setup.name),
        *("--quantization", options.quantization, *_sizes(options), "--log-format", "json"),
        *_given("--admission", options.admission),
        *_given("--max-engine-restarts", options.max_engine_restarts),
        *(("--", *options.engine_flags) if options.engine_flags else ()),
    ]


def plain(setup: Setup, port: int, store: Path) -> list[str]:
    options = setup.options.model_copy(update={"admission": "plain"})
    return lorry(dataclasses.replace(setup, options=options), port, store)


def stock(setup: Setup, port: int) -> list[str]:
    """With all adapters, by the paths of their folders."""
    modules = [f"{name}={folder.resolve()}" for name, folder in setup.adapters.items()]
    return [
        *_vllm(setup, setup.base, setup.name, port),
        *("--enable-lora", *_sizes(setup.options), "--lora-target-modules", *_TARGETS),
        *(("--lora-modules", *modules) if modules else ()),
    ]


def stock_base(setup: Setup, port: int) -> list[str]:
    return _vllm(setup, setup.base, setup.name, port)


def merge(setup: Setup, adapter: str, model: Path) -> list[str]:
    """Write the merged model."""
    return [
        *(sys.executable, "-m", "loadtest.peers.merged"),
        *(str(setup.base.resolve()), str(setup.adapters[adapter].resolve()), str(model)),
    ]


def merged(setup: Setup, adapter: str, model: Path, port: int) -> list[str]:
    return _vllm(setup, model, adapter, port)


def peft(setup: Setup, port: int) -> list[str]:
    adapters = [f"{name}={folder.resolve()}" for name, folder in setup.adapters.items()]
    return [
        *(sys.executable, "-m", "loadtest.peers.peft_server", str(setup.base.resolve())),
        *("--port", str(port), "--served-model-name", setup.name),
        *(("--adapters", *adapters) if adapters else ()),
    ]


def _sizes(options: Server) -> list[str]:
    return [
        *("--max-loras", str(options.max_loras), "--max-cpu-loras", str(options.max_cpu_loras)),
        *("--max-lora-rank", str(options.max_lora_rank)),
    ]


def _given(flag: str, value: object) -> tuple[str, ...]:
    return () if value is None else (flag, str(value))


def _vllm(setup: Setup, model: Path, name: str, port: int) -> list[str]:
    options = setup.options
    packed = options.quantization != "none"
    return [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(model.resolve()), "--served-model-name", name),
        *("--host", "127.0.0.1", "--port", str(port), "--dtype", "bfloat16"),
        *("--kv-cache-memory-bytes", str(int(options.kv_cache_gib * _BYTES_PER_GIB))),
        *("--disable-uvicorn-access-log", "--no-use-tqdm-on-load"),
        *(("--quantization", options.quantization) if packed else ()),
        *options.engine_flags,
    ]
