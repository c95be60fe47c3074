"""Curves: when a run has diverged, when it overfits, and what a run tells of itself."""

import math

import pytest

from training.progress import Lines, Step
from training.watch import Curve


def curve(train: list[float], validation: list[float] | None = None, every: int = 2) -> Curve:
    return Curve(
        list(enumerate(train, start=1)),
        [(every * at, loss, None) for at, loss in enumerate(validation or [], start=1)],
    )


def test_a_curve_is_read_from_the_history_of_transformers() -> None:
    history = [
        {"loss": 2.0, "step": 1},
        {"eval_loss": 1.5, "eval_metric": 0.5, "step": 1},
        {"eval_loss": 1.25, "step": 2},
        {"train_loss": 9.0, "step": 2},
    ]
    found = Curve.of(history)
    assert found.train == [(1, 2.0)]
    assert found.validation == [(1, 1.5, 0.5), (2, 1.25, None)]


@pytest.mark.parametrize(
    ("losses", "diverged"),
    [
        ([2.0, math.nan], True),
        ([2.0, math.inf], True),
        ([2.0, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4], False),
        ([2.0, 9.0, 1.0, 1.0, 1.0, 1.0], False),  # one bad batch
        ([2.0, 2.5, 3.5, 4.0, 4.0, 4.0, 4.0], True),
        ([0.1, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3], False),  # far above, of next to nothing
        ([2.0, 18.0, 18.0], False),  # too few to tell
    ],
)
def test_a_run_has_diverged_when_its_recent_losses_are_far_above_the_first(
    losses: list[float], diverged: bool
) -> None:
    assert curve(losses).diverged is diverged


def test_overfitting_is_a_falling_training_loss_beside_a_rising_validation_loss() -> None:
    falling = [2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6]
    warned = curve(falling, [1.5, 1.2, 1.4, 1.6]).find_overfitting()
    assert warned is not None
    assert "since step 4" in warned
    assert "from 1.2000 to 1.6000" in warned
    assert "patience" in warned


@pytest.mark.parametrize(
    ("train", "validation"),
    [
        ([2.0, 1.8, 1.6, 1.4], [1.5, 1.2]),  # too few evaluations
        ([2.0, 1.8, 1.6, 1.4, 1.2, 1.0], [1.5, 1.2, 1.205]),  # noise
        ([2.0, 1.8, 1.6, 1.4, 1.2, 1.0, 0.8, 0.6], [1.5, 1.2, 1.4, 1.1]),  # better again
        ([1.0, 1.0, 1.0, 1.0, 1.2, 1.2, 1.2, 1.2], [1.5, 1.2, 1.4, 1.6]),  # training rises, too
        ([2.0, 1.8, 1.6, 1.4], []),
    ],
)
def test_what_is_no_overfitting(train: list[float], validation: list[float]) -> None:
    assert curve(train, validation).find_overfitting() is None


def test_plain_lines_tell_the_first_update_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for number in range(1, 31):
        lines.step(Step(number, 30, 1 / number, 1234.5, 90.0 * (30 - number)))
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "step 1/30 loss 1.0000 1,234 tokens/s, 43:30 left",
        "step 30/30 loss 0.0333 1,234 tokens/s, 0:00 left",
    ]
