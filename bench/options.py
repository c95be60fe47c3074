"""Command-line values that several of the bench's programs take."""

from __future__ import annotations

import argparse


def at_least_one(text: str) -> int:
    """As many rounds, for one: there is no median of none. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)
