"""What publishing would say of an adapter's folder: everything at once, and nothing is published.

The folder is copied aside and goes the way of `publish`, up to the store's object.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from adapters.chat_form.judge import JudgedForm
from adapters.checkpoint import largest_weights
from adapters.checkpoint.base import Base, read_base
from adapters.checkpoint.pairs import pair_tensors
from adapters.checkpoint.peft_config import PeftConfig, read_peft_config
from adapters.checkpoint.tensors import TensorsMalformed, read_tensors
from adapters.checkpoint.trainers import guess_trainer
from adapters.errors import CheckpointInvalid, Problem
from adapters.publish import Examined, Rules, examined_copy
from adapters.sources import fetched
from adapters.store import Store, digest_of
from adapters.store.files import WEIGHTS

# Warnings that say what publishing changes.
CHANGES = frozenset({"converted_from_mlx", "tensors_renamed"})


@dataclass(slots=True)
class Inspection:
    """`digest` is that of the object that publishing would store; None if it is refused.

    `ranks`, `scales` and `modules` count the adapted modules by rank, by scale (alpha over rank)
    and by kind; `dtypes` counts tensors. They are as far as the files can be read.
    """

    trainer: str
    base: str
    claimed_base: str | None = None
    digest: str | None = None
    rank: int | None = None
    alpha: float | None = None
    rslora: bool = False
    ranks: dict[int, int] = field(default_factory=dict)
    scales: dict[float, int] = field(default_factory=dict)
    modules: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    size_bytes: int = 0
    chat_form: dict[str, str] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()

    @property
    def publishable(self) -> bool:
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON document; each warning is either a change or a doubt."""
        said = {
            name: [asdict(each) for each in found]
            for name, found in (
                ("problems", self.problems),
                ("changes", [each for each in self.warnings if each.code in CHANGES]),
                ("warnings", [each for each in self.warnings if each.code not in CHANGES]),
            )
        }
        return {"publishable": self.publishable} | asdict(self) | said


def inspect(source: Path | str, rules: Rules) -> Inspection:
    """Everything that can be said of the adapter at `source` (adapters/sources.py) for a base.

    Raises an AdapterError where there is no folder, or no base, to look at.
    """
    base = read_base(rules.base)
    with tempfile.TemporaryDirectory(prefix="lorry-inspect-") as temporary:
        store = Store(Path(temporary))
        into = store.root / "tmp"
        with fetched(source, into, largest_weights(base), rules.schemes) as found:
            report = Inspection(guess_trainer(found.folder), rules.base_name or base.name)
            try:
                with examined_copy(found.folder, base, store=store, rules=rules) as examined:
                    _describe(report, examined, base, rules.max_rank)
            except CheckpointInvalid as error:  # of a form that can't be converted
                report.problems = tuple(error.problems)
    return report


def _describe(report: Inspection, examined: Examined, base: Base, max_rank: int) -> None:
    report.problems, report.warnings = examined.problems, examined.warnings
    if report.publishable:
        report.digest = digest_of(examined.staged.hashes)
    report.chat_form = _describe_form(examined.own)
    config, _ = read_peft_config(examined.staged.path, max_rank)
    if config is not None:
        report.claimed_base, report.rslora = config.base_name, config.use_rslora
        report.rank, report.alpha = config.largest_rank, config.alpha
    with suppress(OSError, TensorsMalformed):
        _count(report, examined.staged.path / WEIGHTS, base, config)


def _count(report: Inspection, weights: Path, base: Base, config: PeftConfig | None) -> None:
    report.size_bytes = weights.stat().st_size
    tensors = read_tensors(weights)
    report.dtypes = _counted(each.dtype for each in tensors.values())
    pairs, _ = pair_tensors(tensors, base)
    report.modules = _counted(module.rpartition(".")[2] for module in pairs)
    if config is not None:
        report.ranks = _counted(map(config.rank_of, pairs))
        report.scales = _counted(round(config.scale_of(module), 6) for module in pairs)


def _counted(values: Iterable[Any]) -> dict[Any, int]:
    return dict(sorted(Counter(values).items()))


def _describe_form(own: JudgedForm) -> dict[str, str]:
    if own.form is None:
        return {}
    template = {"template": "its own"} if own.form.templates else {}
    return template | ({"end_token": own.end} if own.end else {})
