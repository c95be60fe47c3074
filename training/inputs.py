"""What determines a run: the recipe, the base, the sets and the metric, read and checked.

All of it is checked before the base is loaded.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from training.base import Base, find_base
from training.data.sets import DataSet, read_set, refuse_leaks
from training.data.tokens import Encoded, Tokenizer, encode_set, load_tokenizer, require_encoded
from training.evaluation.metrics import Metric, find_metric, score_answers
from training.progress import Report
from training.recipe import Recipe, check_modules

if TYPE_CHECKING:
    from training.loop import Sets

SETS: Final = ("train", "validation", "heldout")
LEARNT: Final = SETS[:2]


@dataclass(frozen=True, slots=True)
class Inputs:
    """A recipe and what it names."""

    recipe: Recipe
    base: Base
    sets: dict[str, DataSet]
    metric: Metric | None

    def digest(self) -> str:
        """Two runs with one digest train the same adapter; names and held-out data take no part."""
        decided_by = {
            "recipe": self.recipe.settings(),
            "base": [
                self.base.config_digest,
                self.base.weights_digest,
                self.base.tokenizer_digest,
            ],
            "data": {name: self.sets[name].digest() for name in LEARNT if name in self.sets},
            "metric": self.metric and [self.metric.name, self.metric.digest],
        }
        return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()


def read_inputs(recipe: Recipe, report: Report) -> Inputs:
    """Read and check what a recipe names; raises an InputError."""
    chosen = {name: found for name in SETS if (found := getattr(recipe.data, name)) is not None}
    sets = {name: read_set(sources, recipe.method) for name, sources in chosen.items()}
    for name in sets.keys() - {"train"}:
        refuse_leaks(sets["train"], sets[name])
    for warning in sets["train"].warnings():
        report(warning)
    spec = recipe.evaluation.metric
    metric = find_metric(spec, Path()) if spec and "validation" in sets else None
    base = find_base(recipe.base, recipe.base_name, report)
    check_modules(recipe, base.folder)
    return Inputs(recipe, base, sets, metric)


def encode_inputs(inputs: Inputs, report: Report) -> tuple["Sets", dict[str, Encoded]]:
    """The sequences of what is trained on and of what is validated; raises DataInvalid."""
    from training.loop import Sets

    base, chosen = inputs.base, inputs.recipe.optimization
    tokenizer = load_tokenizer(base.folder, base.name)
    encoded: dict[str, Encoded] = {
        name: encode_set(
            inputs.sets[name],
            tokenizer,
            chosen.max_length,
            completion_only=chosen.completion_only_loss,
        )
        for name in LEARNT
        if name in inputs.sets
    }
    for name, found in encoded.items():
        require_encoded(found)
        for warning in found.warnings(tokenizer):
            report(warning if name == "train" else f"{name}: {warning}")
    validation = encoded["validation"].rows if "validation" in encoded else []
    judge = _make_judge(inputs, inputs.metric, tokenizer) if inputs.metric else None
    return Sets(tokenizer.inner, encoded["train"].rows, validation, judge), encoded


def _make_judge(
    inputs: Inputs, metric: Metric, tokenizer: Tokenizer
) -> Callable[[Any], list[float]]:
    """Answers the first prompts of the validation set and scores the answers."""
    from training.evaluation.answers import answer_greedily, expected_text

    settings = inputs.recipe.evaluation
    examples = inputs.sets["validation"].examples[: settings.examples]
    expected = [expected_text(each, tokenizer) for each in examples]
    places = [each.place for each in examples]
    # What the metric can't judge is an error now, not in the middle of the run.
    score_answers(metric, expected, expected, places)

    def judge(model: Any) -> list[float]:
        answers = answer_greedily(
            model, tokenizer, examples, max_new_tokens=settings.max_new_tokens
        )
        return score_answers(metric, [each.text for each in answers], expected, places)

    return judge
