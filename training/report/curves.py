"""The curves of a run: training and validation loss, the metric, the kept checkpoint."""

import html
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from statistics import fmean
from typing import Any, Final

from markupsafe import Markup
from matplotlib.figure import Figure
from plotly.subplots import make_subplots

from training.report.page import BLUE, GREEN, GREY, ORANGE, style, to_div

LEAST_TO_SMOOTH: Final = 20  # points; fewer are legible as they are
_WINDOWS: Final = 20  # a smoothed value is the mean of one part in so many of the run
_FAINT: Final = 0.35
_HEIGHT: Final = 340  # pixels of a chart
_NUMBER: Final = ".4~r"  # four significant digits, in d3's notation


@dataclass(frozen=True, slots=True)
class Line:
    """Values by step; NaN where a value is not finite."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True, slots=True)
class Curves:
    """What was measured during a run. `smoothed` is empty if there are few points."""

    train: Line
    smoothed: Line
    validation: Line
    metric: Line
    metric_name: str  # empty without a metric
    best_step: int | None


def read_curves(provenance: dict[str, Any]) -> Curves:
    """The curves in a run's provenance."""
    curve = provenance.get("curve") or {}
    train = _line((step, loss) for step, loss in curve.get("train", ()))
    measured: Sequence[Any] = curve.get("validation", ())
    smoothed = list(_smooth(train.values)) if len(train.values) >= LEAST_TO_SMOOTH else []
    return Curves(
        train=train,
        smoothed=Line(train.steps[: len(smoothed)], smoothed),
        validation=_line((each[0], each[1]) for each in measured),
        metric=_line((each[0], each[2]) for each in measured if each[2] is not None),
        metric_name=metric_name(provenance),
        best_step=provenance.get("best_step"),
    )


def metric_name(provenance: dict[str, Any]) -> str:
    """The name of what the answers were judged by; empty where only the loss was."""
    metric = provenance.get("metric")
    return metric["name"] if metric else ""


def _line(points: Iterable[tuple[int, float | None]]) -> Line:
    line = Line([], [])
    for step, value in points:
        line.steps.append(step)
        line.values.append(value if value is not None and isfinite(value) else nan)
    return line


def _smooth(values: Sequence[float]) -> Iterator[float]:
    """A centred moving average, which does not lag behind; narrower at the ends."""
    widest = max(1, len(values) // (2 * _WINDOWS))
    for at in range(len(values)):
        half = min(widest, at, len(values) - 1 - at)
        near = [value for value in values[at - half : at + half + 1] if isfinite(value)]
        yield fmean(near) if near else nan


def curves_chart(curves: Curves) -> Markup:
    """The curves for a page."""
    rows = 2 if curves.metric.steps else 1
    chart = make_subplots(rows=rows, shared_xaxes=True, vertical_spacing=0.08)
    for name, line, drawn in _lines(curves):
        chart.add_scatter(
            x=line.steps,
            y=line.values,
            name=html.escape(name),
            hovertemplate=f"%{{y:{_NUMBER}}}",
            row=2 if line is curves.metric else 1,
            col=1,
            **drawn,
        )
    if curves.best_step is not None:
        chart.add_vline(curves.best_step, line={"color": GREY, "dash": "dash"})
        chart.add_annotation(x=curves.best_step, y=1.03, yref="paper", text="kept", showarrow=False)
    chart.update_xaxes(title="step", row=rows)
    chart.update_yaxes(title="loss", row=1)
    if rows == 2:
        chart.update_yaxes(title=html.escape(curves.metric_name), row=2)
    return to_div(chart, _title(curves), rows * _HEIGHT, hovermode="x unified")


def _lines(curves: Curves) -> Iterator[tuple[str, Line, dict[str, Any]]]:
    """Name, line and style in plotly's terms; raw training loss stands behind the smoothed one."""
    dots = {"mode": "lines+markers", "marker_size": 7}
    raw_opacity = _FAINT if curves.smoothed.steps else 1.0
    yield "training", curves.train, {"line_color": BLUE, "mode": "lines", "opacity": raw_opacity}
    if curves.smoothed.steps:
        yield "training, smoothed", curves.smoothed, {"line_color": BLUE, "mode": "lines"}
    if curves.validation.steps:
        yield "validation", curves.validation, {"line_color": ORANGE, **dots}
    if curves.metric.steps:
        name = f"{curves.metric_name} on validation"
        yield name, curves.metric, {"line_color": GREEN, **dots}


def curves_picture(curves: Curves) -> Figure:
    """The curves as a picture of matplotlib."""
    rows = 2 if curves.metric.steps else 1
    picture = Figure(figsize=(8, 1 + 3.5 * rows), layout="constrained")
    axes = picture.subplots(rows, sharex=True, squeeze=False)[:, 0]
    for name, line, drawn in _lines(curves):
        axes[1 if line is curves.metric else 0].plot(
            line.steps,
            line.values,
            color=drawn["line_color"],
            alpha=drawn.get("opacity", 1.0),
            marker="o" if "markers" in drawn["mode"] else None,
            markersize=4,
            label=name,
        )
    for index, each in enumerate(axes):
        if curves.best_step is not None:
            label = f"kept: step {curves.best_step}"
            each.axvline(curves.best_step, color=GREY, linestyle="--", label=label)
        title = "" if index else _title(curves)
        x = "step" if index == rows - 1 else ""
        style(each, title, x, curves.metric_name if index else "loss")
    return picture


def _title(curves: Curves) -> str:
    return "Loss" if not curves.metric.steps else f"Loss, and {curves.metric_name} on validation"
