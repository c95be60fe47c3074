"""Compares a request's answer in a mixed batch with its answer alone.

Greedy answers may part where two tokens are nearly level: the same sum in another order rounds
differently in bfloat16. A parting from a token to one that was level with it counts as `level`, any
other parting as `wrong`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Nats: three times what rounding to bfloat16 moves the bench model's logits by (0.03, against the
# same weights in float32); the best token leads by 0.2 to 0.4 on average.
LEVEL = 0.1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Numbers of answers: equal to the last token, parting at a level token, or wrong."""

    equal: int = 0
    level: int = 0
    wrong: int = 0

    @property
    def compared(self) -> int:
        return self.equal + self.level + self.wrong

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(self.equal + other.equal, self.level + other.level, self.wrong + other.wrong)


def level_with(token: int, logprobs: Mapping[int, float]) -> list[int]:
    """The other tokens less than LEVEL behind this one."""
    return [
        other
        for other, logprob in logprobs.items()
        if other != token and logprobs[token] - logprob < LEVEL
    ]


def judge(mixed: Sequence[int], alone: Sequence[int], rivals: Sequence[Sequence[int]]) -> Verdict:
    """Compare one request's two answers; `rivals` are the level tokens of the answer alone."""
    if len(mixed) != len(alone):
        return Verdict(wrong=1)
    for one, other, level in zip(mixed, alone, rivals, strict=True):
        if one != other:  # the rest differs legitimately
            return Verdict(level=1) if one in level else Verdict(wrong=1)
    return Verdict(equal=1)
