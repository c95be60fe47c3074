"""Adapters written by PEFT, and the other files that TRL, Axolotl, Unsloth and others add."""

import json
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from publishing import publish

from adapters.checkpoint import inspect_checkpoint
from adapters.checkpoint.peft_features import KNOWN, UNSERVABLE
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


def test_every_setting_of_the_installed_peft_is_known() -> None:
    from peft import LoraConfig

    assert {field.name for field in fields(LoraConfig)} <= KNOWN | UNSERVABLE.keys()


TRAINERS = {
    "Unsloth": {
        "auto_mapping": {"base_model_class": "LlamaForCausalLM", "unsloth_fixed": True},
        "base_model_name_or_path": "unsloth/Tiny-Base-unsloth-bnb-4bit",
        "revision": "unsloth",
        "peft_version": "0.17.1",
        "target_modules": r"(?:.*?(?:self_attn|mlp).*?(?:q_proj|v_proj|down_proj).*?)",
    },
    "Axolotl": {
        "loftq_config": {},
        "base_model_name_or_path": "acme/tiny-base",
        "lora_bias": False,
    },
    "LLaMA-Factory": {
        "base_model_name_or_path": "/data/models--acme--tiny-base/snapshots/0123abc",
        "layers_pattern": None,
        "megatron_core": "megatron.core",
    },
    "TRL": {"ensure_weight_tying": False, "inference_mode": True, "eva_config": None},
    "ms-swift": {"lora_dtype": "bfloat16", "lorap_lr_ratio": None, "lorap_emb_lr": 5e-07},
    "a newer PEFT": {"use_tomorrow": False, "tomorrow_config": None, "nothing": {}, "none": ""},
}


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_trainers_folder_is_published_without_what_lies_beside(
    trainer, kit, base_folder, tmp_path
) -> None:
    draft = kit.build()
    draft.config |= TRAINERS[trainer]
    draft.extra = dict.fromkeys(
        ("README.md", "tokenizer.json", "trainer_state.json", "additional_config.json"), b"{"
    )
    folder = draft.write(tmp_path / "a")
    for pickle in ("training_args.bin", "optimizer.pt", "rng_state.pth", "scheduler.pt"):
        os.mkfifo(folder / pickle)  # opening it would block for ever
    kit.build(seed=9).write(folder / "checkpoint-500")
    version = publish(folder, name="a", store=tmp_path / "store", base=base_folder)
    stored = Store(tmp_path / "store").path(version.digest)
    assert sorted(path.name for path in stored.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not re.search("checkpoint", str(list((tmp_path / "store").rglob("*"))))
    assert json.loads((stored / "adapter_config.json").read_text()) == draft.config
