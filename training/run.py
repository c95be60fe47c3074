"""A run: check everything, train once, keep the result under the digest of its inputs.

A finished identical run is reused. A run works in a hidden folder and renames its result at the
end, so that a killed run leaves nothing that looks finished, but checkpoints to go on from. Knows
nothing of stores.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from training.card import write_card
from training.errors import Interrupted, RunFailed, RunUnfinished, TrainingError
from training.inputs import Inputs, encode_inputs, read_inputs
from training.progress import Control
from training.qlora import prepare_process
from training.recipe import Recipe

PROVENANCE: Final = "lorry.json"
VALIDATION: Final = "validation.json"  # each example's loss and score; not published
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
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output / f".{short}.lock", control):
        # The name takes no part: another one finds the same run.
        folder = next(output.glob(f"*-{short}"), None)
        reused = folder is not None
        if folder is None:
            folder = output / f"{recipe.name}-{short}"
            _train_into(output / f".{short}.partial", folder, inputs, control, again)
        else:
            control.report(f"already trained: {folder}")
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    return Trained(folder, inputs.base.folder, provenance, reused)


def _train_into(
    partial: Path, folder: Path, inputs: Inputs, control: Control, again: Again
) -> None:
    prepare_process()
    from training.loop import ADAPTER, find_checkpoint, train_adapter
    from training.provenance import describe_run, write_json
    from training.trainers import check_reporters

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
        scores = {"loss": outcome.example_losses, "metric": outcome.example_scores}
        write_json(partial / ADAPTER / VALIDATION, scores)
        (partial / ADAPTER).rename(folder)
    except Interrupted:
        raise
    except (RuntimeError, ValueError, OSError, TrainingError) as error:
        raise _give_up(error, recipe, partial, find_checkpoint(partial)) from error
    shutil.rmtree(partial, ignore_errors=True)


def _give_up(
    error: Exception, recipe: Recipe, partial: Path, checkpoint: Path | None
) -> TrainingError:
    """The error to raise: a run that may go on keeps its checkpoint, any other leaves nothing."""
    if isinstance(error, TrainingError) or checkpoint is None:
        shutil.rmtree(partial, ignore_errors=True)
    if isinstance(error, TrainingError):
        return error
    kept = f"--resume goes on from {checkpoint.name}" if checkpoint else "nothing was kept"
    return RunFailed(f"training {recipe.name} failed: {error}", f"see the lines above; {kept}")


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
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
