"""The grid of a sweep: `--over KEY=VALUE,VALUE`, and the recipe of each combination.

Every problem is found here, before anything is trained.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Final

import yaml

from training.errors import RecipeInvalid, list_problems
from training.recipe import Recipe, load_recipe

MOST_RUNS: Final = 32  # without consent

# Settings are compared by these, and the winner is published for that base under that name.
COMMON: Final = (
    *("name", "base", "base_name", "method", "data.validation"),
    *("evaluation.metric", "evaluation.examples", "evaluation.max_new_tokens"),
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One combination: its values by dotted key, as YAML, and the recipe with them."""

    values: dict[str, str]
    recipe: Recipe

    @property
    def label(self) -> str:
        """Such as `rank 8, learning_rate 1e-4`."""
        return ", ".join(f"{short(key)} {text}" for key, text in self.values.items())

    @property
    def overrides(self) -> list[str]:
        """The values as arguments of `--set`."""
        return [f"{key}={text}" for key, text in self.values.items()]


def short(key: str) -> str:
    """The last part of a dotted key."""
    return key.rpartition(".")[2]


def read_grid(
    path: Path, over: Sequence[str], overrides: Sequence[str] = (), *, consent: bool = False
) -> list[Setting]:
    """The settings of a sweep, in the order of their values; the last key varies fastest.

    Args:
        over: each `KEY=VALUE,VALUE`, the values as YAML.
        overrides: `KEY=VALUE`, for all settings.
        consent: to more than MOST_RUNS runs.

    Raises:
        RecipeInvalid: names every problem of the recipe and of the values.
    """
    axes = _read_axes(over)
    runs = math.prod(len(texts) for texts in axes.values())
    if runs > MOST_RUNS and not consent:
        raise RecipeInvalid(
            f"--over: {runs} combinations, each a training run, are more than {MOST_RUNS}",
            "sweep over fewer values, or agree with --yes",
        )
    load_recipe(path, overrides)  # or the recipe's own problems would be those of each value
    alone = [{key: text} for key, texts in axes.items() for text in texts]
    _load_each(path, overrides, alone)
    grid = [dict(zip(axes, texts, strict=True)) for texts in product(*axes.values())]
    settings = _load_each(path, overrides, grid)
    _check_comparable(path, settings)
    return settings


def _read_axes(over: Sequence[str]) -> dict[str, list[str]]:
    axes: dict[str, list[str]] = {}
    problems = []
    for argument in over:
        key, _, given = argument.partition("=")
        texts = _read_values(given)
        if not key or not texts:
            problems.append(f"--over {argument!r}: not KEY=VALUE,VALUE")
        elif key in axes:
            problems.append(f"--over {key}: given twice")
        elif len({*texts}) < len(texts):
            problems.append(f"--over {argument}: a value is given twice")
        else:
            axes[key] = texts
    if problems:
        raise RecipeInvalid(list_problems(problems), "write --over lora.rank=8,16,32")
    return axes


def _read_values(given: str) -> list[str]:
    """The values as YAML, each on one line; none if they are not YAML."""
    try:
        values = yaml.safe_load(f"[{given}]")
    except yaml.YAMLError:
        return []
    if not isinstance(values, list):
        return []
    return [_as_yaml(value) for value in values]


def _as_yaml(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=math.inf)
    return text.removesuffix("...\n").strip()


def _load_each(
    path: Path, overrides: Sequence[str], grid: Iterable[dict[str, str]]
) -> list[Setting]:
    settings = []
    problems: dict[str, None] = {}  # ordered, and each one once
    for values in grid:
        try:
            chosen = [f"{key}={text}" for key, text in values.items()]
            settings.append(Setting(values, load_recipe(path, [*overrides, *chosen])))
        except RecipeInvalid as error:
            problems[error.message.removeprefix(f"{path}: ")] = None
    if problems:
        raise RecipeInvalid(f"{path}: {list_problems([*problems])}", "correct the named keys")
    return settings


def _check_comparable(path: Path, settings: Sequence[Setting]) -> None:
    recipes = [setting.recipe for setting in settings]
    if any(recipe.data.validation is None for recipe in recipes):
        raise RecipeInvalid(
            f"{path}: data.validation: missing, and settings are compared on it",
            "name a validation set that shares no prompt with the training set",
        )
    if any(recipe.method == "dpo" and not recipe.evaluation.metric for recipe in recipes):
        # Which of two answers is preferred is not seen in how likely the better one is.
        raise RecipeInvalid(
            f"{path}: evaluation.metric: missing, and losses of dpo can't be compared",
            "name a metric by which answers are judged",
        )
    dumps = [recipe.model_dump(mode="json") for recipe in recipes]
    varied = [key for key in COMMON if any(_at(each, key) != _at(dumps[0], key) for each in dumps)]
    if varied:
        raise RecipeInvalid(
            f"--over: settings with another {', '.join(varied)} can't be compared",
            "sweep over how the adapter is trained",
        )


def _at(document: Any, key: str) -> Any:
    for part in key.split("."):
        document = document.get(part) if isinstance(document, dict) else None
    return document
