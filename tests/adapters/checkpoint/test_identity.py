"""A copy of a base has the same digest; another base has another digest, or another name."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from publishing import publish

from adapters.checkpoint import inspect_checkpoint
from adapters.checkpoint.base import is_called, read_base, short_name
from adapters.errors import BaseUnreadable, CheckpointInvalid

FULL = {"rms_norm_eps": 1e-5, "vocab_size": 32, "hidden_act": "silu", "rope_theta": 500000.0}


@pytest.fixture
def digest(kit, tmp_path):
    def digest(*without: str, **changes) -> str:
        config = {**kit.base_config, **FULL, **changes}
        (tmp_path / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if key not in without})
        )
        return read_base(tmp_path).digest

    return digest


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"dtype": "float32", "torch_dtype": "float16", "transformers_version": "4.40"},
        {"tie_word_embeddings": True, "use_cache": False, "architectures": None},
        {"rope_theta": None, "rope_parameters": {"rope_theta": 500000, "rope_type": "default"}},
        {"rope_scaling": None, "_name_or_path": "elsewhere"},
    ],
    ids=str,
)
def test_a_copy_of_the_base_has_the_same_digest(digest, changes) -> None:
    assert digest(**changes) == digest()


def test_derived_config_keys_may_be_left_out(digest) -> None:
    assert digest("head_dim") == digest()
    assert digest("num_key_value_heads") == digest(num_key_value_heads=4)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 3},
        {"vocab_size": 64},
        {"rope_theta": 10000.0},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rms_norm_eps": 1e-6},
        {"tie_word_embeddings": False},
        {"num_key_value_heads": 4},
        {"model_type": "mistral"},
        {"hidden_act": "gelu"},
    ],
    ids=str,
)
def test_another_base_has_another_digest(digest, changes) -> None:
    assert digest(**changes) != digest()


def test_a_version_keeps_the_digest_of_its_base(kit, base, base_folder, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    version = publish(folder, name="a", store=tmp_path / "store", base=base_folder)
    assert version.base_digest == base.digest


def test_another_name_is_refused_unless_allowed(kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.config["base_model_name_or_path"] = "acme/Other-Base"
    options = {"name": "a", "store": tmp_path / "store", "base": base_folder}
    folder = draft.write(tmp_path / "a")
    with pytest.raises(CheckpointInvalid, match=r"--allow-base-mismatch.*base_mismatch"):
        publish(folder, **options)
    assert publish(folder, **options, base_name="acme/other-base").version == 1
    assert publish(folder, **options, allow_base_mismatch=True).version == 1


SHORT_NAMES = [
    ("meta-llama/Llama-3.1-8B", "llama-3.1-8b"),
    ("/models/Llama-3.1-8B/", "llama-3.1-8b"),
    ("./Llama-3.1-8B/.", "llama-3.1-8b"),
    ("/hub/models--meta-llama--Llama-3.1-8B/snapshots/0e9e39f", "llama-3.1-8b"),
    ("unsloth/llama-3.1-8b-unsloth-bnb-4bit", "llama-3.1-8b"),
    ("unsloth/llama-3.1-8b-bnb-4bit", "llama-3.1-8b"),
    (r"D:\models\Llama-3.1-8B", "llama-3.1-8b"),
    ("C:/models/Llama-3.1-8B\\", "llama-3.1-8b"),
    ("/root/.cache/modelscope/hub/models/Qwen/Qwen2___5-7B-Instruct", "qwen2.5-7b-instruct"),
    ("", ""),
    ("/", ""),
]


def test_the_part_of_a_name_that_names_the_model() -> None:
    assert [(name, short_name(name)) for name, _ in SHORT_NAMES] == SHORT_NAMES


def test_an_adapter_that_names_no_base_claims_nothing() -> None:
    assert is_called(None, ["x"])
    assert is_called("", ["x"])
    assert not is_called("/", ["x"])


def test_only_the_files_of_the_index_are_the_base(base_folder, base, kit, tmp_path) -> None:
    folder = shutil.copytree(base_folder, tmp_path / "tiny-base")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "consolidated.safetensors").write_bytes(b"not ours")
    index = {"weight_map": {"x": "model-00001-of-00001.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_base(folder).digest == base.digest
    index["weight_map"]["y"] = "model-00002-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseUnreadable, match="model-00002-of-00002"):
        read_base(folder)


def test_a_large_adapter_is_judged_in_little_memory(kit, tmp_path) -> None:
    wide = dict(kit.base_config) | {"hidden_size": 32_768, "intermediate_size": 65_536}
    (tmp_path / "config.json").write_text(json.dumps(wide))
    base, rank = read_base(tmp_path), 512
    draft = kit.build(rank=rank, targets=("down_proj",))
    tensors = {}
    for layer in range(2):
        path = f"base_model.model.model.layers.{layer}.mlp.down_proj"
        for side, shape in (("A", (rank, 65_536)), ("B", (32_768, rank))):
            tensors[f"{path}.lora_{side}.weight"] = shape
    draft.tensors = {}
    folder = draft.write(tmp_path / "a")
    header, position = {}, 0
    for name, shape in tensors.items():
        end = position + 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with (folder / "adapter_model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
    # Sparse: the zeros take no disk space.
    os.truncate(folder / "adapter_model.safetensors", 8 + len(text) + position)
    assert position > 350 << 20
    tracemalloc.start()
    try:
        assert inspect_checkpoint(folder, base)[1] == []
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()
