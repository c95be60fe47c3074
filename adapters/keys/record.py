"""What a key is: its scopes, the adapters that it may use, its share and its limits."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import translate
from functools import lru_cache
from typing import Any, Literal, get_args

import msgspec

from adapters.errors import KeyInvalid, quote

Scope = Literal["inference", "admin", "metrics"]
Period = Literal["day", "month"]
Status = Literal["active", "blocked", "expired", "revoked"]

SCOPES: tuple[Scope, ...] = get_args(Scope)
PERIODS: tuple[Period, ...] = get_args(Period)
MAX_GLOBS = 100
MAX_WEIGHT = 1000.0
MAX_COUNT = 10**15  # of tokens and requests: exact as a float, and in a database's integer
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_GLOB = re.compile(r"[A-Za-z0-9._*?-]{1,128}")


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens that a key may use in each calendar day or month of UTC."""

    tokens: int
    period: Period


@dataclass(frozen=True, slots=True)
class RateLimits:
    """What a key may use; None is without a limit. `in_flight`: calls at once."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    in_flight: int | None = None
    budget: Budget | None = None


@dataclass(frozen=True, slots=True)
class Key:
    """A caller. `id` is the same for its life, whatever its secrets are; `prefix` is the beginning
    of its newest secret. Of adapters it may use those whose name matches one of `adapters` (`*` and
    `?`), and with `base` the base. `weight` is its share of the engine beside other keys."""

    id: str
    name: str
    prefix: str
    scopes: frozenset[Scope]
    adapters: tuple[str, ...]
    base: bool
    weight: float
    created: datetime
    expires: datetime | None = None
    blocked: bool = False
    revoked: datetime | None = None
    limits: RateLimits = field(default_factory=RateLimits)

    def may_use(self, name: str | None) -> bool:
        """Whether it may use the adapter of this name; None is the base."""
        return self.base if name is None else matcher(self.adapters)(name)

    def status(self, now: datetime | None = None) -> Status:
        """Whether it is in force; `now` must know its time zone."""
        if self.revoked is not None:
            return "revoked"
        if self.expires is not None and self.expires <= (now or datetime.now(UTC)):
            return "expired"
        return "blocked" if self.blocked else "active"

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document; no secret is among them."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        said = {"scopes": sorted(self.scopes), "adapters": list(self.adapters)}
        return plain | said | {"status": self.status()}


@lru_cache(maxsize=4096)
def matcher(globs: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a name matches one of the globs."""
    if not globs:
        return lambda _: False
    pattern = re.compile("|".join(translate(glob) for glob in globs))
    return lambda name: pattern.fullmatch(name) is not None


def check_name(name: str) -> str:
    """Raises KeyInvalid."""
    if not _NAME.fullmatch(name):
        raise KeyInvalid(
            f"{quote(name)} cannot name a key",
            "take 1 to 64 letters, digits, dots, dashes and underscores, the first of them a"
            " letter or digit",
        )
    return name


def check_key(key: Key) -> Key:
    """Raises KeyInvalid for what no key can have."""
    check_name(key.name)
    if not key.scopes or not key.scopes <= set(SCOPES):
        raise KeyInvalid(
            f"{', '.join(map(quote, sorted(key.scopes))) or 'nothing'} is no scope of a key",
            f"its scopes are one or more of {', '.join(SCOPES)}",
        )
    if len(key.adapters) > MAX_GLOBS:
        raise KeyInvalid(
            f"{len(key.adapters)} patterns of adapters are more than {MAX_GLOBS}",
            "use fewer: `*` matches any letters",
        )
    for glob in key.adapters:
        if not _GLOB.fullmatch(glob):
            raise KeyInvalid(
                f"{quote(glob)} is no pattern of adapters' names",
                "write a name, in which * is any letters and ? is one, such as 'orders-*'",
            )
    if not (math.isfinite(key.weight) and 0 < key.weight <= MAX_WEIGHT):
        raise KeyInvalid(
            f"{key.weight:g} cannot be the weight of a key",
            f"it is above 0 and at most {MAX_WEIGHT:g}; 1 is usual",
        )
    _check_limits(key.limits)
    return key


def _check_limits(limits: RateLimits) -> None:
    counts = {
        "requests a minute": limits.requests_per_minute,
        "tokens a minute": limits.tokens_per_minute,
        "calls in flight": limits.in_flight,
        "tokens of its budget": limits.budget.tokens if limits.budget else None,
    }
    for what, count in counts.items():
        if count is not None and not 1 <= count <= MAX_COUNT:
            raise KeyInvalid(
                f"{count} cannot be the limit of a key's {what}",
                f"a limit is at least 1 and at most {MAX_COUNT}; leave it out for none",
            )
    if limits.budget and limits.budget.period not in PERIODS:
        raise KeyInvalid(
            f"{quote(limits.budget.period)} is no period of a budget",
            f"it is one of {', '.join(PERIODS)}",
        )
