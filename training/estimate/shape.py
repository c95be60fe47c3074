"""The shape of a base and of its adapter, built by transformers and PEFT without any weights.

Only the base's config is read. Nothing here has a formula for parameters: the model is built where
tensors have shapes and no storage, and PEFT counts what it added.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.models import CONFIG, GGUF, find_model, name_model, silent
from training.errors import BaseInvalid, RecipeInvalid
from training.progress import Report

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel

ALL_LINEAR = "all-linear"


def read_config(where: str, report: Report = silent) -> "PretrainedConfig":
    """The config of a model folder, of a config.json or of a hub id.

    Raises BaseInvalid or an AdapterError.
    """
    place = Path(where)
    if not place.is_file() or place.suffix == GGUF:
        place = find_model(where, CONFIG, report)
    from transformers import AutoConfig

    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        said = " ".join(str(error).split())[:200]
        raise BaseInvalid(
            f"{where}: no config of a model: {said}",
            "give a model folder, its config.json, or ORG/NAME of the model hub",
        ) from error
    # Counted as it was before somebody quantized it: the estimate is for each way of training.
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def name_of(where: str) -> str:
    """A model's name for a heading: the folder's, or the id."""
    path = Path(where)
    return name_model(str(path.parent) if path.is_file() else where)


def build_base(config: "PretrainedConfig", dtype: "torch.dtype") -> "PreTrainedModel":
    """A model of this shape; call it where tensors have no storage. Raises BaseInvalid."""
    from transformers import AutoModelForCausalLM

    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (ValueError, AttributeError) as error:
        said = " ".join(str(error).split())[:200]
        raise BaseInvalid(
            f"transformers builds no causal language model of this config: {said}",
            "give the config of a text model",
        ) from error
    return model


def add_lora(model: "PreTrainedModel", rank: int, targets: Sequence[str]) -> "PeftModel":
    """PEFT's LoRA on the target modules; raises RecipeInvalid where it finds none of them."""
    from peft import LoraConfig, get_peft_model

    chosen: Any = ALL_LINEAR if list(targets) == [ALL_LINEAR] else list(targets)
    config = LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules=chosen, bias="none", task_type="CAUSAL_LM"
    )
    try:
        with quiet():
            adapted: PeftModel = get_peft_model(model, config, autocast_adapter_dtype=False)
    except ValueError as error:
        raise RecipeInvalid(
            f"target modules {', '.join(targets)}: PEFT finds none of them in this model",
            f"name linear layers of it, or {ALL_LINEAR}",
        ) from error
    return adapted


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT and transformers warn of models without weights, which is what is wanted here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
