"""A recipe: all that determines an adapter, read from YAML, with every problem reported at once.

Knows nothing about torch, nor whether the named files exist.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from adapters.checkpoint.base import read_base
from adapters.errors import BaseUnreadable
from training.data.reading import is_hub_id
from training.errors import BaseInvalid, RecipeInvalid, list_problems

Linear = Literal[
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "gate_up_proj",
    "down_proj",
]
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
        default=None,
        description="Never trained on; decides which checkpoint is kept.",
    )
    heldout: Sources | None = Field(
        default=None,
        description="For evaluating the adapter later; must share no prompt with the training set.",
    )


class Lora(_Strict):
    """The adapter's shape."""

    rank: int = Field(default=16, ge=1, le=512, description="Inner size of the two matrices.")
    alpha: int = Field(default=0, ge=0, description="Scale is alpha / rank; 0: twice the rank.")
    rslora: bool = Field(default=False, description="Scale is alpha / sqrt(rank): rsLoRA.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapter.")
    target_modules: Annotated[tuple[Linear, ...], Field(min_length=1)] | Literal["all-linear"] = (
        Field(
            default="all-linear",
            description="The linear layers that get an adapter; all-linear: each that is served.",
        )
    )
    bias: Literal["none"] = Field(default="none", description="Biases are not trained.")

    @property
    def scale_alpha(self) -> int:
        """Alpha with its default filled in."""
        return self.alpha or 2 * self.rank

    @property
    def modules(self) -> tuple[Linear, ...]:
        """The names of the layers, in one order however they are spelled."""
        chosen = LINEARS if self.target_modules == "all-linear" else self.target_modules
        return tuple(name for name in LINEARS if name in chosen)


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
    scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = Field(
        default="cosine", description="How the rate falls after the warm-up."
    )
    weight_decay: float = Field(default=0.0, ge=0, lt=1, description="AdamW's weight decay.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Longer gradients are shortened.")
    packing: bool = Field(default=False, description="Put several examples into one sequence.")
    completion_only_loss: bool = Field(default=True, description="Learn answers, not prompts.")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations twice to save memory."
    )
    max_length: int = Field(default=512, ge=8, description="Longest sequence, in tokens.")
    seed: int = Field(default=0, ge=0, description="Determines initial weights and data order.")


class Evaluation(_Strict):
    """How the run is watched; without a validation set there is nothing to watch."""

    every: int | None = Field(
        default=None, ge=1, description="Updates between evaluations; default: ten in a run."
    )
    metric: str | None = Field(
        default=None,
        description="Decides instead of the loss: exact-match, contains, json-equal, "
        "json-schema:FILE, sql-parses or FILE.py:FUNCTION.",
    )
    examples: int = Field(
        default=64, ge=1, description="Validation prompts that are answered for the metric."
    )
    max_new_tokens: int = Field(default=160, ge=1, description="Longest of these answers.")
    patience: int | None = Field(
        default=None, ge=1, description="Stop after so many evaluations without a better one."
    )


class Preferences(_Strict):
    """Settings of `method: dpo`."""

    beta: float = Field(
        default=0.1, gt=0, description="How closely the adapter stays with the base."
    )


class Recipe(_Strict):
    """A recipe for one adapter."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, description="The adapter's name.")]
    base: str = Field(min_length=1, description="Model folder, or owner/name on the model hub.")
    base_name: str = Field(
        default="", description="Name under which the base is served; default: folder's name or id."
    )
    method: Literal["sft", "dpo"] = Field(
        default="sft", description="Imitate answers (sft), or prefer one of two (dpo)."
    )
    data: Data = Field(description="The data sets.")
    lora: Lora = Field(default=Lora(), description="The adapter's shape.")
    optimization: Optimization = Field(default=Optimization(), description="How to train.")
    evaluation: Evaluation = Field(default=Evaluation(), description="How to watch the run.")
    dpo: Preferences = Field(default=Preferences(), description="Settings of method: dpo.")
    quantization: Literal["nf4", "none"] = Field(
        default="nf4", description="Quantization of the frozen base: nf4 (QLoRA) or none (LoRA)."
    )

    @model_validator(mode="after")
    def _refuse_idle_settings(self) -> Self:
        """What would be ignored silently."""
        if self.data.validation is None and (self.evaluation.metric or self.evaluation.patience):
            raise ValueError("evaluation.metric and evaluation.patience need data.validation")
        if self.method == "dpo" and self.optimization.packing:
            raise ValueError("optimization.packing is not possible with method: dpo")
        return self

    def settings(self) -> dict[str, Any]:
        """What takes effect, however it is spelled; files are left out, their digests stand in.

        Two recipes with the same settings, base, data and metric train the same adapter.
        """
        settings = self.model_dump(mode="json", exclude={"name", "base", "base_name", "data"})
        settings["lora"] |= {"alpha": self.lora.scale_alpha, "target_modules": self.lora.modules}
        if self.optimization.max_steps is not None:
            settings["optimization"]["epochs"] = None
        if self.optimization.scheduler == "constant":
            settings["optimization"]["warmup_steps"] = 0
        if self.method == "dpo":
            for key in ("packing", "completion_only_loss"):
                del settings["optimization"][key]
        else:
            del settings["dpo"]
        if self.data.validation is None:
            del settings["evaluation"]
        elif self.evaluation.metric is None:
            del settings["evaluation"]["examples"], settings["evaluation"]["max_new_tokens"]
        else:
            settings["evaluation"]["metric"] = re.sub(r"[^:]*/", "", self.evaluation.metric)
        return settings


def check_modules(recipe: Recipe, base: Path) -> None:
    """Raise RecipeInvalid if the base lacks a named layer, so that no adapter of it is served."""
    try:
        linears = {module.rpartition(".")[2] for module in read_base(base).linears}
    except BaseUnreadable as error:
        raise BaseInvalid(error.message, error.hint) from error
    chosen = recipe.lora.target_modules
    missing = [name for name in recipe.lora.modules if name not in linears]
    if (chosen != "all-linear" and missing) or not linears:
        raise RecipeInvalid(
            f"lora.target_modules: {recipe.base_name} has no {', '.join(missing)} that is served",
            f"choose among {', '.join(sorted(linears)) or 'the layers of another base'}",
        )


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
    if not key:
        return str(detail["msg"]).removeprefix("Value error, ")
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
    metric = _resolve_metric(recipe.evaluation.metric, folder)
    beside = folder / recipe.base
    is_folder = beside.is_dir()
    name = beside.resolve().name if is_folder else recipe.base
    return recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update=chosen),
            "evaluation": recipe.evaluation.model_copy(update={"metric": metric}),
            "base": str(beside) if is_folder else recipe.base,
            "base_name": recipe.base_name or name,
        }
    )


def _resolve_metric(spec: str | None, folder: Path) -> str | None:
    """A metric's text (training/evaluation/metrics.py) with the path of its file, if it has one."""
    kind, _, rest = (spec or "").partition(":")
    if kind == "json-schema":
        return f"{kind}:{folder / rest}"
    return f"{folder / kind}:{rest}" if kind.endswith(".py") else spec


def _resolve_source(source: str, folder: Path) -> str:
    """A path from the recipe's folder; what is no file there and looks like an id is one."""
    beside = folder / source
    return source if is_hub_id(source) and not beside.exists() else str(beside)
