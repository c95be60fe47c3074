"""JSON values that parsers take badly, and the bytes of a body that holds them."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from tests.fuzz.case import sizes

MOST_BYTES = 16 * 1024 * 1024  # of a body
_PIECES = (
    "a",
    "lamp ",
    " ",
    "\n",
    "é",
    "😀",
    "\u2028",
    "\0",
    "\ufeff",
    "<|im_end|>",
    "(",
    "{{",
    "\\",
)


class Raw(str):
    """JSON text that stands for itself: what no Python value gives."""


_RAW_SCALARS = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "-0",
    "1" * 400,
    "1" * 5000,
    "0.1e-400",
    "1E2",
    "01",
    str(2**63),
    str(2**64),
    str(-(2**63) - 1),
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\u0000"',
    '"\x01"',
    '"\\u2028"',
    '"\\x"',
    "'a'",
    "tru",
    "undefined",
    '{"a":1,"a":2}',
    "[1,]",
    "",
)


def encode(value: Any) -> bytes:
    raws: list[str] = []
    text = json.dumps(_marked(value, raws))
    text = re.sub(r'"@raw(\d+)@"', lambda found: raws[int(found.group(1))], text)
    return text.encode("utf-8", "surrogatepass")


def _marked(value: Any, raws: list[str]) -> Any:
    if isinstance(value, Raw):
        raws.append(value)
        return f"@raw{len(raws) - 1}@"
    if isinstance(value, dict):
        return {key: _marked(each, raws) for key, each in value.items()}
    if isinstance(value, list) and len(value) < 1000:
        return [_marked(each, raws) for each in value]
    return value


def scalar(rng: random.Random) -> Any:
    return rng.choice(
        (
            None,
            True,
            False,
            0,
            1,
            -1,
            2**31,
            2**63,
            -5.5,
            1e300,
            "",
            "x",
            [],
            {},
            [[]],
            [None],
            {"": 0},
            Raw(rng.choice(_RAW_SCALARS)),
            Raw(rng.choice(_RAW_SCALARS)),
        )
    )


def text(rng: random.Random) -> str:
    piece = rng.choice(_PIECES)
    return piece * max(sizes(rng, MOST_BYTES / 2) // len(json.dumps(piece)), 1)


def nested(rng: random.Random) -> Raw:
    depth = sizes(rng, 200_000)
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}"), ('[{"type":"text","text":', "}]")))
    return Raw(opening * depth + "1" + closing * (depth if rng.random() < 0.8 else 0))
