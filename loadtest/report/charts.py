"""The charts of a report, each as inline SVG: over time, distributions, adapters, a sweep.

Whoever shows them needs report.css beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element

from loadtest.report.figures import figure
from loadtest.report.svg import (
    BOTTOM,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Scale,
    add,
    canvas,
    grid_x,
    grid_y,
    legend,
    linear,
    logarithmic,
    path,
    render,
)
from loadtest.statistics import percentile

HEIGHT = 250.0
ROW = 22.0  # of a bar
NAME = 200.0  # room for a bar's name
_POINTS = 200  # of a distribution's line


@dataclass(frozen=True, slots=True)
class Series:
    label: str
    values: Sequence[float | None]
    colour: str  # c1 to c6
    filled: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of time, as seconds of the chart's axis."""

    label: str
    begin: float
    end: float
    outage: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    label: str
    at: float


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    p50: float
    p99: float
    tip: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """One step of a sweep. Rates of one unit; None: no call had a first token."""

    offered: float
    reached: float
    ttft_p99_ms: float | None


def colour(index: int) -> str:
    return f"c{index % 6 + 1}"


def over_time(
    title: str,
    unit: str,
    times: Sequence[float],
    series: Sequence[Series],
    bands: Sequence[Band] = (),
    marks: Sequence[Mark] = (),
) -> str:
    """Lines over bins that begin at `times` (seconds) and are all as long as the first one."""
    width = times[1] - times[0] if len(times) > 1 else 1.0
    bottom = HEIGHT - BOTTOM
    x = Scale(0.0, times[-1] + width, LEFT, WIDTH - RIGHT, count=10)
    y = linear([v for each in series for v in each.values if v is not None], bottom, TOP + 14)
    root = canvas(title, HEIGHT)
    _bands(root, bands, x, bottom)
    grid_y(root, y, unit)
    grid_x(root, x, "seconds since the run began", bottom, bottom)
    for each in series:
        _line(root, each, [time + width / 2 for time in times], x, y)
    for mark in marks:
        at = x(mark.at)
        add(root, "line", x1=at, x2=at, y1=TOP, y2=bottom, class_="mark")
        flag = add(root, "path", d=f"M{at:.1f} {bottom:.1f} l-5 8 h10 Z", class_="flag")
        add(flag, "title", f"{mark.label} at {mark.at:.1f} s")
    _tips(root, times, width, series, unit, x, bottom)
    legend(root, [(each.label, each.colour) for each in series])
    return render(root)


def distribution(title: str, unit: str, groups: Mapping[str, Sequence[float]]) -> str:
    """The share of values up to each one, by group; a logarithmic axis, as tails are long."""
    sets = {label: sorted(values) for label, values in groups.items() if values}
    bottom = HEIGHT - BOTTOM
    ends = [percentile(each, share) for each in sets.values() for share in (0.001, 1.0)]
    x = logarithmic(ends, LEFT, WIDTH - RIGHT)
    y = Scale(0.0, 100.0, bottom, TOP)
    root = canvas(title, HEIGHT)
    grid_y(root, y, "% of values")
    grid_x(root, x, unit, TOP, bottom)
    for index, (label, ordered) in enumerate(sets.items()):
        shares = [n / _POINTS for n in range(_POINTS)] + [0.997, 0.999, 1.0]
        points = [(x(percentile(ordered, s)), y(100 * s)) for s in shares]
        path(root, points, f"line {colour(index)}", label)
        for share in (0.5, 0.9, 0.99):
            value = percentile(ordered, share)
            dot = add(root, "circle", cx=x(value), cy=y(100 * share), r=4.0)
            dot.set("class", f"dot {colour(index)}")
            add(dot, "title", f"{label}: p{100 * share:.0f} {figure(value)} {unit}")
    legend(root, [(label, colour(index)) for index, label in enumerate(sets)])
    return render(root)


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """p50 within p99, a row for each."""
    bottom = TOP + ROW * len(rows)
    x = linear([row.p99 for row in rows], NAME, WIDTH - 3 * RIGHT)
    root = canvas(title, bottom + BOTTOM)
    grid_x(root, x, unit, TOP, bottom)
    for index, row in enumerate(rows):
        top = TOP + ROW * index
        name = row.label if len(row.label) <= 26 else f"{row.label[:12]}…{row.label[-12:]}"
        add(root, "text", name, x=NAME - 8, y=top + 15, class_="label", text_anchor="end")
        _bar(root, x, row.p99, top + 5, 12.0, "fill pale c1")
        _bar(root, x, row.p50, top + 5, 12.0, "fill c1")
        add(root, "text", figure(row.p99), x=x(row.p99) + 6, y=top + 15, class_="tick")
        area = add(root, "rect", x=0.0, y=top, width=WIDTH, height=ROW, class_="hover")
        values = f"p50 {figure(row.p50)}, p99 {figure(row.p99)} {unit}"
        add(area, "title", f"{row.label}: {values}{row.tip and f', {row.tip}'}")
    legend(root, [("p50", "c1"), ("p99", "pale c1")])
    return render(root)


def sweep(title: str, unit: str, points: Sequence[Load], knee: int | None) -> str:
    """What was reached, and p99 TTFT, against what was offered; `knee` is a point's index.

    The knee is the last load that the server keeps up with; None: not found.
    """
    middle, bottom = TOP + 190, TOP + 400
    x = linear([point.offered for point in points], LEFT, WIDTH - RIGHT, round_up=False)
    reached = linear([v for p in points for v in (p.offered, p.reached)], middle, TOP)
    known = [point for point in points if point.ttft_p99_ms is not None]
    late = logarithmic([p.ttft_p99_ms or 0.0 for p in known], bottom, middle + 30)
    root = canvas(title, bottom + BOTTOM)
    grid_y(root, reached, f"reached, {unit}")
    grid_y(root, late, "TTFT p99, ms")
    grid_x(root, x, "", TOP, middle)
    grid_x(root, x, f"offered, {unit}", middle + 30, bottom)
    ideal = [(x(0.0), reached(0.0)), (x(x.high), reached(x.high))]
    path(root, ideal, "line dashed muted", "all that is offered")
    _dots(root, [(x(p.offered), reached(p.reached)) for p in points], points, "c1", unit)
    _dots(root, [(x(p.offered), late(p.ttft_p99_ms or 0.0)) for p in known], known, "c2", unit)
    if knee is not None:
        _knee(root, x(points[knee].offered), bottom, f"knee: {figure(points[knee].offered)} {unit}")
    legend(root, [("reached", "c1"), ("TTFT p99", "c2"), ("all that is offered", "muted")])
    return render(root)


def _bands(root: Element, bands: Sequence[Band], x: Scale, bottom: float) -> None:
    for index, band in enumerate(bands):
        left, width = x(band.begin), x(band.end) - x(band.begin)
        shade = "outage" if band.outage else ("band", "band other")[index % 2]
        area = add(root, "rect", x=left, y=TOP - 6, width=width, height=bottom - TOP + 6)
        area.set("class", shade)
        add(area, "title", f"{band.label}: {band.begin:.0f} to {band.end:.0f} s")
        if width > 7 * len(band.label):
            add(root, "text", band.label, x=left + 6, y=TOP + 7, class_="band-name")


def _line(root: Element, series: Series, times: Sequence[float], x: Scale, y: Scale) -> None:
    points = [
        None if value is None else (x(time), y(value))
        for time, value in zip(times, series.values, strict=True)
    ]
    ends = [point for point in points if point is not None]
    if series.filled and ends:
        floor = [(ends[-1][0], y(0.0)), (ends[0][0], y(0.0))]
        path(root, [*ends, *floor], f"area {series.colour}")
    path(root, points, f"line {series.colour}")


def _tips(
    root: Element,
    times: Sequence[float],
    width: float,
    series: Sequence[Series],
    unit: str,
    x: Scale,
    bottom: float,
) -> None:
    for index, time in enumerate(times):
        found = [(each.label, each.values[index]) for each in series]
        lines = [f"{label}: {figure(value)} {unit}" for label, value in found if value is not None]
        area = add(root, "rect", x=x(time), y=TOP, width=x(time + width) - x(time), class_="hover")
        area.set("height", f"{bottom - TOP - 8:.1f}")  # the marks' flags stay in reach
        add(area, "title", "\n".join([f"{figure(time)} to {figure(time + width)} s", *lines]))


def _bar(root: Element, x: Scale, value: float, y: float, height: float, class_: str) -> None:
    width = max(x(value) - x(0.0), 1.0)
    add(root, "rect", x=x(0.0), y=y, width=width, height=height, rx=2.0, class_=class_)


def _dots(
    root: Element,
    at: Sequence[tuple[float, float]],
    points: Sequence[Load],
    colour: str,
    unit: str,
) -> None:
    path(root, at, f"line {colour}")
    for (left, top), point in zip(at, points, strict=True):
        dot = add(root, "circle", cx=left, cy=top, r=4.0, class_=f"dot {colour}")
        words = f"offered {figure(point.offered)}, reached {figure(point.reached)} {unit}"
        late = point.ttft_p99_ms
        add(dot, "title", words + ("" if late is None else f", TTFT p99 {figure(late)} ms"))


def _knee(root: Element, at: float, bottom: float, label: str) -> None:
    add(root, "line", x1=at, x2=at, y1=TOP, y2=bottom, class_="knee")
    beside, anchor = (at - 8, "end") if at > WIDTH / 2 else (at + 8, "start")
    add(root, "text", label, x=beside, y=TOP + 14, class_="strong", text_anchor=anchor)
