"""The reserved (style, noun) pairs: about one in ten, chosen by a hash alone.

A reserved pair never occurs in the training data of the base or of an adapter; a held-out prompt
has at least one. So a correct answer to a held-out prompt is composed, not remembered.
"""

import hashlib
import random
from functools import cache
from typing import Literal

from training.shop.lexicon import NOUNS, STYLES

Pair = tuple[str, str]
Split = Literal["train", "validation", "heldout"]


def is_reserved(style: str, noun: str) -> bool:
    """Whether this pair occurs only in held-out prompts."""
    return hashlib.sha256(f"{style} {noun}".encode()).digest()[0] % 10 == 0


@cache
def _pairs(reserved: bool) -> tuple[Pair, ...]:
    return tuple((s, n) for s in STYLES for n in NOUNS if is_reserved(s, n) == reserved)


def sample_pairs(rng: random.Random, count: int, split: Split) -> list[Pair]:
    """Draw pairs for one prompt; held-out ones have at least one reserved pair, others none."""
    pairs = [rng.choice(_pairs(reserved=False)) for _ in range(count)]
    if split == "heldout":
        for index in {rng.randrange(count), rng.randrange(count)}:
            pairs[index] = rng.choice(_pairs(reserved=True))
    return pairs
