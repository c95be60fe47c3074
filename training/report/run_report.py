"""The report of a run, in its folder: curves.png, and report.html, which opens offline.

It is written from the run's provenance alone.
"""

from pathlib import Path
from typing import Any, Final

from training.report.curves import Curves, curves_chart, curves_picture, metric_name, read_curves
from training.report.page import MISSING, figure, memory, render, write_picture, write_text

PICTURE: Final = "curves.png"
PAGE: Final = "report.html"


def write_report(folder: Path, provenance: dict[str, Any]) -> None:
    """Write the report into a run's folder.

    Args:
        provenance: as in lorry.json; what it lacks is shown as a dash or left out.

    Raises:
        OSError: a file can't be written; nothing of it is left.
    """
    curves = read_curves(provenance)
    write_picture(folder / PICTURE, curves_picture(curves))
    page = render(
        "run.html.j2",
        name=provenance["name"],
        base=provenance["base"]["name"],
        kept=what_was_kept(provenance),
        warnings=provenance.get("warnings") or [],
        tiles=_tiles(provenance),
        chart=curves_chart(curves) if curves.train.steps else None,
        sections=_sections(provenance),
    )
    write_text(folder / PAGE, page)


def _sections(provenance: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """What determined the run, and how it went."""
    found = {key.capitalize(): provenance.get(key) or {} for key in ("recipe", "data", "base")}
    found["Run"] = {key: provenance[key] for key in _RUN if key in provenance}
    return [(title, facts) for title, facts in found.items() if facts]


_RUN: Final = ("started", "ended", "machine", "compute_dtype", "epochs", "packages")


def what_was_kept(provenance: dict[str, Any]) -> str:
    """Which checkpoint the adapter is, and why, in one or two sentences."""
    curves = read_curves(provenance)
    steps, best = provenance.get("steps"), curves.best_step
    if not curves.validation.steps:
        return f"The last step, {steps}, was kept: no validation set says which is better."
    if best is None:
        return f"The last step, {steps}, was kept."
    found = f"Step {best} of {steps} was kept: the {_measure(curves)} of "
    found += f"{len(curves.validation.steps)} evaluations on validation."
    if best < curves.validation.steps[-1]:
        found += f" At step {curves.validation.steps[-1]} it was {_last(curves)}."
    return found


def _measure(curves: Curves) -> str:
    if curves.metric.steps:
        at = dict(zip(curves.metric.steps, curves.metric.values, strict=True))
        return f"best {curves.metric_name} ({figure(at.get(curves.best_step or 0))})"
    at = dict(zip(curves.validation.steps, curves.validation.values, strict=True))
    return f"lowest loss ({figure(at.get(curves.best_step or 0))})"


def _last(curves: Curves) -> str:
    return figure((curves.metric if curves.metric.steps else curves.validation).values[-1])


def _tiles(provenance: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, unit) of the figures that matter most."""
    metric = metric_name(provenance)
    size = provenance.get("trainable_parameters")
    found = [
        (f"{metric} on validation", figure(provenance.get("validation_metric")), ""),
        ("validation loss", figure(provenance.get("validation_loss")), ""),
        ("training loss at the end", figure(provenance.get("train_loss")), ""),
        ("trained", figure(provenance.get("train_seconds")), "s"),
        ("speed", figure(provenance.get("tokens_per_second")), "tokens/s"),
        ("peak memory", memory(provenance.get("peak_memory_bytes")), ""),
        ("trainable parameters", MISSING if size is None else f"{size:,}", ""),
    ]
    return found if metric else found[1:]
