"""A run: check everything, train once, keep the result under the digest of its inputs.

A finished identical run is reused. A run works in a hidden folder and renames it at the end, so
that a killed run leaves nothing that looks finished. Knows nothing of stores.
"""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from training.base import Base, find_base
from training.data.sets import DataSet, read_set, refuse_leaks
from training.data.tokens import Encoded, Tokenizer, encode_set, load_tokenizer, require_encoded
from training.errors import RunFailed
from training.provenance import PROVENANCE, describe_run, write_provenance
from training.recipe import Recipe

SETS: Final = ("train", "validation", "heldout")

Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Trained:
    """A finished adapter's folder and provenance, and whether an earlier run made it."""

    folder: Path
    base_folder: Path
    provenance: dict[str, Any]
    reused: bool


def train(recipe: Recipe, output: Path, report: Report) -> Trained:
    """Train the recipe's adapter or reuse it; raises a TrainingError."""
    sets = _read_sets(recipe, report)
    base = find_base(recipe.base, recipe.base_name)
    data = {name: found.digest() for name, found in sets.items()}
    digest = _digest_run(recipe, base, data)
    folder = output / f"{recipe.name}-{digest[:12]}"
    output.mkdir(parents=True, exist_ok=True)
    with _locked(output / f".{folder.name}.lock", report):
        if not folder.is_dir():
            partial = output / f".{folder.name}.partial"
            _train_into(partial, recipe, base, sets, data, report)
            partial.rename(folder)
            reused = False
        else:
            report(f"already trained: {folder}")
            reused = True
    provenance = json.loads((folder / PROVENANCE).read_text(encoding="utf-8"))
    return Trained(folder, base.folder, provenance, reused)


def _read_sets(recipe: Recipe, report: Report) -> dict[str, DataSet]:
    chosen = {name: found for name in SETS if (found := getattr(recipe.data, name)) is not None}
    sets = {name: read_set(sources) for name, sources in chosen.items()}
    for name in sets.keys() - {"train"}:
        refuse_leaks(sets["train"], sets[name])
    for warning in sets["train"].warnings():
        report(warning)
    return sets


def _encode_sets(
    recipe: Recipe, base: Base, sets: dict[str, DataSet], report: Report
) -> tuple[Tokenizer, dict[str, Encoded]]:
    """The sequences of what is trained on and of what is validated; raises DataInvalid."""
    tokenizer = load_tokenizer(base.folder, base.name)
    chosen = recipe.optimization
    encoded: dict[str, Encoded] = {
        name: encode_set(
            sets[name],
            tokenizer,
            chosen.max_length,
            completion_only=chosen.completion_only_loss,
        )
        for name in ("train", "validation")
        if name in sets
    }
    for name, found in encoded.items():
        require_encoded(found)
        for warning in found.warnings(tokenizer):
            report(warning if name == "train" else f"{name}: {warning}")
    return tokenizer, encoded


def _digest_run(recipe: Recipe, base: Base, data: dict[str, str]) -> str:
    decided_by = {"recipe": recipe.settings(), "base": base.facts(), "data": data}
    return hashlib.sha256(json.dumps(decided_by, sort_keys=True).encode()).hexdigest()


def _train_into(
    partial: Path,
    recipe: Recipe,
    base: Base,
    sets: dict[str, DataSet],
    data: dict[str, str],
    report: Report,
) -> None:
    from training.qlora import shorten_spinning, train_adapter

    shorten_spinning()
    tokenizer, encoded = _encode_sets(recipe, base, sets, report)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        train = encoded["train"]
        validation = encoded["validation"].rows if "validation" in encoded else []
        report(
            f"training {recipe.name} on {base.name}, {len(train.rows)} examples, "
            f"{train.tokens:,} tokens"
        )
        outcome = train_adapter(
            recipe, base, tokenizer.inner, train.rows, validation, partial, report
        )
        write_provenance(partial, describe_run(recipe, base, data, outcome))
    except (RuntimeError, ValueError, OSError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunFailed(
            f"training {recipe.name} failed: {error}", "see the lines above; nothing was kept"
        ) from error


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """Hold the run's lock: a second identical run waits, and then reuses the result."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("the same run is under way; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
