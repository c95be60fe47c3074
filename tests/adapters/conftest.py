"""A tiny base model and PEFT folders for it, written by hand with numpy: no torch, no PEFT."""

import copy
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from adapter_files import Draft, Raw, bf16, encode, f16, f32
from postgres_process import Postgres, Unavailable
from publishing import publish

from adapters.catalog import AdapterVersion, Catalog, database
from adapters.checkpoint import Checkpoint
from adapters.checkpoint.base import Base, read_base

LAYERS, HIDDEN, INNER, HEADS, GROUPS, WIDTH = 2, 16, 24, 4, 2, 4
SHAPES = {
    "self_attn.q_proj": (HEADS * WIDTH, HIDDEN),
    "self_attn.k_proj": (GROUPS * WIDTH, HIDDEN),
    "self_attn.v_proj": (GROUPS * WIDTH, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * WIDTH),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
BASE_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": GROUPS,
    "head_dim": WIDTH,
}
# PEFT 0.21's config, reduced to the keys that have a meaning here.
ADAPTER_CONFIG: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "base_model_name_or_path": "somewhere/tiny-base",
    "bias": "none",
    "exclude_modules": None,
    "init_lora_weights": True,
    "layer_replication": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_alpha": 8,
    "lora_bias": False,
    "lora_dropout": 0.05,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "peft_type": "LORA",
    "r": 4,
    "rank_pattern": {},
    "target_modules": ["q_proj", "v_proj", "down_proj"],
    "target_parameters": None,
    "task_type": "CAUSAL_LM",
    "trainable_token_indices": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
}


def build(
    seed: int = 0,
    rank: int = 4,
    targets: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
    pack: Callable[[np.ndarray], Raw] = bf16,
    ranks: Mapping[str, int] | None = None,
    layers: tuple[int, ...] = tuple(range(LAYERS)),
) -> Draft:
    random = np.random.default_rng(seed)
    config = copy.deepcopy(ADAPTER_CONFIG) | {"r": rank, "target_modules": list(targets)}
    tensors = {}
    for layer in layers:
        for module, (outs, ins) in SHAPES.items():
            if module.rpartition(".")[2] not in targets:
                continue
            path = f"base_model.model.model.layers.{layer}.{module}"
            own = (ranks or {}).get(module.rpartition(".")[2], rank)
            tensors[f"{path}.lora_A.weight"] = pack(random.normal(0, 0.2, (own, ins)))
            tensors[f"{path}.lora_B.weight"] = pack(random.normal(0, 0.02, (outs, own)))
    return Draft(config, tensors)


def as_mlx(draft: Draft, folder: Path) -> Path:
    """The folder that mlx-lm would have written of an adapter."""
    folder.mkdir()
    config = {"fine_tune_type": "lora", "model": "mlx-community/Tiny-Base-4bit", "num_layers": 2}
    config["lora_parameters"] = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    tensors = {}
    for name, raw in draft.tensors.items():
        side = "lora_a" if ".lora_A." in name else "lora_b"
        module = name.removeprefix("base_model.model.").rpartition(".lora_")[0]
        size = 2 if raw.dtype == "BF16" else 4
        values = np.frombuffer(raw.data, f"<u{size}").reshape(raw.shape).T
        tensors[f"{module}.{side}"] = Raw(raw.dtype, values.shape, values.tobytes())
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapters.safetensors").write_bytes(encode(tensors))
    return folder


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test needs to survive a power cut, and syncing makes them three times slower."""
    configure = database._configure_sqlite

    def configure_without_sync(connection: sqlite3.Connection, record: Any) -> None:
        configure(connection, record)
        connection.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(database, "_configure_sqlite", configure_without_sync)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """Makes adapters and tensors for tests."""
    return SimpleNamespace(
        build=build,
        as_mlx=as_mlx,
        encode=encode,
        raw=Raw,
        bf16=bf16,
        f16=f16,
        f32=f32,
        base_config=dict(BASE_CONFIG),
        shapes=dict(SHAPES),
    )


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "tiny-base"
    folder.mkdir()
    tensors = {
        "model.embed_tokens.weight": bf16(np.zeros((32, HIDDEN))),
        "model.norm.weight": bf16(np.ones(HIDDEN)),
    }
    for layer in range(LAYERS):
        for module, shape in SHAPES.items():
            tensors[f"model.layers.{layer}.{module}.weight"] = bf16(np.zeros(shape))
    (folder / "config.json").write_text(json.dumps(BASE_CONFIG))
    (folder / "model.safetensors").write_bytes(encode(tensors))
    return folder


@pytest.fixture(scope="session")
def base(base_folder: Path) -> Base:
    return read_base(base_folder)


@pytest.fixture(scope="session")
def first_store(
    base_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, AdapterVersion]:
    """A store that holds orders@1; tests change copies of it."""
    folder = tmp_path_factory.mktemp("stores")
    adapter = build(seed=1).write(folder / "adapter")
    return folder / "store", publish(
        adapter, name="orders", store=folder / "store", base=base_folder
    )


@pytest.fixture
def store_with_orders(first_store: tuple[Path, AdapterVersion], tmp_path: Path) -> Path:
    return shutil.copytree(first_store[0], tmp_path / "store")


@pytest.fixture(scope="session")
def postgres_session() -> Iterator[Postgres]:
    try:
        postgres = Postgres()
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        yield postgres
    finally:
        postgres.remove()


@pytest.fixture
def postgres(postgres_session: Postgres) -> Postgres:
    """A PostgreSQL whose database is empty."""
    postgres_session.clear()
    return postgres_session


@pytest.fixture(params=["sqlite", "postgresql"])
def catalog_url(request: pytest.FixtureRequest, tmp_path: Path) -> str | None:
    """None for a catalog in its store, or the URL of one in PostgreSQL."""
    return None if request.param == "sqlite" else request.getfixturevalue("postgres").url


@pytest.fixture
def catalog(catalog_url: str | None, tmp_path: Path) -> Iterator[Catalog]:
    with Catalog.open(tmp_path, catalog_url) as catalog:
        yield catalog


@pytest.fixture(scope="session")
def enter() -> Callable[..., AdapterVersion]:
    """Enters a version into a catalog, without any files."""
    return _enter


def _enter(catalog: Catalog, name: str = "orders", number: int = 1, **options) -> AdapterVersion:
    facts = Checkpoint(8, 16.0, ("q_proj",), "somewhere", 1234, 4)
    defaults: dict[str, Any] = {"checkpoint": facts, "base": "tiny", "actor": "ann"}
    return catalog.publish(name=name, digest=f"sha256:{number:064x}", **(defaults | options))


@pytest.fixture
def serve() -> Iterator:
    running = []

    def start(handler, **options) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, **options))
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture
def token_in_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of commands on a server; the working folder is empty."""
    from standin_server import TOKEN  # and the server, which the other tests do not need

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LORRY_ADMIN_TOKEN", TOKEN)
    for name in ("LORRY_STORE", "LORRY_CATALOG", "LORRY_URL", "LORRY_ADMIN_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    # A server on this machine is never reached through a proxy.
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)


@pytest.fixture
def adapter(kit, tmp_path: Path) -> Callable[[int], Path]:
    """Writes the folder of an adapter, other weights for each seed."""
    return lambda seed: kit.build(seed=seed).write(tmp_path / f"adapter{seed}")
