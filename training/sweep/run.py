"""Runs a sweep: each setting in turn. A finished run is reused, a failed one is a row."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

from training.errors import InputError, Interrupted, RunFailed, TrainingError
from training.progress import Control, Report, Stop, shown
from training.recipe import Recipe
from training.run import Trained, train
from training.sweep.compare import Attempt
from training.sweep.grid import Setting

STOPPING: Final = (signal.SIGINT, signal.SIGTERM)


def run_sweep(
    settings: Sequence[Setting], train_one: Callable[[Recipe], Trained], report: Report
) -> list[Attempt]:
    """Train every setting; the same call goes on where an interrupted one stopped.

    Raises:
        InputError: the input is unusable for every setting.
        Interrupted: a run was stopped; none is begun after it.
    """
    attempts = []
    for number, setting in enumerate(settings, 1):
        report(f"[{number}/{len(settings)}] {setting.label}")
        attempts.append(_attempt(setting, train_one, report))
    errors = [attempt.error for attempt in attempts]
    if isinstance(errors[0], InputError) and all(isinstance(each, InputError) for each in errors):
        raise errors[0]
    return attempts


def _attempt(setting: Setting, train_one: Callable[[Recipe], Trained], report: Report) -> Attempt:
    try:
        return Attempt(setting, train_one(setting.recipe))
    except Interrupted:
        raise
    except TrainingError as error:
        report(f"failed: {error} ({error.code})")
        return Attempt(setting, error=error)


def train_apart(recipe: Recipe, output: Path) -> Trained:
    """Train in a process of its own; raises the TrainingError that ended the run.

    So all memory is given back, the peak that a run reports is its own, and one that the system
    kills is a failed run like any other.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_send, args=(recipe, output, sender))
    with _stopping(process) as stop:
        sender.close()  # or the end of the other one would not be seen
        try:
            found = receiver.recv()
        except EOFError:
            found = None
        process.join()
    if stop.signal:
        raise Interrupted("the sweep was stopped", "the same command goes on", stop.signal)
    if isinstance(found, TrainingError):
        raise found
    if not isinstance(found, Trained):
        ended = f"the process of the run ended with exit code {process.exitcode}"
        raise RunFailed(ended, "see the lines above; -9 is what a lack of memory leaves")
    return found


@contextmanager
def _stopping(process: Any) -> Iterator[Stop]:
    """Start the process, and pass on what asks to stop: the run leaves a checkpoint first."""
    stop = Stop()
    before = {name: signal.getsignal(name) for name in STOPPING}

    def pass_on(number: int, _: Any) -> None:
        stop.signal = number
        process.terminate()

    # Ignored by the new process too: of a terminal's Ctrl-C it hears from here, and once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
        for name in STOPPING:
            signal.signal(name, pass_on)
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _train_and_send(recipe: Recipe, output: Path, sender: Connection) -> None:
    from training.cli import stoppable

    stop = Stop()
    with stoppable(stop), shown() as (report, on_step):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            sender.send(train(recipe, output, Control(report, on_step, stop), again="resume"))
        except Interrupted:
            return  # the one who asked for it knows
        except TrainingError as error:
            sender.send(error)
