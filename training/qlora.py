"""QLoRA's parts: the frozen base (NF4 or not), LoRA beside it, the adapter as PEFT saves it.

Knows nothing about recipe files, caches or stores. The same code runs on a CPU and on a GPU.
"""

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.recipe import Lora

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def prepare_process() -> None:
    """Settings that take effect only before torch and the hub's library are imported.

    On a busy machine, spinning OpenMP threads take the processor from the threads that they wait
    for: a run beside two busy processes took four times as long. The hub's library starts a
    telemetry thread unless told otherwise.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    # At import, bitsandbytes warns of an optional CPU kernel that is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def silence_libraries() -> None:
    """Switch off the progress bars of the libraries below, and hints that a user can't act on."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()


def load_base(folder: Path, *, quantized: bool) -> "PreTrainedModel":
    """Load a base; `quantized` puts its linear layers in NF4 with double quantization."""
    prepare_process()
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = compute_dtype()
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=nf4 if quantized else None,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
    )
    _keep_weights_unpacked(model)
    return model


def compute_dtype() -> "torch.dtype":
    """bf16; where the hardware only emulates it: fp16 on a GPU, fp32 on a processor."""
    import torch

    if torch.cuda.is_available():
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_bf16 else torch.float16
    able = torch.cpu.get_capabilities()
    has_bf16 = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if has_bf16 else torch.float32


def _keep_weights_unpacked(model: "PreTrainedModel") -> None:
    # On a CPU with AVX512-BF16 the first forward pass in eval mode repacks the weights in place,
    # with bf16 scales and without a backward pass: training on would lose gradients silently.
    from bitsandbytes.nn import Linear4bit

    quantized: list[Any] = [each for each in model.modules() if isinstance(each, Linear4bit)]
    for linear in quantized:
        linear.support_avx512bf16_for_cpu = False


def lora_config(lora: Lora, model: "PreTrainedModel") -> "LoraConfig":
    """PEFT's form of a recipe's section `lora`, for those of its layers that the model has."""
    from peft import LoraConfig

    present = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return LoraConfig(
        r=lora.rank,
        lora_alpha=lora.scale_alpha,
        use_rslora=lora.rslora,
        lora_dropout=lora.dropout,
        target_modules=[name for name in lora.modules if name in present],
        bias=lora.bias,
        task_type="CAUSAL_LM",
    )


def raise_lora(model: Any) -> None:
    """Train the LoRA weights in fp32.

    TRL converts those of a quantized model to bf16: the eight bits lose small updates, and adapters
    get worse (docs/log/training.md). Where bf16 is emulated, their products take most of the time.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def save_adapter(
    model: Any,
    tokenizer: "PreTrainedTokenizerBase",
    base: tuple[str, str | None],
    output: Path,
) -> None:
    """Save the adapter in bf16, with the tokenizer that it was trained with.

    `base` is what others load its base by: a folder, or an id and the revision that was chosen.
    """
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = base
    with warnings.catch_warnings():
        # PEFT would ask the hub whether the vocabulary grew; ours never does.
        warnings.simplefilter("ignore")
        model.save_pretrained(output, safe_serialization=True, save_embedding_layers=False)
    tokenizer.save_pretrained(output)
