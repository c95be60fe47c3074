"""Good adapters of many trainers pass; each bad one is refused by its own code."""

import json
import math
import os

import numpy as np
import pytest

from adapters.base import read_base
from adapters.checkpoint import inspect_checkpoint, read_checkpoint
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


@pytest.mark.parametrize("pack", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("rank", [1, 8, 64, 512])
def test_every_float_type_and_rank_passes(kit, base, tmp_path, pack, rank) -> None:
    draft = kit.build(rank=rank, targets=ALL, pack=getattr(kit, pack))
    assert read_checkpoint(draft.write(tmp_path / "a"), base).rank == rank


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
    ids=str,
)
def test_what_other_trainers_write_into_the_config_passes(kit, base, tmp_path, changes) -> None:
    draft = kit.build()
    draft.config |= changes
    read_checkpoint(draft.write(tmp_path / "a"), base)


def test_ranks_by_pattern_pass_when_the_tensors_have_them(kit, base, tmp_path) -> None:
    draft = kit.build(ranks={"q_proj": 8, "down_proj": 2})
    draft.config |= {"rank_pattern": {"q_proj": 8, "mlp.down_proj": 2}}
    assert read_checkpoint(draft.write(tmp_path / "a"), base).rank == 8


def test_some_layers_only_pass_when_the_config_says_so(kit, base, tmp_path) -> None:
    draft = kit.build(layers=(1,))
    draft.config |= {"layers_to_transform": [1]}
    read_checkpoint(draft.write(tmp_path / "a"), base)


def test_a_fresh_adapter_whose_b_is_zero_passes(kit, base, tmp_path) -> None:
    draft = kit.build()
    for name, raw in draft.tensors.items():
        if "lora_B" in name:
            draft.tensors[name] = kit.raw(raw.dtype, raw.shape, bytes(len(raw.data)))
    read_checkpoint(draft.write(tmp_path / "a"), base)


def set_config(**changes):
    return lambda draft, kit: draft.config.update(changes)


def drop_config(key):
    return lambda draft, kit: draft.config.pop(key)


def drop_tensor(name):
    return lambda draft, kit: draft.tensors.pop(name)


def set_tensor(name, make):
    return lambda draft, kit: draft.tensors.update({name: make(kit)})


def rename(old, new):
    def bend(draft, kit):
        draft.tensors = {name.replace(old, new): raw for name, raw in draft.tensors.items()}

    return bend


def empty(draft, kit):
    draft.tensors = {}


def filled(shape, value, pack="f32"):
    return lambda kit: getattr(kit, pack)(np.full(shape, value))


def scaled(factor):
    def bend(draft, kit):
        for name, raw in draft.tensors.items():
            draft.tensors[name] = kit.f32(np.full(raw.shape, factor))

    return bend


def raise_rank_everywhere(draft, kit):
    draft.tensors = kit.build(rank=16).tensors


BAD = {
    # what vLLM refuses, some of it only half way through
    "rank over the limit": (set_config(r=1024), "rank_too_large"),
    "rank over the limit by pattern": (set_config(rank_pattern={"k_proj": 600}), "rank_too_large"),
    "DoRA": (set_config(use_dora=True), "dora_unsupported"),
    "bias": (set_config(bias="all"), "bias_unsupported"),
    "LoRA bias": (set_config(lora_bias=True), "lora_bias_unsupported"),
    "modules to save": (set_config(modules_to_save=["lm_head"]), "modules_to_save_unsupported"),
    "aLoRA": (set_config(alora_invocation_tokens=[1, 2]), "alora_unsupported"),
    "layer replication": (set_config(layer_replication=[[0, 2]]), "layer_replication_unsupported"),
    "PiSSA": (set_config(init_lora_weights="pissa"), "init_unsupported"),
    "PiSSA fast": (set_config(init_lora_weights="pissa_niter_16"), "init_unsupported"),
    "OLoRA": (set_config(init_lora_weights="olora"), "init_unsupported"),
    "LoftQ": (set_config(init_lora_weights="loftq"), "init_unsupported"),
    "CorDA": (set_config(init_lora_weights="corda"), "init_unsupported"),
    "QALoRA": (set_config(use_qalora=True), "qalora_unsupported"),
    "BD-LoRA": (set_config(use_bdlora={"nblocks": 2}), "bdlora_unsupported"),
    "unknown module": (rename("self_attn.q_proj", "self_attn.z_proj"), "module_not_served"),
    "unknown tensor": (
        set_tensor("base_model.model.foo.bar", filled((2,), 0.0)),
        "tensor_name_unsupported",
    ),
    "no r": (drop_config("r"), "rank_invalid"),
    "r zero": (set_config(r=0), "rank_invalid"),
    "r text": (set_config(r="8"), "rank_invalid"),
    "r true": (set_config(r=True), "rank_invalid"),
    "r fraction": (set_config(r=4.0), "rank_invalid"),
    "r enormous": (set_config(r=10**400), "rank_invalid"),
    "no alpha": (drop_config("lora_alpha"), "alpha_invalid"),
    "alpha text": (set_config(lora_alpha="16"), "alpha_invalid"),
    "alpha zero": (set_config(lora_alpha=0), "alpha_invalid"),
    "alpha negative": (set_config(lora_alpha=-8), "alpha_invalid"),
    "alpha enormous": (set_config(lora_alpha=10**400), "alpha_invalid"),
    "no targets": (drop_config("target_modules"), "target_modules_invalid"),
    "targets of numbers": (set_config(target_modules=[1, 2]), "target_modules_invalid"),
    "B missing": (drop_tensor(B0), "pair_incomplete"),
    "A missing": (drop_tensor(A0), "pair_incomplete"),
    "no tensors": (empty, "weights_empty"),
    "input too wide": (set_tensor(A0, filled((4, 32), 0.1)), "shape_mismatch"),
    "output too wide": (set_tensor(B0, filled((32, 4), 0.1)), "shape_mismatch"),
    "one dimension": (set_tensor(A0, filled((64,), 0.1)), "shape_mismatch"),
    "three dimensions": (set_tensor(A0, filled((4, 16, 1), 0.1)), "shape_mismatch"),
    "rank of the tensors above r": (raise_rank_everywhere, "rank_mismatch"),
    # what vLLM accepts in silence
    "rank of the tensors below r": (set_config(r=8), "rank_mismatch"),
    "rank unlike its pattern": (set_config(rank_pattern={"q_proj": 8}), "rank_mismatch"),
    "rank zero in the tensors": (set_tensor(A0, filled((0, 16), 0.1)), "rank_mismatch"),
    "input too narrow": (set_tensor(A0, filled((4, 8), 0.1)), "shape_mismatch"),
    "output too narrow": (set_tensor(B0, filled((8, 4), 0.1)), "shape_mismatch"),
    "wrong prefix": (rename("model.model.layers", "model.transformer.h"), "module_unknown"),
    "wrong prefix matches nothing": (
        rename("model.model.layers", "model.transformer.h"),
        "no_module_matched",
    ),
    "layer beyond the base": (rename("layers.1.", "layers.91."), "layer_unknown"),
    "integer tensors": (
        set_tensor(A0, lambda kit: kit.raw("I8", (4, 16), bytes(64))),
        "dtype_unsupported",
    ),
    "double tensors": (
        set_tensor(A0, lambda kit: kit.raw("F64", (4, 16), bytes(512))),
        "dtype_unsupported",
    ),
    "8-bit floats": (
        set_tensor(A0, lambda kit: kit.raw("F8_E4M3", (4, 16), bytes(64))),
        "dtype_unsupported",
    ),
    "IA3": (set_config(peft_type="IA3"), "peft_type_unsupported"),
    "no PEFT type": (drop_config("peft_type"), "peft_type_unsupported"),
    "output head": (rename("layers.1.self_attn.q_proj", "lm_head"), "module_not_served"),
    "embedding": (
        set_tensor("base_model.model.model.embed_tokens.lora_embedding_A", filled((4, 32), 0.0)),
        "module_not_served",
    ),
    "no base_model prefix": (rename("base_model.model.", ""), "tensor_name_unsupported"),
    "names of a live model": (rename(".weight", ".default.weight"), "tensor_name_unsupported"),
    "not a number in float32": (set_tensor(A0, filled((4, 16), math.nan)), "value_not_finite"),
    "not a number in bfloat16": (
        set_tensor(A0, filled((4, 16), math.nan, "bf16")),
        "value_not_finite",
    ),
    "infinite in float16": (set_tensor(B0, filled((16, 4), math.inf, "f16")), "value_not_finite"),
    "minus infinite": (set_tensor(B0, filled((16, 4), -math.inf)), "value_not_finite"),
    "huge finite weights": (scaled(1e20), "value_too_large"),
    "large weights": (scaled(2e3), "delta_too_large"),
    "huge alpha": (set_config(lora_alpha=1e30), "scale_too_large"),
    "large alpha": (set_config(lora_alpha=8192), "scale_too_large"),
    "huge alpha by pattern": (set_config(alpha_pattern={"q_proj": 1e30}), "scale_too_large"),
    # what only shows elsewhere
    "trainable tokens": (set_config(trainable_token_indices=[1]), "trainable_tokens_unsupported"),
    "target parameters": (
        set_config(target_parameters=["experts.up"]),
        "target_parameters_unsupported",
    ),
    "Megatron": (set_config(megatron_config={"x": 1}), "megatron_unsupported"),
    "KaSA": (set_config(kasa_config={"beta": 1}), "variant_unsupported"),
    "a variant of tomorrow": (set_config(use_quantum=True), "variant_unsupported"),
    "rsLoRA as text": (set_config(use_rslora="false"), "config_value_invalid"),
    "rank pattern as list": (set_config(rank_pattern=["q_proj"]), "rank_pattern_invalid"),
    "rank pattern of text": (set_config(rank_pattern={"q_proj": "8"}), "rank_pattern_invalid"),
    "alpha pattern of null": (set_config(alpha_pattern={"q_proj": None}), "alpha_pattern_invalid"),
    "magnitude vectors": (
        set_tensor(B0.replace("lora_B.weight", "lora_magnitude_vector"), filled((16,), 1.0)),
        "tensor_name_unsupported",
    ),
    "a layer lost": (drop_tensor(A0), "pair_incomplete"),
}


@pytest.mark.parametrize(("bend", "code"), BAD.values(), ids=BAD.keys())
def test_a_bad_adapter_is_refused_by_its_own_code(kit, base, tmp_path, bend, code) -> None:
    draft = kit.build()
    bend(draft, kit)
    assert code in codes(draft.write(tmp_path / "a"), base)


def test_a_file_without_a_layer_that_its_config_targets_is_incomplete(kit, base, tmp_path) -> None:
    assert codes(kit.build(layers=(0,)).write(tmp_path / "a"), base) == ["modules_missing"]


def test_a_limit_on_rank_can_be_given(kit, base, tmp_path) -> None:
    folder = kit.build(rank=16).write(tmp_path / "a")
    assert codes(folder, base, max_rank=16) == []
    assert codes(folder, base, max_rank=8) == ["rank_too_large"]


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


def test_tensors_are_judged_even_when_the_config_is_lost(kit, base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    (folder / "adapter_config.json").write_text("{")
    (folder / "adapter_model.safetensors").write_bytes(
        kit.encode({A0: kit.f32(np.zeros((4, 8))), B0: kit.f32(np.zeros((16, 4)))})
    )
    assert codes(folder, base) == ["config_malformed", "shape_mismatch"]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"r": NaN}', b"[" * 100_000, b"1" * 5000],
    ids=["empty", "open", "list", "null", "not utf-8", "nan", "deep", "number"],
)
def test_a_config_that_is_no_object_is_malformed(kit, base, tmp_path, text) -> None:
    folder = kit.build().write(tmp_path / "a")
    (folder / "adapter_config.json").write_bytes(text)
    assert codes(folder, base) == ["config_malformed"]


def test_truncated_weights_are_malformed(kit, base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert codes(folder, base) == ["weights_malformed"]


def test_a_folder_without_files_or_no_folder_misses_both_files(base, tmp_path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        _, problems = inspect_checkpoint(folder, base)
        found = [(problem.code, problem.where) for problem in problems]
        assert found == [
            ("file_missing", "adapter_config.json"),
            ("file_missing", "adapter_model.safetensors"),
        ]


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_a_pickle_is_refused_and_never_opened(kit, base, tmp_path, name) -> None:
    folder = kit.build().write(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert codes(folder, base) == ["file_pickle"]


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_links_pipes_and_folders_are_not_opened(kit, base, tmp_path, name) -> None:
    for number, make in enumerate((os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero"))):
        folder = kit.build().write(tmp_path / str(number))
        (folder / name).unlink()
        make(folder / name)
        assert codes(folder, base) == ["file_not_regular"]


def test_a_config_over_its_limit_is_not_read(kit, base, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    (folder / "adapter_config.json").write_bytes(b" " * (2 << 20))
    assert codes(folder, base) == ["file_too_large"]


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
