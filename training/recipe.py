"""A recipe: all that determines an adapter, read from YAML, with every problem reported at once.

Knows nothing about torch, nor whether the named files exist.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from training.data.reading import is_hub_id
from training.errors import RecipeInvalid, list_problems

Linear = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LINEARS: tuple[Linear, ...] = get_args(Linear)
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _listed(value: Any) -> Any:
    return (str(value),) if isinstance(value, str | Path) else value


Sources = Annotated[tuple[str, ...], BeforeValidator(_listed), Field(min_length=1)]


class Data(_Strict):
    """The sets: a file, a list of files or a hub's id; paths start at the recipe's folder."""

    train: Sources = Field(description="The training set.")
    validation: Sources | None = Field(
        default=None, description="Never trained on; its loss is measured at the end."
    )
    heldout: Sources | None = Field(
        default=None,
        description="For evaluating the adapter later; must share no prompt with the training set.",
    )


class Lora(_Strict):
    """The adapter's shape."""

    rank: int = Field(default=16, ge=4, le=128, description="Inner size of the two matrices.")
    alpha: int = Field(default=0, ge=0, description="Scale is alpha / rank; 0: twice the rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapter.")
    target_modules: tuple[Linear, ...] = Field(
        default=LINEARS, min_length=1, description="The linear layers that get an adapter."
    )
    bias: Literal["none"] = Field(default="none", description="Biases are not trained.")

    @property
    def scale_alpha(self) -> int:
        """Alpha with its default filled in."""
        return self.alpha or 2 * self.rank


class Optimization(_Strict):
    """How the adapter is trained."""

    learning_rate: float = Field(default=2e-4, gt=0, lt=1, description="Peak learning rate.")
    epochs: float = Field(default=3.0, gt=0, description="Passes over the data, unless max_steps.")
    max_steps: int | None = Field(
        default=None, ge=1, description="Stop after this number of updates."
    )
    batch_size: int = Field(default=8, ge=1, description="Examples per device and forward pass.")
    accumulation: int = Field(default=1, ge=1, description="Forward passes per update.")
    warmup_steps: int = Field(default=10, ge=0, description="Updates until the peak rate.")
    scheduler: Literal["cosine", "linear", "constant_with_warmup"] = Field(
        default="cosine", description="How the rate falls after the warm-up."
    )
    weight_decay: float = Field(default=0.0, ge=0, lt=1, description="AdamW's weight decay.")
    packing: bool = Field(default=False, description="Put several examples into one sequence.")
    completion_only_loss: bool = Field(default=True, description="Learn answers, not prompts.")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice to save memory."
    )
    max_length: int = Field(default=512, ge=8, description="Longest sequence, in tokens.")
    seed: int = Field(default=0, ge=0, description="Determines initial weights and data order.")


class Recipe(_Strict):
    """A recipe for one adapter."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, description="The adapter's name.")]
    base: str = Field(min_length=1, description="Model folder, or owner/name on the model hub.")
    base_name: str = Field(
        default="", description="Name under which the base is served; default: folder's name or id."
    )
    data: Data = Field(description="The data sets.")
    lora: Lora = Field(default=Lora(), description="The adapter's shape.")
    optimization: Optimization = Field(default=Optimization(), description="How to train.")
    quantization: Literal["nf4", "none"] = Field(
        default="nf4", description="Quantization of the frozen base: nf4 (QLoRA) or none (LoRA)."
    )

    def settings(self) -> dict[str, Any]:
        """All but the paths: the digests of the files stand for them."""
        return self.model_dump(mode="json", exclude={"base", "data"})


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `key=value` overrides; raises RecipeInvalid with every problem."""
    document = _read_document(path)
    problems = [problem for text in overrides if (problem := _override(document, text))]
    try:
        recipe = Recipe.model_validate(document)
    except ValidationError as error:
        problems += [_describe(detail) for detail in error.errors()]
    if problems:
        raise RecipeInvalid(f"{path}: {list_problems(problems)}", "correct the named keys")
    return _resolve_paths(recipe, path.parent)


def _read_document(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeInvalid(f"{path}: {error.strerror}", "give the path of a recipe") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        said = " ".join(str(error).split())
        raise RecipeInvalid(f"{path}: not YAML: {said}", "correct the file") from error
    if not isinstance(document, dict):
        raise RecipeInvalid(f"{path}: not a mapping of keys to values", "start with name: ...")
    return document


def _override(document: dict[str, Any], text: str) -> str | None:
    """Set one dotted key in place; returns the problem with the override, if any."""
    key, equals, value = text.partition("=")
    *parents, last = key.split(".")
    if not equals or not last:
        return f"--set {text!r}: not key=value"
    place = document
    for parent in parents:
        inner = place.setdefault(parent, {})
        if not isinstance(inner, dict):
            return f"--set {text!r}: {parent} holds no keys"
        place = inner
    try:
        place[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        place[last] = value
    return None


def _describe(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if detail["type"] == "missing":
        return f"{key}: missing"
    return f"{key} = {detail['input']!r}: {detail['msg']}"


def _resolve_paths(recipe: Recipe, folder: Path) -> Recipe:
    chosen = {
        key: tuple(_resolve_source(source, folder) for source in sources)
        for key in ("train", "validation", "heldout")
        if (sources := getattr(recipe.data, key)) is not None
    }
    beside = folder / recipe.base
    is_folder = beside.is_dir()
    name = beside.resolve().name if is_folder else recipe.base
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=chosen),
            "base": str(beside) if is_folder else recipe.base,
            "base_name": recipe.base_name or name,
        }
    )


def _resolve_source(source: str, folder: Path) -> str:
    """A path from the recipe's folder; what is no file there and looks like an id is one."""
    beside = folder / source
    return source if is_hub_id(source) and not beside.exists() else str(beside)
