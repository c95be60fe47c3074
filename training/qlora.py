"""One training run: the frozen base (NF4 or unquantized), LoRA, TRL's loop; PEFT's format.

Knows nothing about recipe files, caches or stores. The same code runs on a CPU and on a GPU.
"""

import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.base import Base
from training.data.tokens import Row
from training.recipe import Recipe

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase
    from trl import SFTConfig, SFTTrainer

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measurements of a finished run."""

    steps: int
    train_seconds: float
    train_loss: float
    validation_loss: float | None
    trainable_parameters: int
    compute_dtype: str  # bfloat16 or float32


def train_adapter(
    recipe: Recipe,
    base: Base,
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[Row],
    validation: Sequence[Row],
    output: Path,
    report: Report,
) -> Outcome:
    """Train on rows of `input_ids` and `labels`, and save an adapter into `output`."""
    shorten_spinning()
    silence_libraries()
    model = load_base(base.folder, quantized=recipe.quantization == "nf4")
    trainer = _make_trainer(recipe, model, tokenizer, train, validation, output / "trainer")
    _report_losses(trainer, report)
    started = time.perf_counter()
    result = trainer.train()
    seconds = time.perf_counter() - started
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    measured = trainer.evaluate() if validation else {}
    _save(trainer.model, base.name, output)
    return Outcome(
        steps=result.global_step,
        train_seconds=round(seconds, 1),
        train_loss=losses[-1] if losses else result.training_loss,
        validation_loss=measured.get("eval_loss"),
        trainable_parameters=sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        compute_dtype=str(compute_dtype()).removeprefix("torch."),
    )


def shorten_spinning() -> None:
    """Let waiting OpenMP threads sleep soon; has an effect only before torch is imported.

    On a busy machine, spinning threads take the processor from the threads that they wait for: a
    run beside two busy processes took four times as long.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def silence_libraries() -> None:
    """Switch off the progress bars of the libraries below."""
    import datasets
    from transformers.utils import logging as transformers_logging

    datasets.disable_progress_bars()
    transformers_logging.disable_progress_bar()


def load_base(folder: Path, *, quantized: bool) -> "PreTrainedModel":
    """Load a base; `quantized` puts its linear layers in NF4 with double quantization."""
    # At import, bitsandbytes warns of an optional CPU kernel that is not installed.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
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
    """bf16, or fp32 on a processor that can't multiply bf16: PyTorch emulates it, far slower."""
    import torch

    able = torch.cpu.get_capabilities()
    has_bf16 = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if torch.cuda.is_available() or has_bf16 else torch.float32


def _keep_weights_unpacked(model: "PreTrainedModel") -> None:
    # On a CPU with AVX512-BF16 the first forward pass in eval mode repacks the weights in place,
    # with bf16 scales and without a backward pass: training on would lose gradients silently.
    from bitsandbytes.nn import Linear4bit

    quantized: list[Any] = [each for each in model.modules() if isinstance(each, Linear4bit)]
    for linear in quantized:
        linear.support_avx512bf16_for_cpu = False


def _make_trainer(
    recipe: Recipe,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    train: Sequence[Row],
    validation: Sequence[Row],
    scratch: Path,
) -> "SFTTrainer":
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import SFTTrainer

    lora = recipe.lora
    trainer = SFTTrainer(
        model=model,
        args=_arguments(recipe, scratch, evaluates=bool(validation)),
        train_dataset=Dataset.from_list(list(train)),
        eval_dataset=Dataset.from_list(list(validation)) if validation else None,
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=lora.rank,
            lora_alpha=lora.scale_alpha,
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            bias=lora.bias,
            task_type="CAUSAL_LM",
        ),
    )
    trainer.remove_callback(PrinterCallback)
    if compute_dtype() == torch.float32:
        _raise_lora(trainer.model)
    return trainer


def _raise_lora(model: Any) -> None:
    # TRL converts the LoRA weights of a quantized model to bf16, whatever its compute type. Where
    # bf16 is emulated, their small products would take most of the time.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def _arguments(recipe: Recipe, scratch: Path, *, evaluates: bool) -> "SFTConfig":
    import torch
    from trl import SFTConfig

    chosen = recipe.optimization
    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(scratch),
        learning_rate=chosen.learning_rate,
        num_train_epochs=chosen.epochs,
        max_steps=chosen.max_steps or -1,
        per_device_train_batch_size=chosen.batch_size,
        per_device_eval_batch_size=chosen.batch_size,
        gradient_accumulation_steps=chosen.accumulation,
        warmup_steps=chosen.warmup_steps,
        lr_scheduler_type=chosen.scheduler,
        weight_decay=chosen.weight_decay,
        packing=chosen.packing,
        completion_only_loss=chosen.completion_only_loss,
        gradient_checkpointing=chosen.gradient_checkpointing,
        max_length=chosen.max_length,
        seed=chosen.seed,
        data_seed=chosen.seed,
        optim="paged_adamw_32bit" if gpu and recipe.quantization == "nf4" else "adamw_torch",
        bf16=compute_dtype() == torch.bfloat16,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
        logging_steps=10,
        save_strategy="no",
        eval_strategy="no",
        do_eval=evaluates,
        report_to="none",
        disable_tqdm=True,
    )


def _report_losses(trainer: "SFTTrainer", report: Report) -> None:
    from transformers import TrainerCallback

    class Reporter(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
        ) -> None:
            if logs and "loss" in logs:
                report(f"step {state.global_step}/{state.max_steps} loss {float(logs['loss']):.4f}")

    trainer.add_callback(Reporter())


def _save(model: Any, base_name: str, output: Path) -> None:
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)
    for config in model.peft_config.values():
        config.base_model_name_or_path = base_name
    with warnings.catch_warnings():
        # PEFT would ask the hub whether the vocabulary grew; ours never does.
        warnings.simplefilter("ignore")
        model.save_pretrained(output, safe_serialization=True, save_embedding_layers=False)
    # PEFT's card is an empty template, the trainer's scratch folder holds nothing.
    (output / "README.md").unlink()
    shutil.rmtree(output / "trainer", ignore_errors=True)
