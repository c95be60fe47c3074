"""Draws a dashboard from a Prometheus's data where there is no Grafana: the pictures of the docs.

    .venv/bin/uv pip install matplotlib     # not among the locked packages: nothing else needs it
    .venv/bin/python deploy/grafana/draw.py http://127.0.0.1:9090 adapter docs/images/adapter.png \\
        --minutes 10 --step 5 --choose adapter=orders-json

Panels stand where Grafana puts them, and show what it would show; it is plainer all the same.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

HERE = Path(__file__).parent
COLUMN, ROW = 0.7, 0.36  # inches for one unit of Grafana's grid
COLORS = {"green": "#73bf69", "orange": "#ff9830", "red": "#f2495c", "blue": "#5794f2",
          "purple": "#b877d9", "light-blue": "#8ab8ff"}  # fmt: skip
PLAIN = "#ccccdc"
LEGEND_LINES = 5
STYLE = {
    "axes.facecolor": "#181b1f",
    "axes.edgecolor": "#2c3235",
    "axes.grid": True,
    "axes.prop_cycle": mpl.cycler(color=[*COLORS.values(), "#f2cc0c", "#ffcb7d"]),
    "grid.color": "#2c3235",
    "font.size": 7,
}


@dataclass(frozen=True)
class Series:
    labels: dict[str, str]
    name: str
    times: list[float]
    values: list[float]

    @property
    def most(self) -> float:
        return max((each for each in self.values if each == each), default=float("nan"))


class Source:
    """A Prometheus, asked about the minutes before now."""

    def __init__(self, url: str, minutes: float, step: float, chosen: Mapping[str, str]) -> None:
        self._url = url
        self.end = time.time()
        self.start = self.end - 60 * minutes
        self._step = step
        self._chosen = {
            "__rate_interval": f"{max(int(4 * step), 15)}s",
            "__range": f"{int(60 * minutes)}s",
            **chosen,
        }

    def over_time(self, target: Any) -> list[Series]:
        found = self._get("query_range", target["expr"], start=self.start, end=self.end,
                          step=self._step)  # fmt: skip
        return [
            Series(each["metric"], named(target.get("legendFormat", ""), each["metric"]),
                   [float(t) for t, _ in each["values"]], [float(v) for _, v in each["values"]])
            for each in found["result"]
        ]  # fmt: skip

    def now(self, target: Any) -> list[tuple[dict[str, str], float]]:
        found = self._get("query", target["expr"], time=self.end)
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def exemplars(self, target: Any) -> list[tuple[float, float]]:
        found = self._get("query_exemplars", target["expr"], start=self.start, end=self.end)
        dots = [dot for series in found for dot in series["exemplars"]]
        return [(float(dot["timestamp"]), float(dot["value"])) for dot in dots]

    def _get(self, path: str, promql: str, **more: float) -> Any:
        filled = re.sub(r"\$(\w+)", lambda name: self._chosen.get(name[1], ".*"), promql)
        asked = urllib.parse.urlencode({"query": filled, **more})
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{asked}") as answer:
            return json.load(answer)["data"]


def named(template: str, labels: Mapping[str, str]) -> str:
    name = re.sub(r"\{\{(\w+)\}\}", lambda label: labels.get(label[1], ""), template)
    return re.sub(r"@(?= |$)", "", name) or "value"


def told(value: float, unit: str) -> str:
    """A value in its unit, as short as Grafana says it."""
    if value != value:
        return "-"
    if unit == "s":
        return f"{value * 1000:.3g} ms" if abs(value) < 1 else f"{value:.3g} s"
    if unit == "percentunit":
        return f"{value:.1%}" if value < 0.1 else f"{value:.0%}"
    words = {"reqps": " calls/s", "ops": " /s", "none": ""}.get(unit, f" {unit}")
    return f"{value:.3g}{words}"


def draw_graph(axes: Axes, panel: Any, source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    fixed = {
        each["matcher"]["options"]: each["properties"][0]["value"].get("fixedColor")
        for each in panel["fieldConfig"]["overrides"]
    }
    series = [each for target in panel["targets"] for each in source.over_time(target)]
    series.sort(key=lambda each: -each.most)
    colors = [COLORS.get(fixed.get(each.name, ""), f"C{n}") for n, each in enumerate(series)]
    if defaults["custom"]["stacking"]["mode"] == "normal" and series:
        times = sorted({moment for each in series for moment in each.times})
        rows = [dict(zip(each.times, each.values, strict=True)) for each in series]
        layers = [[row.get(moment, 0.0) for moment in times] for row in rows]
        axes.stackplot(times, layers, colors=colors, alpha=0.7)
    else:
        for each, color in zip(series, colors, strict=True):
            axes.plot(each.times, each.values, color=color, linewidth=1.2)
    for target in panel["targets"]:
        if target["exemplar"] and (dots := source.exemplars(target)):
            axes.scatter(*zip(*dots, strict=True), s=6, marker="D", color=COLORS["green"], zorder=3)
    axes.set_ylim(bottom=0)
    top = axes.get_ylim()[1]
    for step in defaults.get("thresholds", {}).get("steps", [])[1:]:
        if step["value"] <= 2 * top:
            axes.axhline(step["value"], color=COLORS[step["color"]], linestyle="--", linewidth=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: told(value, defaults["unit"])))
    axes.set_xlim(source.start, source.end)
    _write_legend(axes, series, colors, defaults["unit"])


def _write_legend(axes: Axes, series: Sequence[Series], colors: Sequence[str], unit: str) -> None:
    for line, (each, color) in enumerate(zip(series[:LEGEND_LINES], colors, strict=False)):
        text = f"{each.name}   {told(each.values[-1], unit)}   max {told(each.most, unit)}"
        axes.text(0, -0.2 - 0.11 * line, text, color=color, transform=axes.transAxes, fontsize=7)


def draw_stat(axes: Axes, panel: Any, source: Source) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    found = source.now(panel["targets"][0])
    axes.axis("off")
    if not found or found[0][1] != found[0][1]:
        text, color = defaults["noValue"], PLAIN
    else:
        value = found[0][1]
        text = told(value, defaults["unit"])
        steps = [each for each in defaults["thresholds"]["steps"] if value >= (each["value"] or 0)]
        color = COLORS[steps[-1]["color"]]
        for names in defaults["mappings"]:
            if (name := names["options"].get(str(int(value)))) is not None:
                text, color = name["text"], COLORS[name["color"]]
    place = {"ha": "center", "va": "center", "transform": axes.transAxes}
    axes.text(0.5, 0.4, text, color=color, fontsize=17, **place)


def draw_table(axes: Axes, panel: Any, source: Source) -> None:
    organize = panel["transformations"][-1]["options"]
    units = {
        each["matcher"]["options"]: each["properties"][0]["value"]
        for each in panel["fieldConfig"]["overrides"]
    }
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    columns = list(organize["renameByName"].values())
    for column, target in zip(columns, panel["targets"], strict=True):
        for labels, value in source.now(target):
            row = rows.setdefault(tuple(sorted(labels.items())), {})
            row[column] = told(value, str(units.get(column, "none")))
    axes.axis("off")
    heads = [*dict.fromkeys(name for key in rows for name, _ in key)]
    heads += columns
    cells = [
        [str({**dict(key), **row}.get(head, "-"))[:26] for head in heads]
        for key, row in sorted(rows.items())
    ]
    if cells:
        drawn = axes.table(cells[:8], colLabels=heads, loc="upper left", cellLoc="left")
        drawn.auto_set_font_size(False)
        drawn.set_fontsize(7)
        for cell in drawn.get_celld().values():
            cell.set(facecolor="none", edgecolor="#2c3235")
            cell.get_text().set_color(PLAIN)


def draw_timeline(axes: Axes, panel: Any, source: Source) -> None:
    names = panel["fieldConfig"]["defaults"]["mappings"][0]["options"]
    lanes = source.over_time(panel["targets"][0])
    for lane, series in enumerate(lanes):
        width = series.times[1] - series.times[0] if len(series.times) > 1 else 1
        for moment, value in zip(series.times, series.values, strict=True):
            color = COLORS[names[str(int(value))]["color"]]
            axes.broken_barh([(moment, width * 1.05)], (lane + 0.1, 0.8), color=color)
    axes.set_yticks([lane + 0.5 for lane in range(len(lanes))], [each.name for each in lanes])
    axes.set_xlim(source.start, source.end)
    for place, name in enumerate(names.values()):
        axes.text(0.15 * place, -0.2, name["text"], color=COLORS[name["color"]],
                  transform=axes.transAxes, fontsize=8)  # fmt: skip


def draw_heatmap(axes: Axes, panel: Any, source: Source) -> None:
    series = source.over_time(panel["targets"][0])
    series.sort(key=lambda each: float(each.labels["le"]))
    below = [0.0] * len(series[0].values) if series else []
    cells = []
    for each in series:
        cells.append([max(now - low, 0) for now, low in zip(each.values, below, strict=True)])
        below = each.values
    axes.imshow(cells, aspect="auto", origin="lower", cmap="inferno",
                extent=(source.start, source.end, 0, len(series)))  # fmt: skip
    axes.set_yticks(range(1, len(series) + 1), [f"{each.labels['le']} s" for each in series])
    axes.grid(visible=False)


DRAWN: dict[str, Callable[[Axes, Any, Source], None]] = {
    "timeseries": draw_graph,
    "stat": draw_stat,
    "table": draw_table,
    "state-timeline": draw_timeline,
    "heatmap": draw_heatmap,
}


def draw(page: Any, source: Source, out: Path) -> None:
    height = max(each["gridPos"]["y"] + each["gridPos"]["h"] for each in page["panels"]) + 1
    figure = plt.figure(figsize=(24 * COLUMN, height * ROW), facecolor="#111217")
    figure.text(0.01, 1 - 0.7 / height, page["title"], color="white", fontsize=14, weight="bold")
    for panel in page["panels"]:
        place = panel["gridPos"]
        top = 1 - (place["y"] + 1) / height
        if panel["type"] == "row":
            figure.text(0.01, top - 0.7 / height, f"v {panel['title']}", color=PLAIN, fontsize=10)
            continue
        legend = {"timeseries": 0.38, "state-timeline": 0.16}.get(panel["type"], 0.05)
        tall, wide = place["h"] / height, place["w"] / 24
        left = 0.2 if panel["type"] in ("heatmap", "state-timeline") else 0.1
        axes = figure.add_axes(
            (place["x"] / 24 + left * wide, top - tall * (1 - legend), wide * (0.96 - left),
             tall * (1 - legend - 0.14))
        )  # fmt: skip
        axes.set_title(panel["title"], color="white", fontsize=9, loc="left")
        axes.xaxis.set_major_formatter(
            FuncFormatter(lambda moment, _: time.strftime("%H:%M:%S", time.gmtime(moment)))
        )
        axes.locator_params(axis="x", nbins=5)
        DRAWN[panel["type"]](axes, panel, source)
    figure.savefig(out, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("url")
    parser.add_argument(
        "page", choices=sorted(p.stem for p in (HERE / "dashboards").glob("*.json"))
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--step", type=float, default=5, help="seconds between two points")
    parser.add_argument("--choose", action="append", default=[], metavar="VARIABLE=VALUE")
    options = parser.parse_args()
    mpl.use("Agg")
    plt.style.use("dark_background")
    mpl.rcParams.update(STYLE)
    chosen = dict(pair.split("=", 1) for pair in options.choose)
    source = Source(options.url, options.minutes, options.step, chosen)
    draw(
        json.loads((HERE / "dashboards" / f"{options.page}.json").read_text()), source, options.out
    )


if __name__ == "__main__":
    main()
