"""Compares the runs of a sweep on the validation set: the best, and what is within noise of it.

The order is by the recipe's metric if it has one, else by the loss. A difference is noise unless
the interval of a paired bootstrap over the validation examples excludes zero. That is the noise of
the examples: how much a run depends on its seed is seen by sweeping over the seed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isfinite
from statistics import fmean
from typing import Final

from adapters.errors import AdapterError
from training.errors import RunFailed, TrainingError
from training.evaluation.bootstrap import Difference, paired_difference
from training.report.curves import metric_name
from training.run import VALIDATION, Trained
from training.sweep.grid import Setting

LOSS: Final = "loss"
_WORDS: Final = {
    Fraction(1, 2): "half the size",
    Fraction(1, 3): "a third of the size",
    Fraction(1, 4): "a quarter of the size",
    Fraction(1, 8): "an eighth of the size",
}


@dataclass(frozen=True, slots=True)
class Attempt:
    """A setting and its run, or the error that ended it."""

    setting: Setting
    trained: Trained | None = None
    error: TrainingError | AdapterError | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A run beside the best one.

    Attributes:
        trained: None if it failed; then all but `setting` and `error` say nothing.
        score: mean over the validation examples.
        behind: how much worse than the best, at least 0 in the mean; None for the best itself.
    """

    setting: Setting
    trained: Trained | None = None
    error: str | None = None
    score: float | None = None
    behind: Difference | None = None

    @property
    def parameters(self) -> int:
        return int(self.trained.provenance["trainable_parameters"]) if self.trained else 0

    @property
    def within_noise(self) -> bool:
        """Whether it is the best, or within noise of the best."""
        return self.score is not None and (self.behind is None or not self.behind.exceeds_noise)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The rows of a sweep: the best first, the failed ones last."""

    measure: str  # the metric's name, or `loss`
    examples: int  # of validation that were compared
    rows: list[Row]

    @property
    def best(self) -> Row:
        return self.rows[0]

    @property
    def runner_up(self) -> Row | None:
        return next((row for row in self.rows[1:] if row.score is not None), None)

    @property
    def cheapest(self) -> Row:
        """The smallest adapter that is within noise of the best."""
        return min((row for row in self.rows if row.within_noise), key=lambda row: row.parameters)

    @property
    def higher_is_better(self) -> bool:
        return self.measure != LOSS


def compare(attempts: Sequence[Attempt]) -> Comparison:
    """Order the runs; raises RunFailed if none of them succeeded."""
    scores = [_read_scores(each) for each in attempts]
    first = next((each for each in scores if not isinstance(each, str)), None)
    if first is None:
        raise RunFailed("no run of the sweep succeeded", "see the lines above")
    measure, examples = first.measure, len(first.values)
    judged, failed = [], []
    for attempt, found in zip(attempts, scores, strict=True):
        if isinstance(found, str):
            failed.append(Row(attempt.setting, None, found))
        elif (found.measure, len(found.values)) != (measure, examples):
            failed.append(Row(attempt.setting, None, f"judged by {found}, others by {first}"))
        else:
            judged.append((attempt, found.values))
    return Comparison(measure, examples, _rank(judged, measure) + failed)


@dataclass(frozen=True, slots=True)
class _Scores:
    measure: str
    values: list[float]

    def __str__(self) -> str:
        return f"{self.measure} of {len(self.values)} examples"


def _read_scores(attempt: Attempt) -> _Scores | str:
    """A run's scores, or why it has none."""
    if attempt.trained is None:
        return attempt.error.message if attempt.error else "failed"
    try:
        document = json.loads((attempt.trained.folder / VALIDATION).read_text(encoding="utf-8"))
        metric = metric_name(attempt.trained.provenance)
        values = [float(each) for each in document["metric" if metric else "loss"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        return f"{VALIDATION} is unreadable ({error}): remove the folder to train it again"
    if not values or not all(map(isfinite, values)):
        return "diverged: its validation scores are not finite"
    return _Scores(metric or LOSS, values)


def _rank(judged: Sequence[tuple[Attempt, list[float]]], measure: str) -> list[Row]:
    """The best first; of equal ones the smaller adapter."""
    sign = -1.0 if measure == LOSS else 1.0

    def order(each: tuple[Attempt, list[float]]) -> tuple[float, int]:
        attempt, values = each
        return -sign * fmean(values), Row(attempt.setting, attempt.trained).parameters

    ordered = sorted(judged, key=order)
    best = [sign * value for value in ordered[0][1]]
    rows: list[Row] = []
    for attempt, values in ordered:
        behind = paired_difference(best, [sign * value for value in values]) if rows else None
        rows.append(Row(attempt.setting, attempt.trained, None, fmean(values), behind))
    return rows


def verdict(comparison: Comparison) -> list[str]:
    """What follows from the comparison, in sentences."""
    best, second, cheapest = comparison.best, comparison.runner_up, comparison.cheapest
    said = [
        f"Best: {best.setting.label}, {comparison.measure} {_number(best.score)} on validation."
    ]
    if second and second.behind:
        behind = f"{second.setting.label} is {_number(second.behind.mean)} worse"
        interval = f"95 % interval {_number(second.behind.low)} to {_number(second.behind.high)}"
        tells = "more than noise" if second.behind.exceeds_noise else "within noise"
        said.append(f"Second: {behind} ({interval}, {comparison.examples} examples): {tells}.")
    if cheapest.parameters < best.parameters:
        size = _size_words(cheapest.parameters, best.parameters)
        said.append(f"{cheapest.setting.label} is within noise of the best and {size}.")
    return said


def _size_words(parameters: int, best: int) -> str:
    share = parameters / best
    for fraction, words in _WORDS.items():
        if abs(share - fraction) < 0.01:
            return words
    return f"{share:.0%} of the size"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
