"""Runs a sweep: each setting in turn. A finished run is reused, a failed one is a row."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from adapters.errors import AdapterError, BaseUnreadable
from training.cli import ONE_REQUEST, STOPPING
from training.errors import InputError, Interrupted, RunFailed, TrainingError
from training.progress import Control, Report, Stop, shown
from training.recipe import Recipe
from training.run import Trained, train
from training.sweep.compare import Attempt
from training.sweep.grid import Setting

UNUSABLE = (InputError, BaseUnreadable)


def run_sweep(
    settings: Sequence[Setting], train_one: Callable[[Recipe], Trained], report: Report
) -> list[Attempt]:
    """Train every setting; the same call goes on where an interrupted one stopped.

    Raises:
        InputError, BaseUnreadable: the input is unusable for every setting.
        Interrupted: a run was stopped; none is begun after it.
    """
    attempts = []
    for number, setting in enumerate(settings, 1):
        report(f"[{number}/{len(settings)}] {setting.label}")
        attempts.append(_attempt(setting, train_one, report))
    errors = [attempt.error for attempt in attempts]
    if isinstance(errors[0], UNUSABLE) and all(isinstance(each, UNUSABLE) for each in errors):
        raise errors[0]
    return attempts


def _attempt(setting: Setting, train_one: Callable[[Recipe], Trained], report: Report) -> Attempt:
    try:
        return Attempt(setting, train_one(setting.recipe))
    except Interrupted:
        raise
    except (TrainingError, AdapterError) as error:
        report(f"failed: {error} ({error.code})")
        return Attempt(setting, error=error)


def train_apart(recipe: Recipe, output: Path) -> Trained:
    """Train in a process of its own; raises the error that ended the run.

    So all memory is given back, the peak that a run reports is its own, and one that the system
    kills is a failed run like any other.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_train_and_send, args=(recipe, output, theirs))
    with _stopping(process, ours) as stop:
        theirs.close()  # or the end of the process would not be seen
        try:
            found = ours.recv()
        except (EOFError, OSError):
            found = None
        process.join()
    if stop.signal:
        raise Interrupted("the sweep was stopped", "the same command goes on", stop.signal)
    if isinstance(found, TrainingError | AdapterError):
        raise found
    if not isinstance(found, Trained):
        ended = f"the process of the run ended with exit code {process.exitcode}"
        raise RunFailed(ended, "see the lines above; -9 is what a lack of memory leaves")
    return found


@contextmanager
def _stopping(process: Any, connection: Connection) -> Iterator[Stop]:
    """Start the process, and pass on what asks to stop: the run leaves a checkpoint first."""
    stop = Stop()
    asked = 0.0
    before = {name: signal.getsignal(name) for name in STOPPING}

    def pass_on(number: int, _: Any) -> None:
        nonlocal asked
        if stop.signal:
            if time.monotonic() - asked > ONE_REQUEST:
                process.kill()
            return
        asked = time.monotonic()
        stop.signal = number
        with suppress(OSError):
            connection.send(number)
        os.write(2, b"\nstopping after this step, with a checkpoint; again: at once\n")

    # Ignored by the new process too: a terminal and a service manager signal both of us, and it
    # is to hear of that once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process.start()
        for name in STOPPING:
            signal.signal(name, pass_on)
        yield stop
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _train_and_send(recipe: Recipe, output: Path, connection: Connection) -> None:
    for name in STOPPING:
        signal.signal(name, signal.SIG_IGN)
    stop = Stop()
    threading.Thread(target=_listen, args=(connection, stop), daemon=True).start()
    with shown() as (report, on_step):
        try:
            connection.send(train(recipe, output, Control(report, on_step, stop), again="resume"))
        except Interrupted:
            return  # the one who asked for it knows
        except (TrainingError, AdapterError) as error:
            connection.send(error)


def _listen(connection: Connection, stop: Stop) -> None:
    """Stop the run when asked, and when the one who would ask is gone."""
    try:
        stop.signal = connection.recv()
    except (EOFError, OSError):
        stop.signal = signal.SIGHUP
