"""Pages and pictures: templates, plotly and matplotlib in one style, files written whole.

Plotly reads tags in texts and matplotlib reads formulas. Names come from recipes and data sets, so
whoever gives a text to plotly escapes it, and one for matplotlib is taken literally.
"""

import html
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from math import isfinite
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from plotly.offline import get_plotlyjs

BLUE, ORANGE, GREEN = "#2a6fdb", "#e0662f", "#17976b"
GREY: Final = "#7d8896"  # readable on a light and on a dark page
COLOURS: Final = (BLUE, ORANGE, GREEN, "#8a4fd0", "#c2477f", "#8f7a10", "#2b9fb0", "#a0522d")
MISSING: Final = "-"
_CLEAR, _GRID = "rgba(128, 128, 128, 0)", "rgba(128, 128, 128, 0.25)"
_MIB: Final = 1024**2


def render(template: str, **values: Any) -> str:
    """A page from a template of this package; every value is escaped."""
    environment = Environment(
        loader=PackageLoader("training.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    environment.filters.update(figure=figure, memory=memory, flat=flatten)
    # The library itself, so that a page opens offline: about 4.8 MB of JavaScript.
    return environment.get_template(template).render(plotly=Markup(get_plotlyjs()), **values)


def to_div(chart: Any, title: str, height: int, **layout: Any) -> Markup:
    """A plotly figure as a `<div>`; `height` in pixels."""
    legend = {"orientation": "h", "x": 1, "xanchor": "right", "y": 1.02, "yanchor": "bottom"}
    chart.update_layout(
        template="none",
        title={"text": html.escape(title), "font": {"size": 15}, "x": 0.01},
        font={"color": GREY},
        paper_bgcolor=_CLEAR,
        plot_bgcolor=_CLEAR,
        margin={"l": 70, "r": 20, "t": 70, "b": 50},
        **{"legend": legend} | layout,
    )
    for update in (chart.update_xaxes, chart.update_yaxes):
        update(gridcolor=_GRID, zerolinecolor=_GRID, automargin=True)
    options = {"displayModeBar": False, "responsive": True}
    size = f"{height}px"
    return Markup(
        chart.to_html(options, include_plotlyjs=False, full_html=False, default_height=size)
    )


def style(axes: Axes, title: str, x: str, y: str) -> None:
    """Give axes of matplotlib their texts, a legend, and the look of the pages."""
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    axes.grid(visible=True, color=GREY, alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if handles := axes.get_legend_handles_labels()[0]:
        for text in axes.legend(handles=handles, frameon=False, fontsize=9).get_texts():
            text.set_parse_math(False)


def write_picture(path: Path, picture: Figure) -> None:
    """Write a figure of matplotlib as PNG; raises OSError, and leaves nothing half-written."""
    with warnings.catch_warnings():
        # Of letters that the font lacks; boxes stand for them.
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        _write_whole(path, lambda partial: picture.savefig(partial, format="png", dpi=120))


def write_text(path: Path, text: str) -> None:
    """Write a text; raises OSError, and leaves nothing half-written."""
    _write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def figure(value: float | None) -> str:
    """Three significant digits, thousands separators; a dash for what was not measured."""
    if value is None or not isfinite(value):
        return MISSING
    return f"{value:,.0f}" if abs(value) >= 99.95 else f"{value:.3g}"


def memory(size: float | None) -> str:
    """Bytes as MiB or GiB."""
    if size is None:
        return MISSING
    mib = size / _MIB
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"


def flatten(facts: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of nested mappings as (dotted key, text)."""
    for key, value in facts.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        elif isinstance(value, list | tuple):
            yield name, ", ".join(map(str, value))
        else:
            yield name, MISSING if value is None else str(value)
