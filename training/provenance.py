"""`lorry.json`: an adapter's provenance. It lies beside the weights and travels with them."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from training.base import Base
from training.qlora import Outcome
from training.recipe import Recipe

PROVENANCE: Final = "lorry.json"
PACKAGES: Final = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")


def describe_run(
    recipe: Recipe, base: Base, data: dict[str, str], outcome: Outcome
) -> dict[str, Any]:
    """The recipe, base, data, packages and results of a run."""
    return {
        "name": recipe.name,
        "base": base.facts(),
        "data": data,
        "recipe": recipe.settings(),
        "packages": {name: version(name) for name in PACKAGES},
        "compute_dtype": outcome.compute_dtype,
        "seed": recipe.optimization.seed,
        "steps": outcome.steps,
        "train_seconds": outcome.train_seconds,
        "train_loss": outcome.train_loss,
        "validation_loss": outcome.validation_loss,
        "trainable_parameters": outcome.trainable_parameters,
    }


def write_provenance(folder: Path, provenance: dict[str, Any]) -> None:
    """Write it into the adapter's folder."""
    text = json.dumps(provenance, indent=2) + "\n"
    (folder / PROVENANCE).write_text(text, encoding="utf-8")
