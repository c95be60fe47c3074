"""The report of a sweep: a terminal table, sweep.html, sweep.png and sweep.json."""

import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import plotly.graph_objects as go
from markupsafe import Markup
from matplotlib.figure import Figure
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from training.errors import RunFailed
from training.report.curves import Line, read_curves
from training.report.page import (
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    MISSING,
    figure,
    memory,
    render,
    style,
    to_div,
    write_picture,
    write_text,
)
from training.sweep.compare import Comparison, Row, verdict
from training.sweep.grid import Setting, short

_HEIGHT, _ROW = 340, 30  # pixels of a chart, and of a row in one
_WIDTH: Final = 160  # characters
_MARKS: Final = {"best": GREEN, "within noise": BLUE, "worse": GREY}


def sweep_folder(output: Path, settings: Sequence[Setting]) -> Path:
    """The folder for the report of these settings, beside the runs' own folders."""
    compared = [[setting.values, setting.recipe.model_dump(mode="json")] for setting in settings]
    digest = hashlib.sha256(json.dumps(compared).encode()).hexdigest()
    return output / f"{settings[0].recipe.name}-sweep-{digest[:12]}"


def write_sweep(comparison: Comparison, folder: Path) -> None:
    """Write sweep.json, sweep.png and sweep.html; raises RunFailed if that can't be."""
    try:
        _write_files(comparison, folder)
    except OSError as error:
        raise RunFailed(
            f"{folder}: {error.strerror}", "the runs are kept: make room, and sweep again"
        ) from error


def _write_files(comparison: Comparison, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    document = as_document(comparison)
    write_text(folder / "sweep.json", json.dumps(document, indent=2, allow_nan=False) + "\n")
    write_picture(folder / "sweep.png", _picture(comparison))
    page = render(
        "sweep.html.j2",
        comparison=comparison,
        name=comparison.best.setting.recipe.name,
        base=comparison.best.setting.recipe.base_name,
        said=verdict(comparison),
        keys=[short(key) for key in comparison.best.setting.values],
        rows=[(row, mark(row, comparison), _cells(row, comparison)) for row in comparison.rows],
        columns=_columns(comparison),
        charts=[_scores_chart(comparison), _curves_chart(comparison)],
    )
    write_text(folder / "sweep.html", page)


def as_document(comparison: Comparison) -> dict[str, Any]:
    """The sweep as JSON; folders are named from the folder of the runs."""
    best, second, cheapest = comparison.best, comparison.runner_up, comparison.cheapest
    return {
        "name": best.setting.recipe.name,
        "measure": comparison.measure,
        "higher_is_better": comparison.higher_is_better,
        "validation_examples": comparison.examples,
        "verdict": verdict(comparison),
        "best": best.setting.values,
        "runner_up": second and second.setting.values,
        "exceeds_noise": second and not second.within_noise,
        "cheapest_within_noise": cheapest.setting.values,
        "runs": [_run_document(row, comparison) for row in comparison.rows],
    }


def _run_document(row: Row, comparison: Comparison) -> dict[str, Any]:
    facts = row.trained.provenance if row.trained else {}
    behind = row.behind
    return {
        "setting": row.setting.values,
        "status": mark(row, comparison),
        "error": row.error,
        "folder": row.trained and row.trained.folder.name,
        "reused": row.trained and row.trained.reused,
        "score": row.score,
        "behind_best": behind and {"mean": behind.mean, "low": behind.low, "high": behind.high},
        "validation_loss": _finite(facts.get("validation_loss")),
        "warnings": facts.get("warnings", []),
        **{key: facts.get(key) for key in _MEASURED},
    }


_MEASURED: Final = (
    *("trainable_parameters", "steps", "best_step", "train_seconds", "tokens_per_second"),
    "peak_memory_bytes",
)


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def mark(row: Row, comparison: Comparison) -> str:
    """`best`, `within noise`, `worse` or `failed`."""
    if row.score is None:
        return "failed"
    if row is comparison.best:
        return "best"
    return "within noise" if row.within_noise else "worse"


def print_sweep(comparison: Comparison) -> None:
    """Print the table and what follows from it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_WIDTH)  # a file folds no lines
    console.print(_table(comparison))
    for line in verdict(comparison):
        console.print(line, markup=False, soft_wrap=True)
    for row in comparison.rows:
        if row.error:
            said = f"failed: {row.setting.label}: {row.error}"
            console.print(said, style="red", markup=False, soft_wrap=True)


def _table(comparison: Comparison) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for key in comparison.best.setting.values:
        table.add_column(Text(short(key)), justify="right", overflow="fold")
    for name in _columns(comparison):
        table.add_column(Text(name), justify="right")
    table.add_column("")
    for row in comparison.rows:
        said = mark(row, comparison)
        cells = [*row.setting.values.values(), *_cells(row, comparison), said]
        bold = "bold" if said == "best" else "dim" if said == "failed" else ""
        table.add_row(*map(Text, cells), style=bold)
    return table


def _columns(comparison: Comparison) -> list[str]:
    loss = ["loss"] if comparison.higher_is_better else []
    names = ("behind the best", "kept step", "parameters", "seconds", "memory")
    return [comparison.measure, *loss, *names]


def _cells(row: Row, comparison: Comparison) -> list[str]:
    facts = row.trained.provenance if row.trained else {}
    loss = [figure(facts.get("validation_loss"))] if comparison.higher_is_better else []
    behind, step = row.behind, facts.get("best_step") or facts.get("steps")
    return [
        MISSING if row.score is None else f"{row.score:.4f}",
        *loss,
        f"{behind.mean:.4f} [{behind.low:.4f}, {behind.high:.4f}]" if behind else MISSING,
        MISSING if step is None else f"{step:,}",
        f"{row.parameters:,}" if row.trained else MISSING,
        figure(facts.get("train_seconds")),
        memory(facts.get("peak_memory_bytes")),
    ]


@dataclass(frozen=True, slots=True)
class _Dot:
    """A row's score and the interval where it would lie on other validation examples."""

    label: str
    mark: str
    score: float
    low: float
    high: float


def _dots(comparison: Comparison) -> list[_Dot]:
    best = comparison.best.score or 0.0
    sign = -1 if comparison.higher_is_better else 1
    dots = []
    for row in comparison.rows:
        if row.score is not None:
            behind = (row.behind.low, row.behind.high) if row.behind else (0.0, 0.0)
            low, high = sorted(best + sign * each for each in behind)
            dots.append(_Dot(row.setting.label, mark(row, comparison), row.score, low, high))
    return dots


def _curves(comparison: Comparison) -> list[tuple[str, Line]]:
    """Of each run the measure on validation by step; the best ones, as many as are legible."""
    found = []
    for row in comparison.rows[: len(COLOURS)]:
        if row.trained:
            curves = read_curves(row.trained.provenance)
            line = curves.metric if comparison.higher_is_better else curves.validation
            found.append((row.setting.label, line))
    return found


def _scores_chart(comparison: Comparison) -> Markup:
    chart = go.Figure()
    dots = _dots(comparison)
    for name, colour in _MARKS.items():
        chosen = [dot for dot in dots if dot.mark == name]
        chart.add_scatter(
            x=[dot.score for dot in chosen],
            y=[html.escape(dot.label) for dot in chosen],
            error_x={
                "array": [dot.high - dot.score for dot in chosen],
                "arrayminus": [dot.score - dot.low for dot in chosen],
            },
            mode="markers",
            marker={"color": colour, "size": 11},
            name=name,
            hovertemplate="%{x:.4~r}",
        )
    chart.add_vline(comparison.best.score, line={"color": GREEN, "dash": "dash"})
    order = [html.escape(dot.label) for dot in dots]
    chart.update_yaxes(type="category", categoryorder="array", categoryarray=order[::-1])
    chart.update_xaxes(title=html.escape(comparison.measure))
    return to_div(chart, _scores_title(comparison), _HEIGHT // 2 + _ROW * len(dots))


def _scores_title(comparison: Comparison) -> str:
    better = "higher" if comparison.higher_is_better else "lower"
    interval = "95 % interval of the difference from the best"
    return f"{comparison.measure} on validation, {better} is better; {interval}"


def _curves_chart(comparison: Comparison) -> Markup:
    chart = go.Figure()
    for colour, (label, line) in zip(COLOURS, _curves(comparison), strict=False):
        chart.add_scatter(
            x=line.steps,
            y=line.values,
            name=html.escape(label),
            line_color=colour,
            mode="lines+markers",
            hovertemplate="%{y:.4~r}",
        )
    chart.update_xaxes(title="step")
    chart.update_yaxes(title=html.escape(comparison.measure))
    legend = {"x": 1.02, "y": 1}  # beside the chart: there may be many
    return to_div(chart, _curves_title(comparison), _HEIGHT, hovermode="x unified", legend=legend)


def _curves_title(comparison: Comparison) -> str:
    shown, runs = len(_curves(comparison)), sum(row.score is not None for row in comparison.rows)
    some = f", the best {shown} of {runs}" if shown < runs else ""
    return f"{comparison.measure} on validation by step{some}"


def _picture(comparison: Comparison) -> Figure:
    dots = _dots(comparison)
    picture = Figure(figsize=(12, max(4.0, 1.6 + 0.35 * len(dots))), layout="constrained")
    left, right = picture.subplots(1, 2)
    for at, dot in enumerate(dots):
        left.errorbar(
            [dot.score],
            [at],
            xerr=[[dot.score - dot.low], [dot.high - dot.score]],
            fmt="o",
            capsize=3,
            color=_MARKS[dot.mark],
        )
    left.axvline(dots[0].score, color=GREEN, linestyle="--", linewidth=1)
    left.set_yticks(range(len(dots)), [dot.label for dot in dots], parse_math=False)
    left.invert_yaxis()
    style(left, "green: the best; blue: within noise of it", comparison.measure, "")
    for colour, (label, line) in zip(COLOURS, _curves(comparison), strict=False):
        right.plot(line.steps, line.values, color=colour, marker="o", markersize=4, label=label)
    style(right, _curves_title(comparison), "step", comparison.measure)
    picture.suptitle(_scores_title(comparison), fontsize=11, parse_math=False)
    return picture
