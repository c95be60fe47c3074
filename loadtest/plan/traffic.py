"""The traffic part of a scenario: lengths of calls, choice of adapters, arrival times."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=100_000)]  # calls per second
MOST_TOKENS = 1_000_000  # of one prompt or answer
Tokens = Annotated[int, Field(ge=1, le=MOST_TOKENS)]
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


# ---- lengths in tokens


class Uniform(Strict):
    kind: Literal["uniform"]
    least: Tokens
    most: Tokens

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if self.least > self.most:
            raise ValueError("`least` is above `most`")
        return self


class LogNormal(Strict):
    kind: Literal["lognormal"]
    median: float = Field(gt=0)
    sigma: float = Field(gt=0, le=4)
    most: Tokens


def _kind_of_length(value: Any) -> Any:
    """The discriminator, so that errors of a length name only its own kind."""
    if isinstance(value, dict):
        return value.get("kind")
    return getattr(value, "kind", "number")


Length = Annotated[
    Annotated[Tokens, Tag("number")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogNormal, Tag("lognormal")],
    Discriminator(
        _kind_of_length,
        custom_error_type="length",
        custom_error_message="Give a number, or a `kind`: uniform or lognormal",
    ),
]


# ---- choice of adapters


class Evenly(Strict):
    kind: Literal["uniform"]


class PowerLaw(Strict):
    """S-LoRA's: index = floor(power(alpha) x n); a smaller alpha is more skewed."""

    kind: Literal["power-law"]
    alpha: float = Field(gt=0, le=10)


class Zipf(Strict):
    """The k-th adapter has weight 1 / k^exponent."""

    kind: Literal["zipf"]
    exponent: float = Field(ge=0, le=10)


class HotSet(Strict):
    """`hot` adapters get `share` of the calls; the set moves on by one every `every` calls."""

    kind: Literal["hot-set"]
    hot: int = Field(ge=1)
    share: Share
    every: int = Field(default=0, ge=0, description="0: the set stays")


class InTurn(Strict):
    """Round robin: with more adapters than places each call needs a cold one."""

    kind: Literal["in-turn"]


Popularity = Annotated[
    Evenly | PowerLaw | Zipf | HotSet | InTurn,
    Field(discriminator="kind"),
]


class Adapters(Strict):
    """A slice of the run's adapters, numbered in the order of their names."""

    first: int = Field(default=0, ge=0)
    count: int = Field(ge=1)
    popularity: Popularity = Evenly(kind="uniform")


class Stream(Strict):
    """One kind of calls. Without `adapters` all go to the base."""

    adapters: Adapters | None = None
    base_share: Share = 0.0
    endpoint: Literal["completions", "chat"] = "completions"
    prompt_tokens: Length = 64
    output_tokens: Length = 16
    streaming: Share = 1.0
    structured: Share = Field(default=0.0, description="share of calls with a JSON schema")
    hang_up: Share = Field(default=0.0, description="share of streamed calls that the client ends")
    callers: int | None = Field(
        default=None,
        ge=1,
        le=100_000,
        description="distinct callers: call n is of `user` STREAM-(n mod callers); None: no `user`",
    )
    ignore_eos: bool = Field(default=True, description="vLLM's: answers have the requested length")


# ---- arrivals


class Poisson(Strict):
    kind: Literal["poisson"]
    rate: Rate


class Gamma(Strict):
    """Inter-arrival times of gamma(1/cv^2, cv^2/rate), as in S-LoRA; cv 1 is Poisson."""

    kind: Literal["gamma"]
    rate: Rate
    cv: float = Field(ge=0.01, le=16)


class Steady(Strict):
    kind: Literal["constant"]
    rate: Rate


class Ramp(Strict):
    """Poisson with a rate that changes linearly from `start` to `end`."""

    kind: Literal["ramp"]
    start: Rate
    end: Rate


class Steps(Strict):
    """Poisson with these rates, each for an equal part of the phase."""

    kind: Literal["steps"]
    rates: list[Rate] = Field(min_length=1, max_length=1000)


class Trace(Strict):
    """Replays JSON lines: `at` (seconds), and optionally tokens and adapter of the call."""

    kind: Literal["trace"]
    file: Path = Field(description="relative to the scenario's folder")
    speed: float = Field(default=1.0, gt=0)

    @field_validator("file")
    @classmethod
    def _make_absolute(cls, file: Path, info: ValidationInfo) -> Path:
        folder: Path = (info.context or {}).get("folder", Path())
        return folder / file


class Closed(Strict):
    """A number of callers, each of which calls again as soon as its last call has ended.

    Of n callers, caller c makes the stream's calls c, c + n, c + 2n ...: with adapters in turn, and
    n a multiple of their number, each caller stays with one adapter.
    """

    kind: Literal["closed"]
    concurrency: int = Field(ge=1, le=100_000)


Arrival = Annotated[
    Poisson | Gamma | Steady | Ramp | Steps | Trace | Closed,
    Field(discriminator="kind"),
]
