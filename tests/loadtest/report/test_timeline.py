"""Timelines against values computed by hand."""

from __future__ import annotations

import pytest
from load_records import failed, record, run_of, window

from loadtest.report.timeline import BINS, timeline_of


def test_calls_count_in_the_bins_of_their_due_time_and_their_end():
    line = timeline_of(run_of(record(scheduled=0.9, ended=1.1), failed(scheduled=2.0, ended=2.5)))
    assert line.seconds == 1
    assert line.begins == list(range(10))
    assert line.due[:4] == [1, 0, 1, 0]
    assert line.answered[:4] == [0, 1, 0, 0]
    assert line.failed[:4] == [0, 0, 1, 0]


def test_tokens_count_in_the_bins_of_their_pieces():
    line = timeline_of(run_of(record(first=0.5, gaps=[1.0, 1.0, 0.1], output_tokens=8)))
    assert line.tokens[:4] == [2, 2, 4, 0]


def test_a_call_in_flight_counts_with_its_share_of_each_bin():
    line = timeline_of(run_of(record(sent=0.75, ended=2.5), record(sent=1.0, ended=2.0)))
    assert line.in_flight[:4] == pytest.approx([0.25, 2, 0.5, 0])


def test_a_bins_ttft_is_that_of_its_due_calls():
    line = timeline_of(run_of(record(scheduled=1.0), record(scheduled=1.5, first=1.8), failed()))
    assert line.ttft[0] is None
    assert line.ttft[1] is not None
    assert line.ttft[1].p99 == pytest.approx(300)


def test_times_are_relative_to_the_first_phase():
    line = timeline_of(run_of(record(scheduled=1003.0), windows=[window(began=1000.0)]))
    assert line.due[3] == 1


def test_a_long_run_has_wider_bins_and_rates_stay_per_second():
    whole = window(seconds=3600.0)
    line = timeline_of(run_of(*(record(scheduled=n * 1.0) for n in range(3600)), windows=[whole]))
    assert len(line.begins) <= BINS
    assert line.due == pytest.approx([1.0] * len(line.begins))


def test_a_run_without_calls_has_a_timeline():
    assert sum(timeline_of(run_of()).due) == 0
