"""Charts are well-formed, label their axes with round numbers, and show what they were given."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from loadtest.report import charts
from loadtest.report.charts import Band, Bar, Load, Mark, Series
from loadtest.report.svg import Scale, linear, log_ticks, logarithmic, round_ticks


def texts(chart: str, tag: str = "text") -> list[str]:
    return [node.text or "" for node in ElementTree.fromstring(chart).iter(tag)]


def by_class(chart: str, name: str) -> list[ElementTree.Element]:
    return [n for n in ElementTree.fromstring(chart).iter() if name in n.get("class", "").split()]


@pytest.mark.parametrize(
    ("high", "ticks"),
    [(10.0, [0, 2, 4, 6, 8, 10]), (0.07, [0, 0.02, 0.04, 0.06]), (1300.0, [0, 500, 1000])],
)
def test_ticks_are_at_round_numbers(high, ticks):
    assert round_ticks(0.0, high) == pytest.approx(ticks)


def test_logarithmic_ticks_are_at_one_two_and_five_or_at_decades():
    assert log_ticks(10, 200) == pytest.approx([10, 20, 50, 100, 200])
    assert log_ticks(0.01, 10_000) == pytest.approx([10.0**n for n in range(-2, 5)])


def test_an_axis_holds_every_value_and_ends_at_a_tick():
    scale = linear([3.0, 47.0], 100.0, 0.0)
    assert scale.high == 50
    assert (scale(0.0), scale(25.0), scale(50.0)) == (100, 50, 0)
    log = logarithmic([13.0, 410.0], 0.0, 100.0)
    assert (log.low, log.high) == pytest.approx((10, 500))


@pytest.mark.parametrize("values", [[], [0.0], [5.0], [0.0, 0.0]])
def test_axes_of_nothing_or_of_one_value_are_no_error(values):
    assert linear(values, 0.0, 1.0).high > 0
    scale = logarithmic(values, 0.0, 1.0)
    assert scale.high > scale.low


def test_a_value_beyond_an_axis_stays_at_its_edge():
    assert Scale(0.0, 10.0, 0.0, 100.0)(11.0) == 100


def test_lines_over_time_have_title_units_legend_phases_marks_and_tooltips():
    chart = charts.over_time(
        "Calls",
        "calls/s",
        [0.0, 1.0, 2.0],
        [Series("answered", [1.0, 2.0, 3.0], "c1"), Series("p99", [None, 5.0, None], "c2")],
        [Band("steady", 0.0, 3.0)],
        [Mark("publish adapter-1", 1.5)],
    )
    assert {"Calls", "calls/s", "answered", "p99", "steady"} <= set(texts(chart))
    assert "publish adapter-1 at 1.5 s" in texts(chart, "title")
    assert "1 to 2 s\nanswered: 2 calls/s\np99: 5 calls/s" in texts(chart, "title")


def test_a_gap_in_the_data_is_a_gap_in_the_line():
    series = Series("p99", [1.0, None, 2.0, 3.0], "c1")
    (line,) = by_class(charts.over_time("x", "ms", [0.0, 1.0, 2.0, 3.0], [series]), "line")
    assert line.get("d", "").count("M") == 2


def test_a_distribution_marks_its_percentiles():
    chart = charts.distribution("TTFT", "ms", {"mixed": [float(n) for n in range(1, 101)]})
    assert [dot[0].text for dot in by_class(chart, "dot")] == [
        "mixed: p50 50 ms",
        "mixed: p90 90 ms",
        "mixed: p99 99 ms",
    ]


def test_a_group_without_values_has_no_line():
    assert by_class(charts.distribution("TTFT", "ms", {"a": [], "b": [1.0]}), "line")[1:] == []


def test_bars_are_as_long_as_their_values_and_long_names_are_cut_but_told():
    rows = [Bar("a" * 60, 10.0, 100.0, "7 calls"), Bar("b", 5.0, 50.0)]
    chart = charts.bars("TTFT by adapter", "ms", rows)
    widths = [float(bar.get("width", "")) for bar in by_class(chart, "pale") if bar.get("x")]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert f"{'a' * 60}: p50 10, p99 100 ms, 7 calls" in texts(chart, "title")
    assert "a" * 60 not in texts(chart)


def test_a_sweep_marks_its_knee_and_lives_without_latencies():
    points = [Load(10.0, 10.0, 50.0), Load(20.0, 19.0, None), Load(30.0, 20.0, 900.0)]
    chart = charts.sweep("Sweep", "calls/s", points, knee=1)
    assert "knee: 20 calls/s" in texts(chart)
    assert "offered 30, reached 20 calls/s, TTFT p99 900 ms" in texts(chart, "title")
    assert by_class(charts.sweep("Sweep", "calls/s", points, knee=None), "knee") == []


def test_names_are_escaped():
    chart = charts.bars("<b>", "ms", [Bar("<script>", 1.0, 2.0)])
    assert "<script>" not in chart
    assert "<script>" in texts(chart)
