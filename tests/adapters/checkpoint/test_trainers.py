"""Adapters written by PEFT, and the other files that TRL, Axolotl, Unsloth and others add."""

import json
import re
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from adapter_files import CONFIG, WEIGHTS, Draft, decode
from foreign_folders import SERVABLE, change_json, dress
from publishing import publish

from adapters.checkpoint import inspect_checkpoint
from adapters.checkpoint.base import read_base
from adapters.checkpoint.peft_features import HARMLESS, JUDGED, UNSERVABLE
from adapters.errors import CheckpointInvalid
from adapters.store import Store


@pytest.fixture(scope="module")
def save(kit, tmp_path_factory):
    """Saves a real PEFT adapter of a Llama built like the tiny base."""
    torch = pytest.importorskip("torch")
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    config = {k: v for k, v in kit.base_config.items() if k not in ("architectures", "model_type")}

    def save(**options) -> Path:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **config))
        model.name_or_path = "acme/Tiny-Base"
        folder = tmp_path_factory.mktemp("peft")
        saving = {"save_embedding_layers": options.pop("save_embedding_layers", False)}
        peft = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
        peft.save_pretrained(folder, **saving)
        return folder

    return save


def codes(folder, base) -> set[str]:
    _, problems = inspect_checkpoint(folder, base, names=["tiny-base"])
    return {problem.code for problem in problems}


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj"], "r": 8, "use_rslora": True},
        {"target_modules": r".*\.(q|v)_proj"},
        {"target_modules": r"model\.layers\.1\.(self_attn|mlp)\..*_proj"},
        {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
        {"target_modules": ["q_proj"], "layers_to_transform": [1]},
        {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
        {
            "target_modules": ["q_proj", "down_proj"],
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.down_proj": 6},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 32},
        },
        {"target_modules": ["q_proj"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
        {"target_modules": ["o_proj"], "init_lora_weights": "orthogonal", "r": 4},
    ],
    ids=str,
)
def test_adapters_that_peft_writes_pass(save, base, options) -> None:
    assert codes(save(**options), base) == set()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "dora_unsupported"),
        ({"target_modules": ["q_proj"], "bias": "lora_only"}, "bias_unsupported"),
        ({"target_modules": ["q_proj"], "lora_bias": True}, "lora_bias_unsupported"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "pissa"}, "init_unsupported"),
        ({"target_modules": ["q_proj"], "init_lora_weights": "olora"}, "init_unsupported"),
        (
            {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
            "modules_to_save_unsupported",
        ),
        (
            {"target_modules": ["q_proj"], "trainable_token_indices": [1]},
            "trainable_tokens_unsupported",
        ),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "module_not_served"),
        ({"target_modules": ["q_proj", "lm_head"]}, "module_not_served"),
        ({"target_modules": ["q_proj"], "save_embedding_layers": True}, "embeddings_saved"),
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:.*:UserWarning")
def test_unservable_features_are_refused_as_peft_writes_them(save, base, options, expected) -> None:
    assert expected in codes(save(**options), base)


def test_every_setting_of_the_installed_peft_is_classified() -> None:
    """A new one is refused where it is used: decide what it is, and add it to one of the three."""
    from peft import LoraConfig

    written = {field.name for field in fields(LoraConfig)} | LoraConfig().to_dict().keys()
    kinds = (JUDGED, HARMLESS, UNSERVABLE.keys())
    assert {key: sum(key in kind for kind in kinds) for key in written} == dict.fromkeys(written, 1)


@pytest.mark.parametrize("name", SERVABLE)
def test_a_trainers_folder_is_published_without_what_lies_beside(
    name, kit, base_folder, tmp_path
) -> None:
    plain = kit.build().write(tmp_path / "plain")
    folder = dress(plain, tmp_path / "a", SERVABLE[name], base_folder)
    version = publish(folder, name="a", store=tmp_path / "store", base=base_folder)
    stored = Store(tmp_path / "store").path(version.digest)
    assert {path.name for path in stored.iterdir()} == {CONFIG, WEIGHTS}
    assert not re.search("checkpoint", str(list((tmp_path / "store").rglob("*"))))
    assert (stored / CONFIG).read_bytes() == (folder / CONFIG).read_bytes()
    assert decode((stored / WEIGHTS).read_bytes()) == Draft.read(plain).tensors
    warnings = (version.provenance or {}).get("publish_warnings", [])
    assert {warning["code"] for warning in warnings} == SERVABLE[name].warnings


def test_renamed_tensors_published_again_are_the_same_version(kit, base_folder, tmp_path) -> None:
    plain = kit.build().write(tmp_path / "plain")
    folder = dress(plain, tmp_path / "a", SERVABLE["a compiled model"], base_folder)
    options = {"name": "a", "store": tmp_path / "store", "base": base_folder}
    first = publish(folder, **options)
    assert publish(folder, **options).label == first.label
    Store(tmp_path / "store").verify(first.digest)


def test_names_that_would_be_the_same_are_not_changed(kit, base_folder, tmp_path) -> None:
    draft = kit.build()
    draft.tensors |= {
        name.replace(".weight", ".default.weight"): raw for name, raw in draft.tensors.items()
    }
    folder = draft.write(tmp_path / "a")
    with pytest.raises(CheckpointInvalid, match="tensor_name_unsupported"):
        publish(folder, name="a", store=tmp_path / "store", base=base_folder)


def test_a_dora_adapter_is_one_problem(kit, base, tmp_path) -> None:
    draft = kit.build()
    draft.config["use_dora"] = True
    for name in [name for name in draft.tensors if "lora_A" in name]:
        draft.tensors[name.replace("lora_A.weight", "lora_magnitude_vector")] = kit.f32(np.ones(16))
    _, problems = inspect_checkpoint(draft.write(tmp_path / "a"), base)
    assert [(problem.code, problem.where) for problem in problems] == [
        ("dora_unsupported", "use_dora")
    ]


def test_one_cause_is_one_problem_with_a_count(kit, base_folder, tmp_path) -> None:
    config = dict(kit.base_config) | {"hidden_size": 32}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _, problems = inspect_checkpoint(kit.build().write(tmp_path / "a"), read_base(tmp_path))
    assert len(problems) == 1
    assert "(and 5 more like it)" in problems[0].message


def test_the_prefix_of_a_wrapped_model_is_named(kit, base, tmp_path) -> None:
    said = {}
    for prefix in ("thinker.", "base_model.model."):
        draft = kit.build()
        draft.tensors = {
            name.replace("base_model.model.", f"base_model.model.{prefix}"): raw
            for name, raw in draft.tensors.items()
        }
        _, (problem,) = inspect_checkpoint(draft.write(tmp_path / prefix), base)
        said[prefix] = f"{problem.message}; {problem.fix}"
    assert "'thinker.' before the name of the base's module" in said["thinker."]
    assert "trained on top of another adapter" in said["base_model.model."]


def test_resized_embeddings_say_that_the_resized_base_must_be_served(
    save, base_folder, tmp_path
) -> None:
    base = tmp_path / "tiny-base"
    shutil.copytree(base_folder, base)
    change_json(base / "config.json", vocab_size=30)
    options = {"target_modules": ["q_proj"], "save_embedding_layers": True}
    _, problems = inspect_checkpoint(save(**options), read_base(base))
    assert {problem.code for problem in problems} == {"embeddings_saved"}
    assert "32 tokens, and the base has 30" in problems[0].message
    assert "serve the resized base" in problems[0].fix
