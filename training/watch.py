"""Watches a run: its curves, where it diverges or overfits, and when it should stop early.

The curves are those of transformers' own history, so that a resumed run has them whole.
"""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from training.progress import Control, Step

Entry = dict[str, Any]  # one entry of transformers' log_history

# A run has diverged when the mean loss of the last RECENT updates exceeds that of the first ones
# by both.
RECENT: Final = 5
DIVERGED_RATIO: Final = 1.5
DIVERGED_BY: Final = 1.0
# A rise of the validation loss that is no noise, in evaluations in a row and as a ratio.
RISES: Final = 2
RISE_RATIO: Final = 1.01


@dataclass(frozen=True, slots=True)
class Curve:
    """Losses by update; of validation also the metric, if the recipe has one."""

    train: list[tuple[int, float]]
    validation: list[tuple[int, float, float | None]]

    @classmethod
    def of(cls, history: Sequence[Entry]) -> "Curve":
        """Read transformers' log_history."""
        return cls(
            [(entry["step"], entry["loss"]) for entry in history if "loss" in entry],
            [
                (entry["step"], entry["eval_loss"], entry.get("eval_metric"))
                for entry in history
                if "eval_loss" in entry
            ],
        )

    @property
    def diverged(self) -> bool:
        """Whether a loss is not finite, or the recent ones are far above the first."""
        losses = [loss for _, loss in self.train]
        found = [*losses, *(loss for _, loss, _ in self.validation)]
        return not all(map(math.isfinite, found)) or is_far_above(losses)

    def find_overfitting(self) -> str | None:
        """What to say when the training loss falls while the validation loss rises."""
        if len(self.validation) <= RISES:
            return None
        best_at, best, _ = min(self.validation, key=lambda each: each[1])
        last = self.validation[-RISES:]
        rising = all(loss > RISE_RATIO * best for at, loss, _ in last if at > best_at)
        if last[0][0] <= best_at or not rising:
            return None
        before = [loss for at, loss in self.train if at <= best_at]
        after = [loss for at, loss in self.train if at > best_at]
        if not before or not after or fmean(after) >= fmean(before[-len(after) :]):
            return None
        return (
            f"WARNING: overfitting since step {best_at}: the validation loss rose from {best:.4f} "
            f"to {last[-1][1]:.4f} while the training loss fell. The checkpoint with the best "
            "validation is kept. Train fewer epochs (or set evaluation.patience), collect more "
            "examples, or try a smaller lora.rank, a lower learning rate or some lora.dropout"
        )


def is_far_above(losses: Sequence[float]) -> bool:
    """Whether the last losses are so far above the first that nothing is learnt any more."""
    if len(losses) < 2 * RECENT:
        return False
    first, last = fmean(losses[:RECENT]), fmean(losses[-RECENT:])
    return last > max(DIVERGED_RATIO * first, first + DIVERGED_BY)


class Clock(TrainerCallback, ExportableState):
    """What a run took, over all its sessions: transformers keeps the sums in its checkpoints."""

    def __init__(self, wall: float = 0.0, seconds: float = 0.0, tokens: int = 0) -> None:
        self._wall_before, self._tokens_before = wall, tokens
        self.seconds = seconds  # in updates alone, without evaluations and checkpoints
        self._tokens = 0
        self._started = self._began = time.perf_counter()

    @property
    def wall(self) -> float:
        """Seconds in all."""
        return self._wall_before + time.perf_counter() - self._started

    @property
    def tokens(self) -> int:
        return self._tokens_before + self._tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Entry | None = None, **_: Any
    ) -> None:
        # Here a GPU has done the update: its loss was read.
        if logs and "loss" in logs:
            self.seconds += time.perf_counter() - self._began
            self._tokens = int(logs.get("num_tokens", 0))

    def state(self) -> dict[str, Any]:
        found = {"wall": self.wall, "seconds": self.seconds, "tokens": self.tokens}
        return {"args": found, "attributes": {}}


class Watch(TrainerCallback):
    """Reports each update and evaluation; stops the run when it diverges or on request.

    `clock` finds the run's clock, which transformers replaces when it resumes.
    """

    def __init__(self, control: Control, metric: str | None, clock: Callable[[], Clock]) -> None:
        self.control = control
        self.metric = metric
        self.clock = clock
        self.interrupted = False
        self._warned = False
        self._losses: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._losses = [loss for _, loss in Curve.of(state.log_history).train]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.control.stop.signal and state.global_step < state.max_steps:
            self.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        sync_folder(Path(args.output_dir) / f"checkpoint-{state.global_step}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Entry | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self._report_step(state, float(logs["loss"]))
        elif logs and "eval_loss" in logs:
            self._report_evaluation(state, logs)
        found = [value for key in ("loss", "eval_loss") if (value := (logs or {}).get(key))]
        if not all(map(math.isfinite, found)) or is_far_above(self._losses):
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False

    def _report_step(self, state: Any, loss: float) -> None:
        self._losses.append(loss)
        clock = self.clock()
        each = clock.seconds / state.global_step
        self.control.on_step(
            Step(
                number=state.global_step,
                total=state.max_steps,
                loss=loss,
                tokens_per_second=clock.tokens_per_second,
                seconds_left=each * (state.max_steps - state.global_step),
            )
        )

    def _report_evaluation(self, state: Any, logs: Entry) -> None:
        said = f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}"
        if "eval_metric" in logs:
            said += f", {self.metric} {logs['eval_metric']:.3f}"
        self.control.report(said)
        warning = Curve.of(state.log_history).find_overfitting()
        if warning and not self._warned:
            self.control.report(warning)
        self._warned = bool(warning)


def sync_folder(folder: Path) -> None:
    """Bring a folder and its files to the disk, so that a power cut leaves all of it or none."""
    for path in (*folder.iterdir(), folder, folder.parent):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
