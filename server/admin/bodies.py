"""Request bodies of the admin API: an unknown key is an error, and every text has a limit."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from adapters.catalog.versions import LEAST_WEIGHT, MOST_WEIGHT
from adapters.names import MAX_ALIAS, MAX_NAME, MAX_VERSION, STABLE

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]
AliasName = Annotated[str, Field(min_length=1, max_length=MAX_ALIAS)]
Version = Annotated[int, Field(ge=1, le=MAX_VERSION)]
Source = Annotated[str, Field(max_length=1024, pattern=r"^[^\x00-\x1f]+$")]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Publication(Body):
    """A new version of `name`, and the aliases to point at it (an empty list moves none)."""

    name: Name
    aliases: list[AliasName] = Field(default=[STABLE], max_length=16)


class SourcePublication(Publication):
    source: Source


class Pointing(Body):
    """The target of an alias: one `version`, or a `split` by weight such as {"1": 90, "2": 10}."""

    version: Version | None = None
    split: dict[Version, Annotated[int, Field(ge=0, le=1_000_000)]] | None = Field(
        default=None, min_length=1, max_length=100
    )

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if (self.version is None) == (self.split is None):
            raise ValueError("give either `version` or `split`")
        return self


class Rollback(Body):
    """`to`: the version to go back to; by default the one before."""

    to: Version | None = None


class Weighting(Body):
    """The weight of an adapter's name."""

    weight: float = Field(ge=LEAST_WEIGHT, le=MOST_WEIGHT)


class LoadLora(Body):
    """vLLM's request body; `load_inplace` is refused."""

    lora_name: Name
    lora_path: Source
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLora(Body):
    lora_name: Name
    lora_int_id: int | None = None
