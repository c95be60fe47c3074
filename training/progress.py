"""Progress of a run: a bar on a terminal, plain lines elsewhere.

Knows nothing about torch, so that the command line can set it up before the slow imports.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

Report = Callable[[str], None]
QUIET_SECONDS: Final = 10.0  # at most between two plain lines


@dataclass(frozen=True, slots=True)
class Step:
    """One update: its number of `total`, its loss, the speed since the start, what is left."""

    number: int
    total: int
    loss: float
    tokens_per_second: float
    seconds_left: float


@dataclass(slots=True)
class Stop:
    """Asks a run to stop after its update; `signal` is the number of what asked, 0: nothing did."""

    signal: int = 0


@dataclass(frozen=True, slots=True)
class Control:
    """Where a run reports its progress, and what stops it early.

    `report_to` names transformers' integrations, as tensorboard and wandb.
    """

    report: Report
    on_step: Callable[[Step], None] = lambda step: None
    stop: Stop = field(default_factory=Stop)
    report_to: Sequence[str] = ()


@contextmanager
def shown() -> Iterator[tuple[Report, Callable[[Step], None]]]:
    """Where lines and updates go: stderr, as a bar if it is a terminal."""
    console = Console(stderr=True, highlight=False, markup=False)
    if not console.is_terminal:
        lines = Lines()
        yield lines.report, lines.step
        return
    columns = (
        TextColumn("step {task.completed}/{task.total}"),
        BarColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  {task.fields[speed]:,.0f} tokens/s"),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console) as progress:
        bar = Bar(progress)
        yield bar.report, bar.step


class Lines:
    """One line for the first update, then one every ten seconds, then the last."""

    def __init__(self) -> None:
        self._told = -QUIET_SECONDS

    def report(self, line: str) -> None:
        typer.echo(line, err=True)

    def step(self, step: Step) -> None:
        now = time.monotonic()
        if now - self._told < QUIET_SECONDS and step.number < step.total:
            return
        self._told = now
        self.report(
            f"step {step.number}/{step.total} loss {step.loss:.4f} "
            f"{step.tokens_per_second:,.0f} tokens/s, {_clock(step.seconds_left)} left"
        )


class Bar:
    """A bar that lines scroll above."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task: TaskID | None = None

    def report(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True)

    def step(self, step: Step) -> None:
        fields: dict[str, Any] = {"loss": step.loss, "speed": step.tokens_per_second}
        if self._task is None:
            # From here: a resumed run's earlier updates would make it look fast.
            self._task = self._progress.add_task(
                "", total=step.total, completed=step.number, **fields
            )
        self._progress.update(self._task, completed=step.number, **fields)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
