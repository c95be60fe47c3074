"""Request bodies of the admin API: an unknown key is an error, and every text has a limit."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal, Self

import msgspec
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from adapters.catalog.evaluations import MAX_COMPARISONS, Evaluation
from adapters.catalog.keys import LONGEST_OVERLAP
from adapters.catalog.versions import LEAST_WEIGHT, MOST_WEIGHT
from adapters.keys.record import (
    MAX_COUNT,
    MAX_GLOBS,
    MAX_WEIGHT,
    SCOPES,
    Key,
    Period,
    RateLimits,
    Scope,
)
from adapters.names import MAX_ALIAS, MAX_METRIC, MAX_NAME, MAX_VERSION, STABLE
from adapters.sums import MAX_SUM

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
AliasName = Annotated[str, Field(min_length=1, max_length=MAX_ALIAS)]
Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Metric = Annotated[str, Field(min_length=1, max_length=MAX_METRIC)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]
Source = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00-\x1f]+$")]


KeyName = Annotated[str, Field(min_length=1, max_length=64)]
Glob = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]

MOST_COUNTED = 1_000_000_000


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Publication(Body):
    """A new version of `name`, and the aliases to point at it (an empty list moves none)."""

    name: Name
    aliases: list[AliasName] = Field(default=[STABLE], max_length=16)


class SourcePublication(Publication):
    source: Source


class Composition(Body):
    """The sum that becomes the next version of a name, and the aliases to point at it."""

    sum: Annotated[str, Field(min_length=1, max_length=MAX_SUM)]
    aliases: list[AliasName] = Field(default=[STABLE], max_length=16)


class Pointing(Body):
    """The target of an alias: one `version`, or a `split` by weight such as {"1": 90, "2": 10}.

    `gate` names the metric by which it must be better; with `force` it moves all the same.
    """

    version: Version | None = None
    split: dict[Version, Annotated[int, Field(ge=0, le=1_000_000)]] | None = Field(
        default=None, min_length=1, max_length=100
    )
    gate: Metric | None = None
    force: bool = False

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.version is None) == (self.split is None):
            raise ValueError("give either `version` or `split`")
        return self


class Rollback(Body):
    """`to`: the version to go back to; by default the one before."""

    to: Version | None = None


class FigureBody(Body):
    mean: float
    low: float
    high: float


class ComparisonBody(Body):
    against: Annotated[str, Field(min_length=1, max_length=MAX_NAME + 12)]
    score: FigureBody
    difference: FigureBody
    exceeds_noise: bool


class EvaluationBody(Body):
    """Figures of a version, as `lorry evaluate` sends them; the first comparison is the base's."""

    metric: Metric
    metric_digest: Digest | None = None
    data_digest: Digest
    examples: Annotated[int, Field(ge=1, le=MOST_COUNTED)]
    score: FigureBody
    comparisons: Annotated[list[ComparisonBody], Field(min_length=1, max_length=MAX_COMPARISONS)]
    by: Literal["offline", "server"]
    max_tokens: Annotated[int, Field(ge=1, le=MOST_COUNTED)]
    median_tokens: Annotated[float, Field(ge=0, le=MOST_COUNTED)]
    cut: Annotated[int, Field(ge=0, le=MOST_COUNTED)]

    def evaluation(self) -> Evaluation:
        return msgspec.convert(self.model_dump(), Evaluation)


class Weighting(Body):
    """The weight of an adapter's name."""

    weight: float = Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)


class Gating(Body):
    """The metric of an adapter's gate; null for none."""

    metric: Metric | None


class BudgetBody(Body):
    """Tokens that a key may use in each calendar day or month of UTC."""

    tokens: Count
    period: Period


class LimitsBody(Body):
    """What a key may use; null is without a limit."""

    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    in_flight: Count | None = None
    budget: BudgetBody | None = None


class AdapterLimits(LimitsBody):
    """What an adapter's calls may use; what is left out has no limit."""

    @model_validator(mode="after")
    def _check_some(self) -> Self:
        if not any(self.model_dump().values()):
            raise ValueError("give at least one limit; DELETE takes them away")
        return self

    def limits(self) -> RateLimits:
        return msgspec.convert(self.model_dump(), RateLimits)


class NewKey(Body):
    """An API key to make; `adapters` are patterns of names, `expires` needs a time zone."""

    name: KeyName
    scopes: list[Scope] = Field(default=["inference"], min_length=1, max_length=len(SCOPES))
    adapters: list[Glob] = Field(default=[], max_length=MAX_GLOBS)
    base: bool = False
    weight: float = Field(default=1.0, gt=0, le=MAX_WEIGHT)
    expires: AwareDatetime | None = None
    limits: LimitsBody = LimitsBody()

    def key(self) -> Key:
        """It, without what the catalog gives it."""
        given = self.model_dump() | {"id": "", "prefix": "", "created": datetime.now(UTC)}
        return msgspec.convert(given, Key)


class Rotation(Body):
    """How long the secrets before the new one are still good."""

    overlap_seconds: float = Field(default=0.0, ge=0, le=LONGEST_OVERLAP.total_seconds())


class LoadLora(Body):
    """vLLM's request body; `load_inplace` is refused."""

    lora_name: Name
    lora_path: Source
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLora(Body):
    lora_name: Name
    lora_int_id: int | None = None
