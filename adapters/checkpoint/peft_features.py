"""Detects features that PEFT can train but the engine cannot serve, by the config's keys.

vLLM ignores keys of adapter_config.json that it does not know; here such a key is refused unless
it is empty or off. Knows nothing of ranks, scales or tensors.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from adapters.errors import Problem, quote

TRAIN_PLAIN = "train a plain LoRA adapter without it"
REMOVE_KEY = "remove it if it only matters in training, or train without it"
CONVERT = (
    "save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it"
)
# Initialisations that only choose where training starts. All others change the base's weights, so
# the trained model is not the served base plus this adapter. Converted adapters have `true`.
PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica"})

# key -> code. Each changes what the adapter computes; the engine would ignore that.
UNSERVABLE: Mapping[str, str] = {
    "use_dora": "dora_unsupported",
    "use_qalora": "qalora_unsupported",
    "use_bdlora": "bdlora_unsupported",
    "alora_invocation_tokens": "alora_unsupported",
    "lora_bias": "lora_bias_unsupported",
    "modules_to_save": "modules_to_save_unsupported",
    "layer_replication": "layer_replication_unsupported",
    "trainable_token_indices": "trainable_tokens_unsupported",
    "target_parameters": "target_parameters_unsupported",
    "megatron_config": "megatron_unsupported",
    "monteclora_config": "variant_unsupported",
    "kasa_config": "variant_unsupported",
    "arrow_config": "variant_unsupported",
}

# Keys whose values are judged, here, in peft_config.py or by the tensors: they are served.
JUDGED = frozenset(
    {
        "alpha_pattern",
        "base_model_name_or_path",
        "bias",
        "exclude_modules",
        "init_lora_weights",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "peft_type",
        "r",
        "rank_pattern",
        "target_modules",
        "use_rslora",
    }
)
# Keys of PEFT and ms-swift that only training or loading reads: what is computed stays the same.
# Those of an initialisation (corda_config) are refused with it, by `init_lora_weights`; the group
# of QALoRA and Megatron's name matter only with `use_qalora` and `megatron_config`.
HARMLESS = frozenset(
    {
        "auto_mapping",
        "corda_config",
        "ensure_weight_tying",
        "eva_config",
        "fan_in_fan_out",
        "inference_mode",
        "loftq_config",
        "lora_dropout",
        "lora_dtype",
        "lora_ga_config",
        "lorap_emb_lr",
        "lorap_lr_ratio",
        "megatron_core",
        "merge_weights",
        "peft_version",
        "qalora_group_size",
        "revision",
        "runtime_config",
        "task_type",
        "velora_config",
    }
)


def find_unservable(raw: Mapping[str, Any]) -> Iterator[Problem]:
    peft_type = raw.get("peft_type")
    if peft_type != "LORA":
        said = f"is {quote(str(peft_type))}, only LORA can be served"
        yield Problem("peft_type_unsupported", "peft_type", said, "train a LoRA adapter")
    if raw.get("bias", "none") != "none":
        said = f"is {quote(str(raw['bias']))}: trained biases cannot be served"
        yield Problem("bias_unsupported", "bias", said, 'train with bias="none"')
    init = raw.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        said = f"{quote(init)} changes the base's own weights"
        yield Problem("init_unsupported", "init_lora_weights", said, CONVERT)
    elif not isinstance(init, str | bool | None):
        yield invalid("config_value_invalid", "init_lora_weights", init, "true, false or a name")
    for key, code in UNSERVABLE.items():
        if raw.get(key):
            yield Problem(code, key, "is a feature that cannot be served", TRAIN_PLAIN)
    # A newer PEFT writes its new keys too, empty or off where the feature is not used.
    for key in sorted(
        key for key in raw.keys() - UNSERVABLE.keys() - JUDGED - HARMLESS if raw[key]
    ):
        if key.startswith("use_"):
            said = "is a LoRA variant unknown to this server"
            yield Problem("variant_unsupported", quote(key), said, TRAIN_PLAIN)
        else:
            said = f"is {quote(str(raw[key])[:200])}, a setting unknown to this server"
            yield Problem("config_key_unknown", quote(key), said, REMOVE_KEY)


def invalid(code: str, where: str, value: Any, wanted: str) -> Problem:
    return Problem(code, where, f"is {quote(str(value)[:200])}", f"it must be {wanted}")
