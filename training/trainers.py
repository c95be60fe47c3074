"""TRL's trainers as a recipe sets them up: for answers to imitate, and for preferences.

Knows nothing about files of data, caches or stores. The same code runs on a CPU and on a GPU.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from datasets import Dataset
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
)
from transformers.integrations.integration_utils import (
    INTEGRATION_TO_CALLBACK,
    get_available_reporting_integrations,
)
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from training.data.tokens import IGNORED, Row
from training.errors import InputError
from training.qlora import compute_dtype, lora_config, raise_lora
from training.recipe import Recipe

EVALUATIONS: Final = 10  # in a run, unless the recipe says how often

TIE: Final = 1e-5  # less than one answer more or less
MAX_LOSS: Final = 1000.0

# The score of each answer of the model as it is; called at each evaluation.
Judge = Callable[[Any], list[float]]


class _Judged:
    """Answers prompts at each evaluation, so that the answers may decide what is kept."""

    judge: Judge | None = None

    def evaluation_loop(self, *arguments: Any, **options: Any) -> Any:
        output = super().evaluation_loop(*arguments, **options)  # type: ignore[misc]
        if self.judge:
            scores = self.judge(self.model)  # type: ignore[attr-defined]
            output.metrics["eval_metric"] = fmean(scores)
            # Of two checkpoints with equal scores the one with the lower loss is the better.
            loss = min(output.metrics["eval_loss"], MAX_LOSS)
            output.metrics["eval_decides"] = fmean(scores) - TIE * loss / MAX_LOSS
        return output


class Imitating(_Judged, SFTTrainer):  # type: ignore[misc]
    """Learns answers."""


class Preferring(_Judged, DPOTrainer):  # type: ignore[misc]
    """Learns which of two answers is the better one."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset  # tokenized by training/data, as the server does it


def make_trainer(
    recipe: Recipe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Row],
    validation: Sequence[Row],
    scratch: Path,
    judge: Judge | None = None,
    report_to: Sequence[str] = (),
) -> Trainer:
    """A trainer with LoRA on the model; it keeps its checkpoints in `scratch`."""
    chosen = Preferring if recipe.method == "dpo" else Imitating
    trainer = chosen(
        model=model,
        args=_arguments(recipe, scratch, bool(validation), bool(judge), report_to),
        train_dataset=Dataset.from_list(list(train)),
        eval_dataset=Dataset.from_list(list(validation)) if validation else None,
        processing_class=tokenizer,
        peft_config=lora_config(recipe.lora, model),
    )
    trainer.judge = judge
    trainer.remove_callback(PrinterCallback)
    if validation and recipe.evaluation.patience:
        trainer.add_callback(EarlyStoppingCallback(recipe.evaluation.patience))
    raise_lora(trainer.model)
    return trainer


def _arguments(
    recipe: Recipe,
    scratch: Path,
    validated: bool,
    judged: bool,
    report_to: Sequence[str],
) -> Any:
    chosen = recipe.optimization
    gpu = torch.cuda.is_available()
    every = recipe.evaluation.every or 1 / EVALUATIONS  # a ratio of the run
    shared: dict[str, Any] = {
        "output_dir": str(scratch),
        "learning_rate": chosen.learning_rate,
        "num_train_epochs": chosen.epochs,
        "max_steps": chosen.max_steps or -1,
        "per_device_train_batch_size": chosen.batch_size,
        "per_device_eval_batch_size": chosen.batch_size,
        "gradient_accumulation_steps": chosen.accumulation,
        "warmup_steps": chosen.warmup_steps,
        "lr_scheduler_type": chosen.scheduler,
        "weight_decay": chosen.weight_decay,
        "max_grad_norm": chosen.max_grad_norm,
        "gradient_checkpointing": chosen.gradient_checkpointing,
        "max_length": chosen.max_length,
        "seed": chosen.seed,
        "data_seed": chosen.seed,
        "optim": "paged_adamw_32bit" if gpu and recipe.quantization == "nf4" else "adamw_torch",
        "bf16": compute_dtype() == torch.bfloat16,
        "fp16": compute_dtype() == torch.float16,
        "use_cpu": not gpu,
        "dataloader_pin_memory": gpu,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,  # it would show the mean of earlier losses instead
        "save_strategy": "steps",
        "save_steps": every,
        "save_total_limit": 2,  # the best and the last
        "eval_strategy": "steps" if validated else "no",
        "eval_steps": every,
        "load_best_model_at_end": validated,
        "metric_for_best_model": "decides" if judged else "loss",
        "greater_is_better": judged,
        "restore_callback_states_from_checkpoint": True,
        "report_to": list(report_to) or "none",
        "disable_tqdm": True,
    }
    if recipe.method == "dpo":
        return DPOConfig(**shared, beta=recipe.dpo.beta, disable_dropout=False)
    return SFTConfig(
        **shared, packing=chosen.packing, completion_only_loss=chosen.completion_only_loss
    )


def measure_losses(
    model: Any, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], batch_size: int
) -> list[float]:
    """The mean negative log-likelihood of each row's answer tokens."""
    losses: list[float] = []
    model.eval()
    with torch.inference_mode():
        for batch in _batches(rows, batch_size):
            width = max(len(row["input_ids"]) for row in batch)
            padding = tokenizer.pad_token_id or 0
            ids, labels, mask = (
                torch.tensor([row + [fill] * (width - len(row)) for row in found])
                for found, fill in (
                    ([row["input_ids"] for row in batch], padding),
                    ([row["labels"] for row in batch], IGNORED),
                    ([[1] * len(row["input_ids"]) for row in batch], 0),
                )
            )
            found = model(
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
                labels=labels.to(model.device),
                fused_lm_head=True,
            )
            sums = found.log_probs.float().sum(dim=1) / found.label_mask.sum(dim=1).clamp(min=1)
            losses += [-loss for loss in sums.tolist()]
    return losses


def _batches(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def check_reporters(names: Sequence[str]) -> None:
    """Raise InputError if a reporter is unknown to transformers or not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(INTEGRATION_TO_CALLBACK))
            raise InputError(f"--report-to {name}: unknown", f"choose among {known}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"--report-to {name}: not installed", f"pip install {name}")
