"""Each chart contains its data and its texts."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from loadtest.judge.knee import Point
from loadtest.report import charts
from loadtest.report.charts import Band, Bar, Mark, Series


def read(chart: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The traces and the layout in a chart's script."""
    script = chart[chart.index("Plotly.newPlot") :]
    decoder, start = json.JSONDecoder(), script.index("[{")
    traces, end = decoder.raw_decode(script, start)
    layout, _ = decoder.raw_decode(script, script.index("{", end))
    return traces, layout


def texts(layout: dict[str, Any]) -> list[str]:
    return [each["text"] for each in layout.get("annotations", [])]


def test_lines_over_time_have_title_units_phases_marks_and_tooltips():
    traces, layout = read(
        charts.over_time(
            "Calls",
            "calls/s",
            [0.0, 1.0, 2.0],
            [Series("answered", [1.0, 2.0, 3.0], "blue"), Series("p99", [None, 5.0, None], "red")],
            [Band("steady", 0.0, 3.0)],
            [Mark("publish adapter-1", 1.5)],
        )
    )
    answered, p99, marks = traces
    assert (layout["title"]["text"], layout["yaxis"]["title"]["text"]) == ("Calls", "calls/s")
    assert answered["name"] == "answered"
    assert (answered["x"], answered["y"]) == ([0.5, 1.5, 2.5], [1, 2, 3])
    assert answered["hovertemplate"].endswith(" calls/s")
    assert p99["y"] == [None, 5, None]  # a gap in the data is a gap in the line
    assert texts(layout) == ["steady"]
    assert (marks["x"], marks["text"]) == ([1.5], ["publish adapter-1"])


def test_a_distribution_marks_its_percentiles():
    traces, layout = read(
        charts.distribution("TTFT", "ms", {"mixed": [float(n) for n in range(1, 101)]})
    )
    line, dots = traces
    assert dots["x"] == dots["y"] == [50, 90, 99]
    assert (line["name"], line["x"][-1], line["y"][-1]) == ("mixed", 100, 100)
    assert layout["xaxis"]["type"] == "log"


def test_a_group_without_values_has_no_line():
    traces, _ = read(charts.distribution("TTFT", "ms", {"a": [], "b": [1.0]}))
    assert {trace["name"] for trace in traces} == {"b"}


def test_values_of_zero_stay_on_a_logarithmic_axis():
    traces, _ = read(charts.distribution("ITL", "ms", {"mixed": [0.0, 0.0]}))
    assert min(traces[0]["x"]) > 0


def test_bars_have_both_percentiles_and_long_names_are_shortened_on_the_axis_alone():
    rows = [Bar("a" * 60, 10.0, 100.0, "7 calls"), Bar("b", 5.0, 50.0, "2 calls")]
    (p99, p50), layout = read(charts.bars("TTFT by adapter", "ms", rows))
    assert (p99["x"], p50["x"]) == ([100, 50], [10, 5])
    assert p50["y"] == ["a" * 60, "b"]
    assert p50["customdata"] == ["7 calls", "2 calls"]
    assert len(layout["yaxis"]["ticktext"][0]) < 30


def point(offered: float, reached: float, ttft_p99_ms: float | None) -> Point:
    return Point(
        offered=offered,
        reached=reached,
        ttft_p99_ms=ttft_p99_ms,
        calls=1,
        late=0,
        tokens=1.0,
        failed=0,
    )


@pytest.mark.parametrize(("knee", "shown"), [(1, ["knee: 20 calls/s"]), (None, [])])
def test_a_sweep_marks_its_knee_and_works_without_latencies(knee, shown):
    points = [point(10.0, 10.0, 50.0), point(20.0, 19.0, None), point(30.0, 20.0, 900.0)]
    (ideal, reached, ttft), layout = read(charts.sweep("Sweep", "calls/s", points, knee))
    assert (ideal["y"], reached["y"], ttft["y"]) == ([10, 20, 30], [10, 19, 20], [50, None, 900])
    assert ttft["hovertemplate"].endswith("calls/s offered")
    assert texts(layout) == shown


def test_names_are_escaped_for_the_page_and_for_plotlys_own_tags():
    bad = "</script><script>alert(1)"
    for chart in (
        charts.bars(bad, "ms", [Bar(bad, 1.0, 2.0, "")]),
        charts.over_time("x", "ms", [0.0], [], marks=[Mark(bad, 0.0)]),
    ):
        assert bad not in chart
        assert len(re.findall("<script", chart)) == 1
        assert "\\u0026lt;\\u002fscript\\u0026gt;" in chart or "&lt;\\u002fscript&gt;" in chart
