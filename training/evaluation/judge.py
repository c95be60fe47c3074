"""Scores of answers to the same examples, and what is concluded from them.

Knows nothing of who computed the answers, nor of how a conclusion is stored.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from adapters.catalog.evaluations import BASE, Comparison, Evaluation, Figure
from training.data.problems import name_places
from training.evaluation.answers import Answer
from training.evaluation.bootstrap import Interval, paired_difference, score_interval
from training.evaluation.heldout import HeldOut
from training.evaluation.metrics import Metric, score_answers

SHOWN_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Side:
    """One contestant, `base` or NAME@VERSION: its answers, their scores and the mean's interval."""

    label: str
    answers: list[Answer]
    scores: list[float]
    score: Interval

    @property
    def median_tokens(self) -> float:
        return float(median(answer.tokens for answer in self.answers))

    @property
    def cut(self) -> int:
        """How many answers the limit of tokens ended."""
        return sum(not answer.ended for answer in self.answers)


@dataclass(frozen=True, slots=True)
class Judged:
    """All contestants on one set by one metric, the base first."""

    metric: Metric
    heldout: HeldOut
    sides: list[Side]
    by: str
    max_tokens: int

    def evaluation(self, side: Side) -> Evaluation:
        """What the catalog records of one side: compared with each other, with the base first."""
        return Evaluation(
            metric=self.metric.name,
            metric_digest=self.metric.digest,
            data_digest=self.heldout.digest,
            examples=len(self.heldout.examples),
            score=_figure(side.score),
            comparisons=tuple(_compare(side, other) for other in self.sides if other is not side),
            by=self.by,
            max_tokens=self.max_tokens,
            median_tokens=side.median_tokens,
            cut=side.cut,
        )

    def warnings(self) -> list[str]:
        """What is worth saying about the figures."""
        return self.heldout.warnings() + [
            f"warning: {side.cut} of {len(side.answers)} answers of {side.label} were cut at "
            f"{self.max_tokens} tokens: allow more with --max-tokens"
            for side in self.sides
            if side.cut and side.label != BASE
        ]

    def wrong(self, side: Side, count: int) -> Iterator[dict[str, Any]]:
        """The first answers with less than the full score."""
        shown = 0
        for answer, score, expected, place in zip(
            side.answers, side.scores, self.heldout.expected, self.heldout.places, strict=True
        ):
            if score < 1 and shown < count:
                shown += 1
                yield {
                    "where": name_places([place]),
                    "score": score,
                    "expected": _shorten(expected),
                    "answer": _shorten(answer.text),
                }


def judge(
    metric: Metric,
    heldout: HeldOut,
    answers: Mapping[str, list[Answer]],
    *,
    by: str,
    max_tokens: int,
) -> Judged:
    """Score the answers of each contestant, by label, the base first; raises MetricFailed."""
    sides = []
    for label, found in answers.items():
        texts = [answer.text for answer in found]
        scores = score_answers(metric, texts, heldout.expected, heldout.places)
        sides.append(Side(label, found, scores, score_interval(scores)))
    return Judged(metric, heldout, sides, by, max_tokens)


def _compare(side: Side, other: Side) -> Comparison:
    found = paired_difference(side.scores, other.scores)
    return Comparison(other.label, _figure(other.score), _figure(found), found.exceeds_noise)


def _figure(found: Any) -> Figure:
    """An Interval or a Difference, without the noise of the last binary digits."""
    return Figure(round(found.mean, 6), round(found.low, 6), round(found.high, 6))


def _shorten(text: str) -> str:
    return text if len(text) <= SHOWN_TEXT else f"{text[: SHOWN_TEXT - 3]}..."
