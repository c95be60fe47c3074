"""`lorry.json`: an adapter's provenance. It lies beside the weights and travels with them."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import torch

from training.data.tokens import Encoded
from training.inputs import Inputs
from training.loop import Outcome

PACKAGES: Final = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets")
POINTS: Final = 200  # of the training curve; a longer one is averaged


def describe_run(
    inputs: Inputs, encoded: Mapping[str, Encoded], outcome: Outcome, started: datetime
) -> dict[str, Any]:
    """The recipe, base, data, machine, packages and results of a run; no path of the machine."""
    recipe, metric = inputs.recipe, inputs.metric
    return {
        "name": recipe.name,
        "method": recipe.method,
        "base": inputs.base.facts(),
        "data": {name: _describe_set(inputs, name, encoded.get(name)) for name in inputs.sets},
        "recipe": recipe.settings(),
        "seed": recipe.optimization.seed,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe_machine(),
        "packages": {name: version(name) for name in PACKAGES},
        "compute_dtype": outcome.compute_dtype,
        "trainable_parameters": outcome.trainable_parameters,
        "steps": outcome.steps,
        "epochs": round(outcome.epochs, 3),
        "train_seconds": outcome.train_seconds,
        "tokens_per_second": outcome.tokens_per_second,
        "peak_memory_bytes": outcome.peak_memory_bytes,
        "train_loss": outcome.train_loss,
        "validation_loss": outcome.validation_loss,
        "metric": metric and {"name": metric.name, "digest": metric.digest},
        "validation_metric": outcome.validation_metric,
        "best_step": outcome.best_step,
        "curve": {
            "train": _thin(outcome.curve.train),
            "validation": [list(each) for each in outcome.curve.validation],
        },
        "warnings": outcome.warnings,
    }


def describe_machine() -> str:
    """The hardware in words: the GPU, or the processor and its cores, and the memory."""
    gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    if torch.cuda.is_available():
        unit = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    else:
        unit = f"{len(os.sched_getaffinity(0))} cores of {_processor()}"
    return f"{unit}, {gib:.0f} GiB of memory, {platform.system()}"


def write_json(path: Path, value: Any) -> None:
    """Write a document for people and programs."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _describe_set(inputs: Inputs, name: str, encoded: Encoded | None) -> dict[str, Any]:
    found = inputs.sets[name]
    counts: dict[str, Any] = {
        "digest": found.digest(),
        "records": found.records,
        "examples": len(found.examples),
        "forms": dict(found.forms),
    }
    if encoded:
        counts |= {"tokens": encoded.tokens, "cut": len(encoded.cut)}
    return counts


def _thin(points: Sequence[tuple[int, float]]) -> list[list[float]]:
    """At most POINTS points, each the mean of those it stands for."""
    size = -(-len(points) // POINTS) or 1
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [[group[-1][0], round(fmean(loss for _, loss in group), 6)] for group in groups]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
