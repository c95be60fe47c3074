"""Watches a run: its curves, where it diverges or overfits, and when it should stop early.

The curves are those of transformers' own history, so that a resumed run has them whole.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from transformers import TrainerCallback

from training.progress import Control, Step

Entry = dict[str, Any]  # one entry of transformers' log_history

# A run has diverged when the mean loss of RECENT updates exceeds the first loss by both.
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
        if not all(math.isfinite(loss) for loss in losses):
            return True
        if len(losses) <= RECENT:
            return False
        recent = fmean(losses[-RECENT:])
        return recent > max(DIVERGED_RATIO * losses[0], losses[0] + DIVERGED_BY)

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


class Watch(TrainerCallback):
    """Reports each update and evaluation; ends the run when it diverges or is told to stop."""

    def __init__(self, control: Control, metric: str | None) -> None:
        self.control = control
        self.metric = metric
        self.warning: str | None = None
        self.interrupted = False
        self.tokens = 0
        self.seconds = 0.0  # in updates alone, without evaluations
        self._updates = 0
        self._began = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.seconds += time.perf_counter() - self._began
        self._updates += 1
        if self.control.stop.signal and state.global_step < state.max_steps:
            self.interrupted = True
            control.should_save = control.should_training_stop = True

    def on_log(
        self, args: Any, state: Any, control: Any, logs: Entry | None = None, **_: Any
    ) -> None:
        if logs and "loss" in logs:
            self._tell_step(state, control, logs)
        elif logs and "eval_loss" in logs:
            self._tell_evaluation(state, logs)

    def _tell_step(self, state: Any, control: Any, logs: Entry) -> None:
        self.tokens = int(logs.get("num_tokens", 0))
        each = self.seconds / max(1, self._updates)
        self.control.on_step(
            Step(
                number=state.global_step,
                total=state.max_steps,
                loss=float(logs["loss"]),
                tokens_per_second=self.tokens / max(self.seconds, 1e-9),
                seconds_left=each * (state.max_steps - state.global_step),
            )
        )
        if Curve.of(state.log_history).diverged:
            control.should_training_stop = True
            control.should_save = control.should_evaluate = False

    def _tell_evaluation(self, state: Any, logs: Entry) -> None:
        said = f"step {state.global_step}: validation loss {logs['eval_loss']:.4f}"
        if "eval_metric" in logs:
            said += f", {self.metric} {logs['eval_metric']:.3f}"
        self.control.report(said)
        warning = Curve.of(state.log_history).find_overfitting()
        if warning and not self.warning:
            self.control.report(warning)
        self.warning = warning or self.warning
