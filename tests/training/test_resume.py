"""A run that is killed, interrupted or refused, and what goes on from its checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from training import watch
from training.errors import Diverged, Interrupted, RunUnfinished
from training.loop import find_checkpoint
from training.progress import Control, Step
from training.recipe import Recipe
from training.run import Trained, train

QUIET = Control(lambda line: None)
WEIGHTS = "adapter_model.safetensors"
KILLED_AT = 8
# Dropout, so that the random numbers count, and an end that is no multiple of the checkpoints.
SETTINGS = {"max_steps": 11, "batch_size": 2, "warmup_steps": 2, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def recipe(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    for name, numbers in (("train", range(10)), ("validation", range(90, 94))):
        lines = [{"instruction": f"count {n}", "output": f"{n} lamps"} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return Recipe.model_validate(
        {
            "name": "count",
            "base": str(tiny_base),
            "base_name": "tiny",
            "data": {
                "train": str(folder / "train.jsonl"),
                "validation": str(folder / "validation.jsonl"),
            },
            "lora": {"rank": 4, "dropout": 0.1},
            "optimization": SETTINGS,
            "evaluation": {"every": 3},
        }
    )


@pytest.fixture(scope="module")
def whole(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The run without an interruption."""
    return train(recipe, tmp_path_factory.mktemp("whole"), QUIET)


def equals(one: Trained, other: Trained) -> bool:
    same = (one.folder / WEIGHTS).read_bytes() == (other.folder / WEIGHTS).read_bytes()
    return same and one.provenance["curve"] == other.provenance["curve"]


KILL = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)  # as the tests do: the order of a sum is part of its value
from training.progress import Control
from training.recipe import Recipe
from training.run import train

def kill(step):
    if step.number == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)

recipe = Recipe.model_validate_json(sys.argv[1])
train(recipe, Path(sys.argv[2]), Control(lambda line: None, kill))
"""


def test_a_killed_run_resumes_to_the_same_bytes(
    recipe: Recipe, whole: Trained, tmp_path: Path
) -> None:
    """Trains in a process of its own: only a process can be killed with SIGKILL."""
    command = [sys.executable, "-c", KILL, recipe.model_dump_json(), str(tmp_path), str(KILLED_AT)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ran.returncode == -9, ran.stderr
    said: list[str] = []
    resumed = train(recipe, tmp_path, Control(said.append), again="resume")
    assert "resuming after step 6" in said
    assert not resumed.reused
    assert equals(resumed, whole)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == [resumed.folder.name]


def stopped_at(number: int) -> Control:
    """Ctrl-C during an update."""
    control = Control(lambda line: None, lambda step: ask(step))

    def ask(step: Step) -> None:
        if step.number == number - 1:
            control.stop.signal = 2

    return control


def test_an_interrupted_run_is_refused_until_one_says_how_to_go_on(
    recipe: Recipe, whole: Trained, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted, match=r"stopped at step 5 of 11; .* --resume"):
        train(recipe, tmp_path, stopped_at(5))
    with pytest.raises(RunUnfinished, match="step 5; go on with --resume, or begin anew"):
        train(recipe, tmp_path, QUIET)
    assert equals(train(recipe, tmp_path, QUIET, again="resume"), whole)


@pytest.mark.parametrize("settings", [{}, {"patience": 1, "metric": "contains", "examples": 2}])
def test_a_run_that_is_killed_after_its_last_update_trains_no_further(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    evaluation = {"every": 3, "max_new_tokens": 4} | settings
    recipe = Recipe.model_validate(recipe.model_dump() | {"evaluation": evaluation})
    expected = train(recipe, tmp_path / "whole", QUIET)

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("training.loop.save_adapter", kill)
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "killed", QUIET)
    resumed = train(recipe, tmp_path / "killed", QUIET, again="resume")
    assert resumed.provenance["steps"] == expected.provenance["steps"]
    assert equals(resumed, expected)


def test_a_run_begins_anew_where_that_is_asked_for(
    recipe: Recipe, whole: Trained, tmp_path: Path
) -> None:
    with pytest.raises(Interrupted):
        train(recipe, tmp_path, stopped_at(2))
    said: list[str] = []
    assert equals(train(recipe, tmp_path, Control(said.append), again="restart"), whole)
    assert not any("resuming" in line for line in said)


def test_without_a_checkpoint_resuming_starts_at_the_beginning(
    recipe: Recipe, tmp_path: Path
) -> None:
    said: list[str] = []
    short = recipe.model_copy(
        update={"optimization": recipe.optimization.model_copy(update={"max_steps": 1})}
    )
    train(short, tmp_path, Control(said.append), again="resume")
    assert "nothing to resume, starting at the beginning" in said


def test_a_half_written_checkpoint_does_not_count(tmp_path: Path) -> None:
    assert find_checkpoint(tmp_path) is None
    for step, state in ((3, '{"global_step": 3}'), (6, '{"global_step"'), (9, None)):
        folder = tmp_path / f"checkpoints/checkpoint-{step}"
        folder.mkdir(parents=True)
        if state:
            (folder / "trainer_state.json").write_text(state)
    found = find_checkpoint(tmp_path)
    assert found is not None
    assert found.name == "checkpoint-3"


def test_the_checkpoint_that_does_best_on_validation_is_kept(whole: Trained) -> None:
    facts = whole.provenance
    losses = {step: loss for step, loss, _ in facts["curve"]["validation"]}
    assert list(losses) == [3, 6, 9, 11]
    assert facts["best_step"] == min(losses, key=lambda step: losses[step])
    assert facts["validation_loss"] == losses[facts["best_step"]]
    scores = json.loads((whole.folder / "validation.json").read_text())
    assert len(scores["loss"]) == 4
    assert sum(scores["loss"]) / 4 == pytest.approx(facts["validation_loss"], rel=0.05)


def test_a_run_stops_early_when_nothing_gets_better(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "judge.py").write_text("def never(answer, expected):\n    return 0\n")
    evaluation = {"every": 2, "patience": 2, "metric": f"{tmp_path}/judge.py:never"}
    impatient = Recipe.model_validate(
        recipe.model_dump() | {"evaluation": evaluation | {"examples": 2, "max_new_tokens": 4}}
    )
    facts = train(impatient, tmp_path / "out", QUIET).provenance
    # The first evaluation is the best; the two after it are no better.
    assert (facts["steps"], facts["best_step"]) == (6, 2)
    assert facts["metric"]["name"] == "judge.py:never"
    assert facts["validation_metric"] == 0
    assert str(tmp_path) not in json.dumps(facts)


def test_a_diverged_run_ends_early_and_leaves_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss of a base this small is near the worst: any later one counts here."""
    monkeypatch.setattr(watch, "DIVERGED_RATIO", 0.0)
    monkeypatch.setattr(watch, "DIVERGED_BY", -100.0)
    with pytest.raises(Diverged, match=r"diverged at step 6: the loss went from .* lower"):
        train(recipe, tmp_path, QUIET)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint_and_says_how_to_go_on(recipe: Recipe, tmp_path: Path) -> None:
    """The command in a process of its own, which gets the signal."""
    path = tmp_path / "recipe.yaml"
    long = json.loads(recipe.model_dump_json())
    long["optimization"]["max_steps"] = 2000
    path.write_text(json.dumps(long))
    code = "from training.cli import app; app()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "train", str(path), "--output", str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith("step 1/2000"):
                process.send_signal(2)
    assert process.returncode == 130
    assert "with a checkpoint" in "".join(lines)
    assert lines[-1].startswith("error: stopped at step ")
    assert lines[-1].endswith("(interrupted)\n")
    assert list((tmp_path / "out").glob(".*.partial/checkpoints/checkpoint-*"))
