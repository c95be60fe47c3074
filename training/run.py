"""A run: check everything, train once, keep the result under the digest of its inputs.

A finished identical run is reused. A run works in a hidden folder and renames its result at the
end, so that a killed run leaves nothing that looks finished, but checkpoints to go on from. Knows
nothing of stores.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, Literal

from training.card import write_card
from training.errors import Diverged, InputError, Interrupted, RunFailed, RunUnfinished
from training.inputs import Inputs, encode_inputs, read_inputs
from training.progress import Control
from training.qlora import prepare_process
from training.recipe import Recipe

PROVENANCE: Final = "lorry.json"
VALIDATION: Final = "validation.json"  # each example's loss and score; not published
POLL_SECONDS: Final = 0.2
# What to do with an unfinished run of the same inputs.
Again = Literal["refuse", "resume", "restart"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished adapter's folder and provenance, and whether an earlier run made it."""

    folder: Path
    base_folder: Path
    provenance: dict[str, Any]
    reused: bool


def train(recipe: Recipe, output: Path, control: Control, *, again: Again = "refuse") -> Trained:
    """Train the recipe's adapter or reuse it; raises a TrainingError."""
    inputs = read_inputs(recipe, control.report)
    short = inputs.digest()[:12]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _locked(output / f".{short}.lock", control):
            folder, reused = _train_once(inputs, output, short, control, again)
    except OSError as error:
        raise InputError(
            f"{error.filename or output}: {error.strerror}", "give another --output"
        ) from error
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    return Trained(folder, inputs.base.folder, provenance, reused)


def _train_once(
    inputs: Inputs, output: Path, short: str, control: Control, again: Again
) -> tuple[Path, bool]:
    """The run's folder, and whether it was there: a name takes no part in what is the same run."""
    found = next(output.glob(f"*-{short}/{PROVENANCE}"), None)
    if found:
        control.report(f"already trained: {found.parent}")
        # Left if the process was killed right after it finished.
        shutil.rmtree(output / f".{short}.partial", ignore_errors=True)
        return found.parent, True
    folder = output / f"{inputs.recipe.name}-{short}"
    _train_into(output / f".{short}.partial", folder, inputs, control, again)
    return folder, False


def _train_into(
    partial: Path, folder: Path, inputs: Inputs, control: Control, again: Again
) -> None:
    prepare_process()
    from training.loop import ADAPTER, find_checkpoint, train_adapter
    from training.provenance import describe_run, write_json
    from training.report.run_report import write_report
    from training.trainers import check_reporters
    from training.watch import sync_folder

    recipe = inputs.recipe
    check_reporters(control.report_to)
    # Not among the checkpoints, which go at the end.
    os.environ.setdefault(
        "TENSORBOARD_LOGGING_DIR", str(folder.parent / "tensorboard" / folder.name)
    )
    _settle_unfinished(partial, find_checkpoint(partial), control, again)
    sets, encoded = encode_inputs(inputs, control.report)
    partial.mkdir(exist_ok=True)
    control.report(
        f"training {recipe.name} on {inputs.base.name}, {len(sets.train)} examples, "
        f"{encoded['train'].tokens:,} tokens"
    )
    started = datetime.now(UTC)
    try:
        outcome = train_adapter(recipe, inputs.base, sets, partial, control)
        provenance = describe_run(inputs, encoded, outcome, started)
        write_json(partial / ADAPTER / PROVENANCE, provenance)
        write_card(partial / ADAPTER, provenance)
        write_report(partial / ADAPTER, provenance)
        scores = {"loss": outcome.example_losses, "metric": outcome.example_scores}
        write_json(partial / ADAPTER / VALIDATION, scores)
        sync_folder(partial / ADAPTER)
        (partial / ADAPTER).rename(folder)
    except Diverged:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    except (RuntimeError, ValueError, OSError) as error:
        kept = find_checkpoint(partial)
        told = f"--resume goes on from {kept.name}" if kept else "nothing was kept"
        raise RunFailed(f"training {recipe.name} failed: {error}", told) from error
    shutil.rmtree(partial, ignore_errors=True)
    if control.stop.signal:
        raise Interrupted(
            f"stopped after the last step; {folder} is finished",
            "the same command finds it",
            control.stop.signal,
        )


def _settle_unfinished(
    partial: Path, checkpoint: Path | None, control: Control, again: Again
) -> None:
    if checkpoint is None:
        if again == "resume":
            control.report("nothing to resume, starting at the beginning")
        shutil.rmtree(partial, ignore_errors=True)
        return
    step = checkpoint.name.rpartition("-")[2]
    if again == "refuse":
        raise RunUnfinished(
            f"the same run stopped after a checkpoint at step {step}",
            "go on with --resume, or begin anew with --restart",
        )
    if again == "restart":
        shutil.rmtree(partial)
    else:
        control.report(f"resuming after step {step}")


@contextmanager
def _locked(path: Path, control: Control) -> Iterator[None]:
    """Hold the run's lock: a second identical run waits, and then reuses the result."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            control.report("the same run is under way; waiting for it")
            _wait_for(file, control)
        yield


def _wait_for(file: IO[str], control: Control) -> None:
    while not control.stop.signal:
        time.sleep(POLL_SECONDS)
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
    raise Interrupted("stopped while the same run is under way", "wait for it", control.stop.signal)
