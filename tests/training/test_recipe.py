"""Recipes: defaults, overrides, and every problem named at once."""

from pathlib import Path

import pytest
from pydantic import BaseModel

from training.errors import BaseInvalid, RecipeInvalid
from training.recipe import (
    LINEARS,
    Data,
    Evaluation,
    Lora,
    Optimization,
    Preferences,
    Recipe,
    check_modules,
    load_recipe,
)

SECTIONS = {
    "data.": Data,
    "lora.": Lora,
    "optimization.": Optimization,
    "evaluation.": Evaluation,
    "dpo.": Preferences,
}
MINIMAL = "name: tone\nbase: org/model\ndata:\n  train: train.jsonl\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_minimal_recipe_has_the_usual_defaults(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL))
    assert recipe.quantization == "nf4"
    assert recipe.lora.modules == LINEARS
    assert recipe.lora.scale_alpha == 2 * recipe.lora.rank
    assert 1e-4 <= recipe.optimization.learning_rate <= 3e-4
    assert recipe.base_name == "org/model"
    pinned = load_recipe(write(tmp_path, MINIMAL.replace("org/model", "org/model@v1")))
    assert (pinned.base, pinned.base_name) == ("org/model@v1", "org/model")


def test_paths_start_at_the_recipes_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    text = MINIMAL.replace("org/model", "base")
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.data.train == (str(tmp_path / "train.jsonl"),)
    assert recipe.base == str(tmp_path / "base")
    assert recipe.base_name == "base"


def test_a_set_is_a_file_a_list_of_files_or_an_id(tmp_path: Path) -> None:
    (tmp_path / "acme").mkdir()
    (tmp_path / "acme/faq").write_text("")
    sets = "data: {train: [a.jsonl, b.csv], validation: org/set:test, heldout: acme/faq}\n"
    data = load_recipe(write(tmp_path, f"name: tone\nbase: org/model\n{sets}")).data
    assert data.train == (str(tmp_path / "a.jsonl"), str(tmp_path / "b.csv"))
    assert data.validation == ("org/set:test",)
    assert data.heldout == (str(tmp_path / "acme/faq"),)


def test_an_empty_list_of_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"data\.train = "):
        load_recipe(write(tmp_path, "name: a\nbase: b\ndata: {train: []}\n"))


def test_overrides_reach_nested_keys_and_keep_their_types(tmp_path: Path) -> None:
    overrides = ["lora.rank=8", "optimization.learning_rate=0.001", "lora.target_modules=[q_proj]"]
    recipe = load_recipe(write(tmp_path, MINIMAL), overrides)
    assert (recipe.lora.rank, recipe.lora.target_modules) == (8, ("q_proj",))
    assert recipe.optimization.learning_rate == 0.001


def test_every_problem_is_reported_at_once_with_key_and_value(tmp_path: Path) -> None:
    text = MINIMAL.replace("tone", "'../x'") + "lora:\n  rank: 0\n  targets: all\n"
    with pytest.raises(RecipeInvalid) as raised:
        load_recipe(write(tmp_path, text), ["optimization.batch_size=none", "quantization", "=1"])
    said = str(raised.value)
    assert "name = '../x'" in said
    assert "lora.rank = 0" in said
    assert "lora.targets: unknown key" in said
    assert "optimization.batch_size = 'none'" in said
    assert "--set 'quantization': not key=value" in said
    assert "--set '=1': not key=value" in said


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"data\.train: missing"):
        load_recipe(write(tmp_path, "name: a\nbase: b\ndata: {}\n"))


@pytest.mark.parametrize("text", ["", "- a\n", "name: [", "just words"])
def test_what_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeInvalid):
        load_recipe(write(tmp_path, text))


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeInvalid, match=r"absent\.yaml: No such file"):
        load_recipe(tmp_path / "absent.yaml")


@pytest.mark.parametrize("model", [Recipe, *SECTIONS.values()])
def test_every_field_is_described(model: type[BaseModel]) -> None:
    assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "lora: {alpha: 32}"),
        ("", f"lora: {{target_modules: [{', '.join(reversed(LINEARS))}]}}"),
        ("optimization: {max_steps: 9}", "optimization: {max_steps: 9, epochs: 5}"),
        ("", "evaluation: {every: 5}"),  # without a validation set
        ("", "dpo: {beta: 0.5}"),  # without method: dpo
        ("", "base_name: other"),
        (
            "optimization: {scheduler: constant}",
            "optimization: {scheduler: constant, warmup_steps: 3}",
        ),
    ],
)
def test_settings_are_what_takes_effect(tmp_path: Path, one: str, other: str) -> None:
    found = [load_recipe(write(tmp_path, f"{MINIMAL}{text}\n")).settings() for text in (one, other)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "text",
    [
        "lora: {alpha: 16}",
        "lora: {rslora: true}",
        "optimization: {max_grad_norm: 0.5}",
        "method: dpo",
        "quantization: none",
    ],
)
def test_what_takes_effect_makes_another_run(tmp_path: Path, text: str) -> None:
    plain = load_recipe(write(tmp_path, MINIMAL)).settings()
    assert load_recipe(write(tmp_path, f"{MINIMAL}{text}\n")).settings() != plain


def test_a_metrics_file_is_found_beside_the_recipe_and_named_without_its_path(
    tmp_path: Path,
) -> None:
    text = MINIMAL.replace("train.jsonl", "train.jsonl\n  validation: v.jsonl")
    for spec, name in (("judge.py:score", "judge.py:score"), ("json-schema:a/b.json",) * 2):
        recipe = load_recipe(write(tmp_path, f"{text}evaluation: {{metric: '{spec}'}}\n"))
        assert str(tmp_path) in str(recipe.evaluation.metric)
        assert recipe.settings()["evaluation"]["metric"] == name.replace("a/", "")


def test_layers_that_the_base_lacks_are_refused(tmp_path: Path, tiny_base: Path) -> None:
    recipe = load_recipe(write(tmp_path, MINIMAL), ["lora.target_modules=[q_proj]"])
    check_modules(recipe, tiny_base)
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(BaseInvalid, match="no base model"):
        check_modules(recipe, bare)


def test_settings_hold_no_paths(tmp_path: Path) -> None:
    settings = load_recipe(write(tmp_path, MINIMAL)).settings()
    assert str(tmp_path) not in str(settings)
    assert settings["lora"]["rank"] == 16


def test_every_shipped_recipe_is_valid() -> None:
    recipes = sorted(Path("examples").glob("*/recipes/*.yaml"))
    assert {path.stem for path in recipes} >= {"orders-json", "orders-sql", "support-tone"}
    for path in recipes:
        recipe = load_recipe(path)
        assert recipe.name == path.stem
        assert Path(recipe.base).is_dir()


def test_every_key_stands_in_the_manual_with_its_default() -> None:
    manual = (Path(__file__).parents[2] / "docs/training.md").read_text()
    for prefix, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            line = next(each for each in manual.splitlines() if f"| `{prefix}{name}` |" in each)
            assert field.description in line
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                assert f"| `{field.default}` |" in line
    for name in Recipe.model_fields.keys() - {prefix.removesuffix(".") for prefix in SECTIONS}:
        assert f"| `{name}` |" in manual
