"""Reports warn about a client that did not keep up."""

from __future__ import annotations

import pytest
from load_records import CALM, record, run_of, scenario_of

from loadtest.judge.summary import summarize
from loadtest.judge.trust import distrust, notes
from loadtest.records import Client, Run


def reasons(run: Run) -> list[str]:
    return distrust(run, summarize(run, scenario_of()))


def test_a_client_without_lag_is_trusted():
    assert reasons(run_of(record())) == []


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (Client(processes=1, lag=[0.001] * 98 + [0.03] * 2, cpu_seconds=1), "30 ms late"),
        (Client(processes=2, lag=[], cpu_seconds=19.0), "busy 95% of the time"),
    ],
)
def test_a_client_that_lags_or_is_busy_is_not_trusted(client, words):
    (reason,) = reasons(run_of(record(), client=client))
    assert words in reason


def test_a_single_lag_is_no_reason_for_distrust():
    client = Client(processes=1, lag=[0.001] * 99 + [1.0], cpu_seconds=1)
    assert reasons(run_of(record(), client=client)) == []


def test_more_than_one_percent_of_late_calls_is_a_reason_for_distrust():
    late = record(scheduled=0.0, sent=0.06)
    assert reasons(run_of(*[record()] * 99, late)) == []
    (reason,) = reasons(run_of(*[record()] * 98, late, late))
    assert "2 of 100 calls" in reason


def test_a_p99_of_few_calls_is_noted():
    few = summarize(run_of(*[record()] * 99, client=CALM), scenario_of())
    assert "steady (99)" in notes(few)[0]
    assert notes(summarize(run_of(*[record()] * 100), scenario_of())) == []
