"""Strict JSON for untrusted files: one object in UTF-8, each key once, finite numbers.

Two readers may take different values of a repeated key, and not every database can hold a NaN.
"""

import json
import math
from collections import Counter
from typing import Any


class RepeatedKey(ValueError):
    """An object has a key twice; carries the key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse one object; raises ValueError, as RepeatedKey where a key is repeated."""
    try:
        value = json.loads(
            raw.decode("utf-8"),
            parse_constant=_refuse_constant,
            parse_float=_parse_finite,
            object_pairs_hook=_unique,
        )
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _parse_finite(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number is too large")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise RepeatedKey(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return found
