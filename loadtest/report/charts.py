"""The charts of a report as plotly figures: over time, distributions, adapters, a sweep.

Each function returns a `<div>` that needs `plotly_script` once on its page. Plotly reads tags in
texts: names that come from a server are escaped here.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs
from plotly.subplots import make_subplots

from loadtest.judge.knee import Point
from loadtest.statistics import percentile

BLUE, ORANGE, GREEN, PURPLE = "#2a6fdb", "#e0662f", "#17976b", "#8a4fd0"
GREY = "#7d8896"  # like the others readable on a light and on a dark page
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#c2477f", "#8f7a10")
_CLEAR, _PALE, _GRID = (f"rgba(128, 128, 128, {opacity})" for opacity in (0, 0.08, 0.25))
_OUTAGE = "rgba(224, 60, 50, 0.12)"
_HEIGHT, _ROW = 280, 22  # pixels of a chart, and of a bar
_LEAST = 1e-3  # a logarithmic axis has no zero
_NUMBER = ",.3~r"  # three significant digits, in d3's notation


class Series(NamedTuple):
    label: str
    values: Sequence[float | None]
    colour: str
    filled: bool = False


class Band(NamedTuple):
    """A span of the time axis, in seconds."""

    label: str
    begin: float
    end: float
    outage: bool = False


class Mark(NamedTuple):
    label: str
    at: float  # seconds


class Bar(NamedTuple):
    label: str
    p50: float
    p99: float
    note: str


def plotly_script() -> str:
    """The library itself, so that a page opens offline: about 4.8 MB of JavaScript."""
    return str(get_plotlyjs())


def over_time(
    title: str,
    unit: str,
    times: Sequence[float],
    series: Sequence[Series],
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over bins of equal length that begin at `times` (seconds)."""
    width = times[1] - times[0] if len(times) > 1 else 1.0
    chart = go.Figure()
    for each in series:
        chart.add_scatter(
            x=[time + width / 2 for time in times],
            y=each.values,
            name=each.label,
            line_color=each.colour,
            fill="tozeroy" if each.filled else "none",
            hovertemplate=f"%{{y:{_NUMBER}}} {unit}",
        )
    for index, band in enumerate(bands):
        shade = _OUTAGE if band.outage else (_CLEAR, _PALE)[index % 2]
        chart.add_vrect(band.begin, band.end, fillcolor=shade, layer="below", line_width=0)
        chart.add_annotation(
            x=band.begin, y=1, yref="paper", xanchor="left", text=band.label, showarrow=False
        )
    chart.add_scatter(
        x=[mark.at for mark in marks],
        y=[0] * len(marks),
        text=[html.escape(mark.label) for mark in marks],
        mode="markers",
        marker={"symbol": "triangle-up", "size": 10, "color": GREY},
        showlegend=False,
        hovertemplate="%{text} at %{x:.1f} s<extra></extra>",
    )
    chart.update_xaxes(title="seconds since the run began", range=[0, times[-1] + width])
    chart.update_yaxes(title=unit, rangemode="tozero")
    return _to_html(chart, title, hovermode="x unified")


def distribution(title: str, unit: str, groups: Mapping[str, Sequence[float]]) -> str:
    """The share of values up to each one, by group; a logarithmic axis, because of long tails."""
    chart = go.Figure()
    filled = {label: sorted(values) for label, values in groups.items() if values}
    for index, (label, ordered) in enumerate(filled.items()):
        line = [n / 2 for n in range(200)] + [99.7, 99.9, 100.0]
        for shares, mode in ((line, "lines"), ([50.0, 90.0, 99.0], "markers")):
            chart.add_scatter(
                x=[max(percentile(ordered, share / 100), _LEAST) for share in shares],
                y=shares,
                name=label,
                mode=mode,
                marker={"color": _COLOURS[index % len(_COLOURS)], "size": 8},
                showlegend=mode == "lines",
                hovertemplate=f"p%{{y}} %{{x:{_NUMBER}}} {unit}",
            )
    chart.update_xaxes(title=unit, type="log", dtick="D2")
    chart.update_yaxes(title="% of values", range=[0, 101])
    return _to_html(chart, title)


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """p50 in front of p99, a row for each."""
    names = [html.escape(row.label) for row in rows]
    chart = go.Figure()
    for name, values, opacity in (
        ("p99", [row.p99 for row in rows], 0.35),
        ("p50", [row.p50 for row in rows], 1.0),
    ):
        chart.add_bar(
            x=values,
            y=names,
            name=name,
            orientation="h",
            marker={"color": BLUE, "opacity": opacity},
            customdata=[row.note for row in rows],
            hovertemplate=f"%{{x:{_NUMBER}}} {unit}, %{{customdata}}",
        )
    short = [html.escape(_shorten(row.label)) for row in rows]
    chart.update_yaxes(
        type="category",  # or names such as 1 and 20 would be numbers
        tickvals=names,
        ticktext=short,
        autorange="reversed",
        automargin=True,
    )
    chart.update_xaxes(title=unit, rangemode="tozero")
    height = _HEIGHT // 2 + _ROW * len(rows)
    return _to_html(chart, title, height, barmode="overlay", hovermode="y unified")


def sweep(title: str, unit: str, points: Sequence[Point], knee: int | None) -> str:
    """Calls in time and p99 TTFT against the rate offered.

    Args:
        knee: index of the last point that the server keeps up with; None: it keeps up with none.
    """
    chart = make_subplots(rows=2, shared_xaxes=True, vertical_spacing=0.08)
    offered = [point.offered for point in points]
    for row, name, values, unit_of, style in (
        (1, "all that is offered", offered, unit, {"line": {"color": GREY, "dash": "dash"}}),
        (1, "reached", [point.reached for point in points], unit, {"line_color": BLUE}),
        (2, "TTFT p99", [point.ttft_p99_ms for point in points], "ms", {"line_color": ORANGE}),
    ):
        hover = f"%{{y:{_NUMBER}}} {unit_of} of %{{x:{_NUMBER}}} {unit} offered"
        chart.add_scatter(
            x=offered, y=values, name=name, hovertemplate=hover, row=row, col=1, **style
        )
    if knee is not None:
        at = offered[knee]
        chart.add_vline(at, line={"color": GREY, "dash": "dash"})
        chart.add_annotation(
            x=at, y=1.05, yref="paper", text=f"knee: {at:g} {unit}", showarrow=False
        )
    chart.update_xaxes(title=f"offered, {unit}", row=2)
    chart.update_yaxes(title=f"reached, {unit}", rangemode="tozero", row=1)
    chart.update_yaxes(title="TTFT p99, ms", type="log", dtick="D2", row=2)
    return _to_html(chart, title, 2 * _HEIGHT)


def _shorten(name: str) -> str:
    return name if len(name) <= 26 else f"{name[:12]}…{name[-12:]}"


def _to_html(chart: Any, title: str, height: int = _HEIGHT, **layout: Any) -> str:
    chart.update_layout(
        template="none",
        title={"text": html.escape(title), "font": {"size": 15}, "x": 0.01},
        font={"color": GREY},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        legend={"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"},
        margin={"l": 70, "r": 20, "t": 70, "b": 50},
        **layout,
    )
    for update in (chart.update_xaxes, chart.update_yaxes):
        update(gridcolor=_GRID, zerolinecolor=_GRID)
    options = {"displayModeBar": False, "responsive": True}
    size = f"{height}px"
    return str(chart.to_html(options, include_plotlyjs=False, full_html=False, default_height=size))
