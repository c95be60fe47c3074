"""Sweeps: the grid and its problems, the comparison and its noise, real runs on the tiny base."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from adapters.errors import BaseNotFound
from training.errors import Interrupted, RecipeInvalid, RunFailed
from training.progress import Control
from training.recipe import Recipe
from training.run import Trained, train
from training.sweep.cli import app
from training.sweep.compare import Attempt, Comparison, compare, verdict
from training.sweep.grid import MOST_RUNS, Setting, read_grid
from training.sweep.report import as_document, sweep_folder, write_sweep
from training.sweep.run import run_sweep, train_apart

WORDS = ("one", "two", "three", "four", "five", "six")


def write_set(path: Path, words: tuple[str, ...]) -> Path:
    records = [{"instruction": word, "output": word.upper()} for word in words]
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


def write_recipe(folder: Path, base: Path | str = "absent", **keys: Any) -> Path:
    write_set(folder / "train.jsonl", WORDS[:4])
    write_set(folder / "validation.jsonl", WORDS[4:])
    recipe = {
        "name": "words",
        "base": str(base),
        "base_name": "tiny",
        "data": {"train": "train.jsonl", "validation": "validation.jsonl"},
        "lora": {"rank": 4},
        "optimization": {"max_steps": 2, "batch_size": 2, "warmup_steps": 0},
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe | keys))  # JSON is YAML
    return path


def problems_of(path: Path, *over: str, overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(RecipeInvalid) as caught:
        read_grid(path, over, overrides)
    return str(caught.value)


def test_a_grid_has_every_combination_and_the_last_key_varies_fastest(tmp_path: Path) -> None:
    over = ("lora.rank=8,16", "optimization.learning_rate=1e-4, 2e-4")
    grid = read_grid(write_recipe(tmp_path), over, ["optimization.seed=7"])
    assert [setting.label for setting in grid] == [
        "rank 8, learning_rate 1e-4",
        "rank 8, learning_rate 2e-4",
        "rank 16, learning_rate 1e-4",
        "rank 16, learning_rate 2e-4",
    ]
    chosen = [(each.recipe.lora.rank, each.recipe.optimization.learning_rate) for each in grid]
    assert chosen == [(8, 1e-4), (8, 2e-4), (16, 1e-4), (16, 2e-4)]
    assert {setting.recipe.optimization.seed for setting in grid} == {7}


def test_values_are_yaml(tmp_path: Path) -> None:
    over = ("lora.target_modules=[q_proj, v_proj],[o_proj]", "optimization.packing=true,false")
    grid = read_grid(write_recipe(tmp_path), over)
    assert [
        (each.recipe.lora.target_modules, each.recipe.optimization.packing) for each in grid
    ] == [
        (("q_proj", "v_proj"), True),
        (("q_proj", "v_proj"), False),
        (("o_proj",), True),
        (("o_proj",), False),
    ]
    assert read_grid(write_recipe(tmp_path), grid[0].overrides)[0].recipe == grid[0].recipe


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    said = problems_of(
        path, "lora.rnak=8,16", "lora.rank=0,8,many", "optimization.learning_rate=2,1e-4"
    )
    assert said.count("lora.rnak: unknown key") == 1
    for part in ("lora.rank = 0", "lora.rank = 'many'", "optimization.learning_rate = 2"):
        assert said.count(part) == 1
    said = problems_of(path, "lora.rank", "lora.rank=", "=8", "lora.dropout=[1", "lora.alpha=8,8")
    assert said.count("not KEY=VALUE,VALUE") == 4
    assert "a value is given twice" in said
    assert "lora.rank: given twice" in problems_of(path, "lora.rank=8", "lora.rank=16")


def test_what_settings_are_compared_by_must_be_the_same(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    said = problems_of(path, "name=a,b", "data.validation=validation.jsonl,train.jsonl")
    assert "another name, data.validation can't be compared" in said
    path = write_recipe(tmp_path, data={"train": "train.jsonl"})
    assert "data.validation: missing" in problems_of(path, "lora.rank=4,8")
    path = write_recipe(tmp_path, method="dpo")
    assert "evaluation.metric: missing" in problems_of(path, "lora.rank=4,8")
    assert read_grid(path, ["lora.rank=4,8"], ["evaluation.metric=exact-match"])


def test_many_runs_need_consent(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    over = f"optimization.seed={','.join(map(str, range(MOST_RUNS + 1)))}"
    assert "33 combinations" in problems_of(path, over)
    assert len(read_grid(path, [over], consent=True)) == MOST_RUNS + 1


# Comparing


Make = Callable[..., Attempt]


@pytest.fixture
def attempt(tmp_path: Path) -> Make:
    """Makes what a finished run leaves: a folder with the scores, and a provenance."""
    recipe = read_grid(write_recipe(tmp_path), ["lora.rank=4"])[0].recipe

    def make(
        rank: int,
        loss: list[float],
        scores: list[float] | None = None,
        parameters: int | None = None,
    ) -> Attempt:
        folder = tmp_path / f"words-{rank}"
        folder.mkdir()
        (folder / "validation.json").write_text(json.dumps({"loss": loss, "metric": scores}))
        provenance = {
            "name": "words",
            "trainable_parameters": parameters or 1000 * rank,
            "metric": scores and {"name": "exact-match", "digest": ""},
            "validation_loss": loss[0],
            "steps": 4,
            "best_step": 4,
            "curve": {"train": [[1, 2.0]], "validation": [[4, loss[0], scores and scores[0]]]},
        }
        setting = Setting({"lora.rank": str(rank)}, recipe)
        return Attempt(setting, Trained(folder, tmp_path, provenance, reused=False))

    return make


def ranks(comparison: Comparison) -> list[str]:
    return [row.setting.values["lora.rank"] for row in comparison.rows]


def test_the_lowest_loss_wins_and_a_steady_difference_is_more_than_noise(attempt: Make) -> None:
    hard = [0.1 * number for number in range(50)]  # how hard each example is
    worse = [loss + 0.01 + 0.0001 * (at % 7) for at, loss in enumerate(hard)]
    comparison = compare([attempt(8, worse), attempt(16, hard)])
    assert ranks(comparison) == ["16", "8"]
    assert comparison.measure == "loss"
    assert comparison.runner_up is comparison.rows[1]
    assert comparison.rows[1].behind is not None
    assert 0.01 <= comparison.rows[1].behind.low <= comparison.rows[1].behind.high < 0.011
    assert not comparison.rows[1].within_noise
    assert comparison.cheapest is comparison.best
    assert "more than noise" in " ".join(verdict(comparison))


def test_the_metric_decides_where_there_is_one_and_the_cheapest_is_named(attempt: Make) -> None:
    right = [1.0] * 20
    few = [0.0, *right[1:]]
    half = [0.0] * 10 + right[10:]
    losses = [1.0] * 20
    attempts = [attempt(4, losses, half), attempt(8, losses, few), attempt(16, losses, right)]
    comparison = compare(attempts)
    assert ranks(comparison) == ["16", "8", "4"]
    assert [row.within_noise for row in comparison.rows] == [True, True, False]
    assert comparison.cheapest.setting.values == {"lora.rank": "8"}
    said = verdict(comparison)
    assert said[0] == "Best: rank 16, exact-match 1.0000 on validation."
    assert "within noise" in said[1]
    assert said[2] == "rank 8 is within noise of the best and half the size."


def test_of_equal_ones_the_smaller_is_best(attempt: Make) -> None:
    comparison = compare([attempt(32, [1.0, 2.0]), attempt(8, [1.0, 2.0]), attempt(16, [1.0, 2.0])])
    assert comparison.best.setting.values == {"lora.rank": "8"}
    assert all(row.within_noise for row in comparison.rows)


def test_what_can_not_be_compared_is_a_row_that_failed(attempt: Make, tmp_path: Path) -> None:
    good, lost, apart = attempt(4, [1.0, 2.0]), attempt(8, [1.0, 2.0]), attempt(32, [1.0])
    nan = attempt(16, [1.0, float("nan")])
    assert lost.trained is not None
    (lost.trained.folder / "validation.json").unlink()
    failed = Attempt(good.setting, error=RunFailed("out of memory", "see above"))
    comparison = compare([failed, lost, good, nan, apart])
    assert comparison.best.setting is good.setting
    assert comparison.runner_up is None
    errors = [row.error or "" for row in comparison.rows[1:]]
    for part, error in zip(
        ("out of memory", "unreadable", "diverged", "of 1 examples"), errors, strict=True
    ):
        assert part in error
    document = as_document(comparison)
    assert [run["status"] for run in document["runs"]] == ["best", *["failed"] * 4]
    write_sweep(comparison, tmp_path / "sweep")
    json.loads((tmp_path / "sweep/sweep.json").read_text(), parse_constant=pytest.fail)
    with pytest.raises(RunFailed, match="no run of the sweep succeeded"):
        compare([failed, nan])


def test_the_report_of_a_sweep_is_written_whole(attempt: Make, tmp_path: Path) -> None:
    attempts = [attempt(rank, [1.0 / rank, 2.0 / rank + rank % 3]) for rank in range(4, 16)]
    comparison = compare(attempts)
    folder = sweep_folder(tmp_path, [each.setting for each in attempts])
    write_sweep(comparison, folder)
    assert {path.name for path in folder.iterdir()} == {"sweep.html", "sweep.json", "sweep.png"}
    page = (folder / "sweep.html").read_text()
    assert all(f"rank {rank}" in page for rank in range(4, 16))
    assert "the best 8 of 12" in page
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match="Not a directory"):
        write_sweep(comparison, tmp_path / "file" / "sweep")


# Real runs


def here(output: Path) -> Callable[[Recipe], Trained]:
    """Trains in this process, which has torch imported already."""
    return lambda recipe: train(recipe, output, Control(lambda line: None), again="resume")


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped_and_a_failed_run_is_a_row(
    tiny_base: Path, tmp_path: Path
) -> None:
    """Three real runs of two steps, one of which the disk refuses."""
    settings = read_grid(write_recipe(tmp_path, tiny_base), ["lora.rank=4,8,16"])
    output = tmp_path / "out"

    def interrupted(recipe: Recipe) -> Trained:
        if recipe.lora.rank == 16:
            raise Interrupted("stopped at step 1", "go on", 2)
        return here(output)(recipe)

    with pytest.raises(Interrupted):
        run_sweep(settings, interrupted, lambda line: None)

    def full(recipe: Recipe) -> Trained:
        if recipe.lora.rank == 16:
            raise RunFailed("no space left on device", "make room")
        return here(output)(recipe)

    said: list[str] = []
    attempts = run_sweep(settings, full, said.append)
    assert [each.trained and each.trained.reused for each in attempts] == [True, True, None]
    assert "[3/3] rank 16" in said
    comparison = compare(attempts)
    assert comparison.examples == 2
    assert {row.setting.values["lora.rank"] for row in comparison.rows[:2]} == {"4", "8"}
    assert comparison.rows[2].error == "no space left on device"
    sizes = {row.setting.values["lora.rank"]: row.parameters for row in comparison.rows}
    assert sizes["8"] == 2 * sizes["4"]


def test_input_that_no_setting_can_use_ends_a_sweep(tmp_path: Path) -> None:
    settings = read_grid(write_recipe(tmp_path), ["lora.rank=4,8"])
    with pytest.raises(BaseNotFound):
        run_sweep(settings, here(tmp_path / "out"), lambda line: None)


def test_an_error_of_a_run_crosses_the_border_of_its_process(tmp_path: Path) -> None:
    """Starts a process, because that is what is tested."""
    recipe = read_grid(write_recipe(tmp_path), ["lora.rank=4"])[0].recipe
    with pytest.raises(BaseNotFound, match="absent"):
        train_apart(recipe, tmp_path / "out")


# The command


def test_bad_input_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    path = write_recipe(tmp_path)
    for arguments in (
        ["--over", "lora.rnak=8"],
        ["--over", "lora.rank=4", "--alias", "a", "--no-alias"],
    ):
        ran = CliRunner().invoke(app, [str(path), *arguments])
        assert (ran.exit_code, ran.stdout) == (2, "")
        assert ran.stderr.startswith("error: ")
        assert ran.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_command_compares_and_publishes_only_the_best(tiny_base: Path, tmp_path: Path) -> None:
    """Two real runs, in processes of their own as the command starts them."""
    path = write_recipe(tmp_path, tiny_base)
    ran = CliRunner().invoke(
        app,
        [
            *(str(path), "--over", "lora.rank=4,8", "--output", str(tmp_path / "out")),
            *("--publish", "--no-alias", "--store", str(tmp_path / "store"), "--json"),
        ],
    )
    assert ran.exit_code == 0, ran.stderr
    document = json.loads(ran.stdout)
    best = int(document["best"]["lora.rank"])
    assert document["published"]["version"] == 1
    assert document["published"]["provenance"]["recipe"]["lora"]["rank"] == best
    assert not list((tmp_path / "store").glob("**/validation.json"))
    assert {run["status"] for run in document["runs"]} <= {"best", "within noise", "worse"}
    written = next((tmp_path / "out").glob("words-sweep-*/sweep.json"))
    assert json.loads(written.read_text()) == {
        k: v for k, v in document.items() if k != "published"
    }
