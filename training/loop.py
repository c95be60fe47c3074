"""The training of one adapter, from its tokens to its files: run, resumed, stopped, measured.

Knows nothing of recipes' files, of caches or of stores.
"""

import json
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch
from peft import set_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from training.base import Base
from training.data.tokens import IGNORED, Row
from training.errors import Diverged, InputError, Interrupted, RunFailed
from training.progress import Control
from training.qlora import compute_dtype, load_base, save_adapter, silence_libraries
from training.recipe import Recipe
from training.trainers import Judge, make_trainer, measure_losses
from training.watch import Clock, Curve, Watch

CHECKPOINTS: Final = "checkpoints"
ADAPTER: Final = "adapter"
LAST_LOSSES: Final = 10  # updates whose mean is the run's training loss


@dataclass(frozen=True, slots=True)
class Sets:
    """What is learnt, what decides, and how answers are judged where they decide."""

    tokenizer: PreTrainedTokenizerBase
    train: Sequence[Row]
    validation: Sequence[Row]
    judge: Judge | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """The measurements of a finished run. Validation figures are those of what was kept; the
    training loss is the mean of the last updates."""

    steps: int
    epochs: float
    best_step: int | None
    curve: Curve
    train_seconds: float
    train_loss: float
    validation_loss: float | None
    validation_metric: float | None
    example_losses: list[float]
    example_scores: list[float] | None
    tokens_per_second: float
    peak_memory_bytes: int
    trainable_parameters: int
    compute_dtype: str  # bfloat16, float16 or float32
    warnings: list[str]


def train_adapter(
    recipe: Recipe, base: Base, sets: Sets, folder: Path, control: Control
) -> Outcome:
    """Train and save an adapter into `folder`/adapter, going on from a checkpoint that lies there.

    Raises Diverged, Interrupted with a checkpoint left in `folder`, or RunFailed.
    """
    silence_libraries()
    _refuse_several_gpus()
    control.report(f"loading {base.name}")
    model = load_base(base.folder, quantized=recipe.quantization == "nf4")
    scratch = (folder / CHECKPOINTS).resolve()
    trainer = make_trainer(
        recipe,
        model,
        sets.tokenizer,
        sets.train,
        sets.validation,
        scratch,
        sets.judge,
        control.report_to,
    )
    trainer.add_callback(Clock())
    watch = Watch(control, recipe.evaluation.metric, lambda: _find_clock(trainer))
    trainer.add_callback(watch)
    _train(trainer, find_checkpoint(folder), recipe.evaluation.patience)
    curve = Curve.of(trainer.state.log_history)
    _refuse_unfinished(trainer.state, curve, watch, validated=bool(sets.validation))
    return _conclude(recipe, base, sets, folder, trainer, curve)


def _train(trainer: Any, checkpoint: Path | None, patience: int | None) -> None:
    if checkpoint is None:
        trainer.train()
        return
    _localize(checkpoint)
    if _is_done(checkpoint, patience):
        _load_done(trainer, checkpoint)
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint))


def _conclude(
    recipe: Recipe, base: Base, sets: Sets, folder: Path, trainer: Any, curve: Curve
) -> Outcome:
    """Measure what was kept, and save it."""
    model, clock = trainer.model, _find_clock(trainer)
    rows = [_as_answer(row) for row in sets.validation]
    with trainer.accelerator.autocast():
        losses = measure_losses(model, sets.tokenizer, rows, recipe.optimization.batch_size)
        scores = sets.judge(model) if sets.judge and sets.validation else None
    save_adapter(model, sets.tokenizer, base.address, folder / ADAPTER)
    best = trainer.state.best_global_step if sets.validation else None
    kept = next((each for each in curve.validation if each[0] == best), (None, None, None))
    warning = curve.find_overfitting()
    return Outcome(
        steps=trainer.state.global_step,
        epochs=float(trainer.state.epoch or 0),
        best_step=best,
        curve=curve,
        train_seconds=round(clock.wall, 1),
        train_loss=fmean(loss for _, loss in curve.train[-LAST_LOSSES:]),
        validation_loss=kept[1],
        validation_metric=kept[2],
        example_losses=losses,
        example_scores=scores,
        tokens_per_second=round(clock.tokens_per_second, 1),
        peak_memory_bytes=_peak_memory(),
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        compute_dtype=str(compute_dtype()).removeprefix("torch."),
        warnings=[warning] if warning else [],
    )


def find_checkpoint(folder: Path) -> Path | None:
    """The last whole checkpoint in a run's folder; transformers writes the state at last."""
    whole = {}
    for state in folder.glob(f"{CHECKPOINTS}/checkpoint-*/{TRAINER_STATE_NAME}"):
        try:
            whole[int(json.loads(state.read_bytes())["global_step"])] = state.parent
        except (ValueError, KeyError, OSError):
            continue
    return whole[max(whole)] if whole else None


def _is_done(checkpoint: Path, patience: int | None) -> bool:
    """Whether a run ended with this checkpoint, and was killed after it."""
    state = json.loads((checkpoint / TRAINER_STATE_NAME).read_bytes())
    stopping = state["stateful_callbacks"].get(EarlyStoppingCallback.__name__, {})
    waited = stopping.get("attributes", {}).get("early_stopping_patience_counter", 0)
    early = patience is not None and waited >= patience
    return bool(early or state["global_step"] >= state["max_steps"])


def _localize(checkpoint: Path) -> None:
    """Let the state name the best checkpoint where it lies now: the folder may have moved."""
    path = checkpoint / TRAINER_STATE_NAME
    state = json.loads(path.read_bytes())
    if best := state["best_global_step"]:
        state["best_model_checkpoint"] = str(checkpoint.resolve().parent / f"checkpoint-{best}")
        path.write_text(json.dumps(state, indent=2), encoding="utf-8")


def _load_done(trainer: Any, checkpoint: Path) -> None:
    """Take over a run that has ended; transformers would train one more update."""
    trainer.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
    trainer._load_callback_state()  # the clock's; public only as a part of train()
    kept = Path(trainer.state.best_model_checkpoint or checkpoint)
    set_peft_model_state_dict(trainer.model, load_file(kept / SAFETENSORS_WEIGHTS_NAME))


def _refuse_unfinished(state: Any, curve: Curve, watch: Watch, *, validated: bool) -> None:
    if curve.diverged:
        raise Diverged(
            f"the run diverged at step {state.global_step}: the loss went from "
            f"{curve.train[0][1]:.4f} to {curve.train[-1][1]:.4f}",
            "lower optimization.learning_rate or raise optimization.warmup_steps; nothing was kept",
        )
    if watch.interrupted:
        raise Interrupted(
            f"stopped at step {state.global_step} of {state.max_steps}",
            "the same command with --resume goes on from there",
            watch.control.stop.signal,
        )
    best = state.best_model_checkpoint
    if validated and not (best and Path(best).is_dir()):
        raise RunFailed(f"the best checkpoint {best} is gone", "train again with --restart")


def _as_answer(row: Row) -> Row:
    """The better answer of a preference as a row to imitate; other rows are as they are."""
    if "chosen_ids" not in row:
        return row
    prompt, chosen = row["prompt_ids"], row["chosen_ids"]
    return {"input_ids": prompt + chosen, "labels": [IGNORED] * len(prompt) + chosen}


def _find_clock(trainer: Any) -> Clock:
    return next(each for each in trainer.callback_handler.callbacks if isinstance(each, Clock))


def _refuse_several_gpus() -> None:
    if torch.cuda.device_count() > 1:
        raise InputError(
            "several GPUs are visible, and a run uses one", "choose one with CUDA_VISIBLE_DEVICES=0"
        )


def _peak_memory() -> int:
    """Bytes: the GPU's where there is one, else this process's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
