"""Good adapters of many trainers pass; each bad one is refused by its own code."""

import json
import math
import os

import numpy as np
import pytest

from adapters.checkpoint import inspect_checkpoint, read_checkpoint
from adapters.checkpoint.base import read_base
from adapters.errors import CheckpointInvalid

A0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
B0 = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def codes(folder, base, **options) -> list[str]:
    _, problems = inspect_checkpoint(folder, base, **options)
    assert all(p.where and p.message and p.fix for p in problems)
    return sorted({problem.code for problem in problems})


def test_a_valid_adapter_is_described(kit, base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    checkpoint = read_checkpoint(folder, base)
    assert checkpoint.rank == 4
    assert checkpoint.alpha == 8.0
    assert checkpoint.target_modules == ("down_proj", "q_proj", "v_proj")
    assert checkpoint.base_name == "somewhere/tiny-base"
    assert checkpoint.size_bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert checkpoint.tensor_count == 12


def test_every_float_type_and_rank_passes(kit, base, tmp_path) -> None:
    wanted = [(pack, rank) for pack in ("bf16", "f16", "f32") for rank in (1, 8, 64, 512)]
    found = []
    for pack, rank in wanted:
        draft = kit.build(rank=rank, targets=ALL, pack=getattr(kit, pack))
        checkpoint, _ = inspect_checkpoint(draft.write(tmp_path / f"{pack}-{rank}"), base)
        found.append((pack, checkpoint and checkpoint.rank))
    assert found == wanted


OTHER_TRAINERS: list[dict] = [
    {"use_rslora": True},
    {"lora_alpha": 0.5},
    {"target_modules": r".*\.(q_proj|v_proj|down_proj)$"},
    {"target_modules": ["q_proj", "v_proj", "down_proj", "elsewhere"]},
    {"init_lora_weights": "gaussian"},
    {"init_lora_weights": False},
    {"modules_to_save": []},
    {"fan_in_fan_out": True},
    {"task_type": None, "base_model_name_or_path": None},
    {"auto_mapping": {"unsloth_fixed": True}, "peft_version": "0.17.1"},
    {"loftq_config": {"loftq_bits": 4}},
    {"rank_pattern": None, "alpha_pattern": None},
    {"qalora_group_size": 16, "megatron_core": "megatron.core"},
    {"eva_config": {"rho": 2.0}},
]


def test_configs_of_other_trainers_pass(kit, base, tmp_path) -> None:
    found = []
    for number, changes in enumerate(OTHER_TRAINERS):
        draft = kit.build()
        draft.config |= changes
        _, problems = inspect_checkpoint(draft.write(tmp_path / str(number)), base)
        found += [(changes, problem) for problem in problems]
    assert found == []


def test_ranks_by_pattern_pass_when_the_tensors_have_them(kit, base, tmp_path) -> None:
    draft = kit.build(ranks={"q_proj": 8, "down_proj": 2})
    draft.config |= {"rank_pattern": {"q_proj": 8, "mlp.down_proj": 2}}
    assert read_checkpoint(draft.write(tmp_path / "a"), base).rank == 8


def test_some_layers_only_pass_when_the_config_says_so(kit, base, tmp_path) -> None:
    draft = kit.build(layers=(1,))
    draft.config |= {"layers_to_transform": [1]}
    read_checkpoint(draft.write(tmp_path / "a"), base)


def test_a_fresh_adapter_whose_b_is_zero_passes_with_a_warning(kit, base, tmp_path) -> None:
    draft = kit.build()
    sides = [name for name in draft.tensors if "lora_B" in name]
    for name in sides[1:]:
        draft.tensors[name] = kit.f32(np.zeros(draft.tensors[name].shape))
    folder = draft.write(tmp_path / "a")
    assert read_checkpoint(folder, base).warnings == ()
    draft.tensors[sides[0]] = kit.f32(np.zeros(draft.tensors[sides[0]].shape))
    folder = draft.write(tmp_path / "b")
    assert [each.code for each in read_checkpoint(folder, base).warnings] == ["nothing_learnt"]
    assert read_checkpoint(folder, base, values=False).warnings == ()


def test_a_file_without_a_layer_that_its_config_targets_is_incomplete(kit, base, tmp_path) -> None:
    assert codes(kit.build(layers=(0,)).write(tmp_path / "a"), base) == ["modules_missing"]


def test_a_limit_on_rank_can_be_given(kit, base, tmp_path) -> None:
    folder = kit.build(rank=16).write(tmp_path / "a")
    assert codes(folder, base, max_rank=16) == []
    assert codes(folder, base, max_rank=8) == ["rank_too_large"]


def test_an_expert_of_a_mixture_is_refused_with_what_to_train_instead(kit, base, tmp_path) -> None:
    draft = kit.build()
    for name in list(draft.tensors):
        if "layers.1" in name and "down_proj" in name:
            expert = name.replace("mlp.", "mlp.experts.3.")
            draft.tensors[expert] = draft.tensors.pop(name)
    _, problems = inspect_checkpoint(draft.write(tmp_path / "a"), base)
    refused = {problem.code: problem for problem in problems}["module_not_served"]
    assert "an expert of a mixture" in refused.message
    assert refused.fix == "train on the attention layers only"


def test_all_problems_come_in_one_answer(kit, base, tmp_path) -> None:
    draft = kit.build()
    draft.config |= {"use_dora": True, "bias": "all", "peft_type": "IA3", "r": 8}
    draft.tensors[A0] = kit.f32(np.full((8, 16), math.nan))
    draft.tensors[B0] = kit.f32(np.full((16, 8), 0.1))
    draft.tensors["base_model.model.lm_head.lora_A.weight"] = kit.f32(np.zeros((8, 16)))
    with pytest.raises(CheckpointInvalid) as refused:
        read_checkpoint(draft.write(tmp_path / "a"), base)
    found = {problem.code for problem in refused.value.problems}
    assert found == {
        "dora_unsupported",
        "bias_unsupported",
        "peft_type_unsupported",
        "module_not_served",
        "rank_mismatch",
        "value_not_finite",
    }


def test_tensors_are_judged_even_when_the_config_is_missing(kit, base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    (folder / "adapter_config.json").write_text("{")
    (folder / "adapter_model.safetensors").write_bytes(
        kit.encode({A0: kit.f32(np.zeros((4, 8))), B0: kit.f32(np.zeros((16, 4)))})
    )
    assert codes(folder, base) == ["config_malformed", "shape_mismatch"]


def test_a_folder_without_files_or_no_folder_misses_both_files(base, tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        _, problems = inspect_checkpoint(folder, base)
        found = [(problem.code, problem.where) for problem in problems]
        assert found == [
            ("file_missing", "adapter_config.json"),
            ("file_missing", "adapter_model.safetensors"),
        ]


def test_an_adapter_in_a_sub_folder_is_named(kit, base, tmp_path) -> None:
    for name in ("checkpoint-500", "checkpoint-1000", "best/adapter"):
        kit.build().write(tmp_path / name)
    _, problems = inspect_checkpoint(tmp_path, base)
    assert {problem.message for problem in problems} == {
        "is not in the folder, but in its sub-folder 'checkpoint-1000' and in 2 more"
    }


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_pipes_and_folders_are_not_opened(kit, base, tmp_path, name) -> None:
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        folder = kit.build().write(tmp_path / str(number))
        (folder / name).unlink()
        make(folder / name)
        assert codes(folder, base) == ["file_not_regular"]


def test_paths_in_the_config_are_never_opened(kit, base, tmp_path) -> None:
    trap = tmp_path / "trap"
    os.mkfifo(trap)
    draft = kit.build()
    draft.config |= {"base_model_name_or_path": str(trap), "auto_mapping": {"path": str(trap)}}
    assert read_checkpoint(draft.write(tmp_path / "a"), base).base_name == str(trap)


def test_an_adapter_of_another_base_is_refused(kit, base_folder, tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(dict(kit.base_config) | {"hidden_size": 32}))
    assert codes(kit.build().write(tmp_path / "a"), read_base(tmp_path)) == ["shape_mismatch"]


def test_an_adapter_of_a_shallower_base_is_refused(kit, tmp_path) -> None:
    deeper = dict(kit.base_config) | {"num_hidden_layers": 3}
    (tmp_path / "config.json").write_text(json.dumps(deeper))
    assert codes(kit.build().write(tmp_path / "a"), read_base(tmp_path)) == ["modules_missing"]


def test_without_values_only_the_headers_are_judged(kit, base, tmp_path) -> None:
    draft = kit.build()
    shape = draft.tensors[A0].shape
    draft.tensors[A0] = kit.f32(np.full(shape, math.nan))
    folder = draft.write(tmp_path / "nan")
    assert codes(folder, base) == ["value_not_finite"]
    assert read_checkpoint(folder, base, values=False).rank == 4
    draft.tensors[A0] = kit.f32(np.full((shape[0], shape[1] + 1), math.nan))
    folder = draft.write(tmp_path / "wide")
    assert codes(folder, base, values=False) == ["shape_mismatch"]
