"""How many tokens a prompt or an answer has."""

from __future__ import annotations

import math
import random
from typing import assert_never

from loadtest.plan.traffic import Length, LogNormal, Uniform


def draw(length: Length, dice: random.Random) -> int:
    """At least 1, at most the length's `most`; both ends of `uniform` are included."""
    match length:
        case int():
            return length
        case Uniform():
            return dice.randint(length.least, length.most)
        case LogNormal():
            return _draw_lognormal(length, dice)
        case _:
            assert_never(length)


def _draw_lognormal(length: LogNormal, dice: random.Random) -> int:
    logarithm = dice.normalvariate(math.log(length.median), length.sigma)
    # Cut off before exp, which fails on what is too large for a float.
    tokens = round(math.exp(min(logarithm, math.log(length.most))))
    return min(max(tokens, 1), length.most)
