"""Drawing: scales with round ticks, and the frame of a chart as SVG. No JavaScript.

Colours are classes: c1 to c6 and the others are given by report.css, for light and dark pages.
Text is escaped by ElementTree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from xml.etree.ElementTree import Element, SubElement, tostring

from loadtest.report.figures import figure

WIDTH = 880.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 18.0, 58.0, 44.0
_STEPS = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    count: int = 5  # of ticks, about

    def __call__(self, value: float) -> float:
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = log10(low), log10(high), log10(at)
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    @property
    def ticks(self) -> list[float]:
        return (
            log_ticks(self.low, self.high)
            if self.log
            else round_ticks(self.low, self.high, self.count)
        )


def linear(values: Sequence[float], start: float, end: float, *, round_up: bool = True) -> Scale:
    """From zero to the highest value, or to the round number above it."""
    high = max(values, default=0.0) or 1.0
    top = round_ticks(0.0, high)[-1]
    if round_up and top < high * (1 - 1e-9):
        top += top - round_ticks(0.0, high)[-2]
    return Scale(0.0, max(top, high) if round_up else high, start, end)


def logarithmic(values: Sequence[float], start: float, end: float) -> Scale:
    """From the round number (1, 2, 5) at or below the lowest to the one at or above the highest."""
    above = [value for value in values if value > 0] or [1.0]
    powers = range(floor(log10(min(above))) - 1, ceil(log10(max(above))) + 2)
    edges = [step * 10.0**power for power in powers for step in _STEPS]
    low = max(edge for edge in edges if edge <= min(above))
    high = min(edge for edge in edges if edge >= max(above) and edge > low)
    return Scale(low, high, start, end, log=True)


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, about `count` of them."""
    raw = (high - low) / count
    power = 10.0 ** floor(log10(raw))
    step = power * next((s for s in (*_STEPS, 10) if raw <= s * power * (1 + 1e-9)), 10)
    return [n * step for n in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten, or powers of ten alone where there are many."""
    powers = range(floor(log10(low)), ceil(log10(high)) + 1)
    steps = _STEPS if len(powers) <= 5 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps]
    return [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]


def add(parent: Element, tag: str, text: str = "", **attributes: float | str) -> Element:
    """A child; `class_` is written as `class`, and `text_anchor` as `text-anchor`."""
    named = {
        key.rstrip("_").replace("_", "-"): f"{value:.1f}" if isinstance(value, float) else value
        for key, value in attributes.items()
    }
    node = SubElement(parent, tag, {key: str(value) for key, value in named.items()})
    node.text = text or None
    return node


def canvas(title: str, height: float) -> Element:
    root = Element("svg", {"viewBox": f"0 0 {WIDTH:.0f} {height:.0f}", "role": "img"})
    root.set("class", "chart")
    root.set("aria-label", title)
    add(root, "text", title, x=LEFT, y=20.0, class_="title")
    return root


def legend(root: Element, entries: Sequence[tuple[str, str]], y: float = 40.0) -> None:
    """Labels beside their colours, from the left."""
    x = LEFT
    for label, colour in entries:
        add(root, "rect", x=x, y=y - 8, width=14.0, height=4.0, rx=2.0, class_=f"fill {colour}")
        add(root, "text", label, x=x + 20, y=y, class_="label")
        x += 20 + 7.0 * len(label) + 18


def grid_y(root: Element, y: Scale, unit: str) -> None:
    for tick in y.ticks:
        add(root, "line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(tick), y2=y(tick), class_="grid")
        label = figure(tick)
        add(root, "text", label, x=LEFT - 8, y=y(tick) + 4, class_="tick", text_anchor="end")
    middle = (y.start + y.end) / 2
    turned = f"rotate(-90 14 {middle:.1f})"
    add(root, "text", unit, x=14.0, y=middle, class_="tick", text_anchor="middle", transform=turned)


def grid_x(root: Element, x: Scale, unit: str, top: float, bottom: float) -> None:
    for tick in x.ticks:
        at = x(tick)
        add(root, "line", x1=at, x2=at, y1=top, y2=bottom, class_="grid")
        add(root, "text", figure(tick), x=at, y=bottom + 16, class_="tick", text_anchor="middle")
    middle = (x.start + x.end) / 2
    add(root, "text", unit, x=middle, y=bottom + 34, class_="tick", text_anchor="middle")


def path(
    root: Element, points: Sequence[tuple[float, float] | None], class_: str, tip: str = ""
) -> None:
    """A line through pixels; None breaks it."""
    parts, pen = [], "M"
    for point in points:
        if point is not None:
            parts.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "M" if point is None else "L"
    node = add(root, "path", d=" ".join(parts), class_=class_)
    if tip:
        add(node, "title", tip)


def render(root: Element) -> str:
    return tostring(root, encoding="unicode")
