import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from adapters.checkpoint.base import Base, digest_base, read_base
from adapters.errors import BaseUnreadable


def write_config(folder: Path, config: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_linears_come_from_the_headers(base: Base, kit) -> None:
    assert base.name == "tiny-base"
    assert base.architecture == "LlamaForCausalLM"
    assert base.layers == 2
    assert len(base.linears) == 2 * len(kit.shapes)
    assert base.linears["model.layers.1.mlp.down_proj"] == kit.shapes["mlp.down_proj"]


def test_embeddings_norms_and_the_head_are_not_linears_to_adapt(base: Base) -> None:
    assert not [name for name in base.linears if "embed" in name or "norm" in name]


def test_config_alone_gives_the_same_linears(base: Base, kit, tmp_path) -> None:
    assert read_base(write_config(tmp_path / "b", kit.base_config)).linears == base.linears


def test_older_configs_leave_out_what_follows(kit, tmp_path) -> None:
    config = dict(kit.base_config)
    del config["head_dim"], config["num_key_value_heads"]
    linears = read_base(write_config(tmp_path / "b", config)).linears
    assert linears["model.layers.0.self_attn.k_proj"] == (16, 16)


def test_a_packed_base_is_read_from_its_config(base: Base, kit, tmp_path) -> None:
    folder = write_config(
        tmp_path / "b", kit.base_config | {"quantization_config": {"quant_method": "bitsandbytes"}}
    )
    packed = kit.raw("U8", (128, 1), bytes(128))
    weights = {"model.layers.0.self_attn.q_proj.weight": packed}
    (folder / "model.safetensors").write_bytes(kit.encode(weights))
    assert read_base(folder).linears == base.linears


def test_a_base_in_several_files_is_read_whole(base_folder, base, kit, tmp_path) -> None:
    folder = write_config(tmp_path / "b", kit.base_config)
    for layer in range(2):
        weights = {
            f"model.layers.{layer}.{module}.weight": kit.f16(np.zeros(shape))
            for module, shape in kit.shapes.items()
        }
        path = folder / f"model-0000{layer + 1}-of-00002.safetensors"
        path.write_bytes(kit.encode(weights))
    assert read_base(folder).linears == base.linears


def test_an_unknown_family_is_read_from_its_headers(base_folder, base, kit, tmp_path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(base_folder, folder)
    write_config(folder, {"model_type": "novel"})
    assert read_base(folder).linears == base.linears


def test_an_adapter_beside_the_base_is_not_taken_for_it(base_folder, base, kit, tmp_path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(base_folder, folder)
    kit.build().write(folder)
    assert read_base(folder).linears == base.linears


def test_a_base_with_fused_linears_is_read_from_headers_and_from_its_config(kit, tmp_path) -> None:
    fused = {
        "model_type": "phi3",
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }
    shapes = {
        "self_attn.qkv_proj": (32, 16),
        "self_attn.o_proj": (16, 16),
        "mlp.gate_up_proj": (48, 16),
        "mlp.down_proj": (16, 24),
    }
    expected = {f"model.layers.0.{name}": shape for name, shape in shapes.items()}
    folder = write_config(tmp_path / "b", fused)
    assert read_base(folder).linears == expected
    weights = {f"{name}.weight": kit.f16(np.zeros(shape)) for name, shape in expected.items()}
    (folder / "model.safetensors").write_bytes(kit.encode(weights))
    assert read_base(folder).linears == expected


def test_the_experts_of_a_mixture_are_not_linears_to_adapt(kit, tmp_path) -> None:
    folder = write_config(tmp_path / "b", {"model_type": "qwen3_moe"})
    names = ("self_attn.q_proj", "mlp.experts.0.gate_proj", "mlp.shared_expert.up_proj")
    weights = {f"model.layers.0.{name}.weight": kit.f16(np.zeros((4, 4))) for name in names}
    (folder / "model.safetensors").write_bytes(kit.encode(weights))
    served = {"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.shared_expert.up_proj"}
    found = read_base(folder)
    assert set(found.linears) == served
    # The identity is of all of them, and does not depend on what is served.
    config = {"model_type": "qwen3_moe"}
    assert found.digest == digest_base(config, {f"model.layers.0.{name}": (4, 4) for name in names})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "novel"},
        {},
        [],
        {"model_type": "llama"},
        {"model_type": "llama", "hidden_size": "16"},
        {"model_type": "llama", "hidden_size": -1},
        {"model_type": ["llama"]},
    ],
)
def test_a_base_that_does_not_say_its_linears_is_refused(config, tmp_path) -> None:
    with pytest.raises(BaseUnreadable):
        read_base(write_config(tmp_path / "b", config))


def test_a_missing_or_broken_base_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(BaseUnreadable, match="there is no base model in"):
        read_base(tmp_path / "none")
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(BaseUnreadable, match="cannot be read"):
        read_base(tmp_path)


def test_a_damaged_weights_file_is_named(kit, tmp_path) -> None:
    folder = write_config(tmp_path / "b", kit.base_config)
    (folder / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(BaseUnreadable, match=r"model\.safetensors"):
        read_base(folder)
