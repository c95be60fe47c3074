"""Each check can pass and fail."""

from __future__ import annotations

from typing import Any

import pytest
from load_records import failed, record, run_of, scenario_of, window

from loadtest.judge.summary import summarize
from loadtest.judge.verdict import Check, Verdict, judge
from loadtest.plan.scenario import Scenario
from loadtest.records import Agreement, Disagreement, Done, Run, Window, Wrong

FAILED = "no failed call (except in outages and own expectations)"


def verdict(run: Run, scenario: Scenario | None = None) -> Verdict:
    scenario = scenario or scenario_of(tuple(window.phase for window in run.windows))
    return judge(run, summarize(run, scenario), scenario)


def check(run: Run, **expectation: Any) -> Check:
    phases = tuple(window.phase for window in run.windows)
    return verdict(run, scenario_of(phases, expect=[expectation])).checks[-1]


def misses(found: Verdict) -> list[str]:
    return [each.name for each in found.checks if not each.passed]


def test_a_run_without_faults_passes():
    assert verdict(run_of(record())).passed


def test_a_wrong_answer_fails_the_run():
    wrong = Wrong(phase="steady", stream="mixed", number=0, model="a", message="b answered")
    found = verdict(run_of(record(), wrong=[wrong], judged=1))
    assert not found.passed
    assert misses(found) == ["no answer from another adapter"]


def test_a_differing_count_fails_the_run():
    agreement = Agreement(compared=3, disagreements=(Disagreement(what="x", client=1, server=2),))
    found = verdict(run_of(record(), agreement=agreement))
    assert misses(found) == ["client and server counts agree"]
    assert "1 of 3 differ" in found.checks[1].found


def test_a_failed_action_fails_the_run_and_is_named():
    done = Done(phase="steady", what="publish adapter 1", began=1.0, ended=2.0, failure="409: no")
    found = verdict(run_of(record(), actions=[done]))
    assert misses(found) == ["every action done"]
    assert "publish adapter 1 in steady: 409: no" in found.checks[3].found


def test_a_missing_record_or_phase_fails_the_run():
    lost = verdict(run_of(record(), windows=[window(planned={"mixed": 2})]))
    assert misses(lost) == ["every planned call made"]
    skipped = verdict(run_of(record()), scenario_of(("steady", "burst")))
    assert misses(skipped) == ["every planned call made"]
    assert "burst" in skipped.checks[2].found


def outage_windows() -> list[Window]:
    return [window("steady"), window("down", began=10.0, outage=True)]


def test_failed_calls_fail_the_run_except_in_outages():
    assert verdict(run_of(failed(phase="down"), windows=outage_windows())).passed
    found = verdict(run_of(failed(phase="steady"), windows=outage_windows()))
    assert misses(found) == [FAILED]
    assert "1 http_503_adapters_busy in steady" in found.checks[4].found


def test_failed_calls_of_a_warm_up_fail_the_run():
    windows = [window("warm-up", measured=False), window("steady", began=10.0)]
    own = scenario_of(("warm-up", "steady"), expect=[{"metric": "failed", "at_most": 5}])
    run = run_of(failed(phase="warm-up"), record(), windows=windows)
    assert misses(verdict(run, own)) == [FAILED]  # overall `failed` counts measured phases only


@pytest.mark.parametrize(
    ("own", "passed"),
    [
        ({"metric": "failed_share", "at_most": 0.6}, True),
        ({"metric": "failed", "at_most": 1, "phase": "steady"}, True),
        ({"metric": "failed", "at_most": 0}, False),
        ({"metric": "failed", "at_most": 1, "phase": "burst"}, False),
        ({"metric": "failed", "at_most": 1, "stream": "batch"}, False),
        ({"metric": "ttft_p99_ms", "at_most": 1000}, False),
    ],
)
def test_an_own_expectation_on_failures_replaces_the_general_check(own, passed):
    windows = [window("steady"), window("burst", began=10.0)]
    records = [failed(), record(), record(phase="burst"), record(phase="burst", stream="batch")]
    scenario = scenario_of(("steady", "burst"), streams={"mixed": {}, "batch": {}}, expect=[own])
    windows[1] = window("burst", began=10.0, planned={"mixed": None, "batch": None})
    assert verdict(run_of(*records, windows=windows), scenario).passed is passed


def test_a_value_equal_to_its_bound_passes():
    run = run_of(record(), record())
    assert check(run, metric="requests", at_least=2, at_most=2).passed
    assert not check(run, metric="requests", at_least=3).passed
    assert not check(run, metric="requests", at_most=1).passed


def test_a_ratio_refers_to_the_same_metric_elsewhere():
    windows = [window("alone"), window("mixed", began=10.0)]
    records = [record(phase="alone"), record(phase="mixed", first=0.3)]
    run = run_of(*records, windows=windows)
    ratio = {"metric": "ttft_p99_ms", "phase": "mixed", "over": {"phase": "alone"}}
    kept = check(run, **ratio, at_most=3.01)
    assert kept.passed
    assert kept.found == "3 (300 / 100)"
    assert kept.name == "ttft_p99_ms phase mixed, over that of phase alone"
    assert not check(run, **ratio, at_most=2.9).passed


def test_a_metric_without_data_does_not_pass():
    missing = check(run_of(record(streamed=False)), metric="ttft_p99_ms", at_most=1e9)
    assert (missing.passed, missing.found) == (False, "no data")
    nothing = check(run_of(), metric="failed", at_most=0)
    assert not nothing.passed


@pytest.mark.parametrize("metric", ["ttft_p99_ms", "failed"])
def test_a_ratio_without_a_positive_denominator_does_not_pass(metric):
    windows = [window("alone"), window("mixed", began=10.0)]
    run = run_of(record(phase="mixed"), record(phase="alone", streamed=False), windows=windows)
    over = {"metric": metric, "phase": "mixed", "over": {"phase": "alone"}}
    assert not check(run, **over, at_most=1e9).passed


def test_an_advisory_expectation_is_reported_but_fails_nothing():
    scenario = scenario_of(expect=[{"metric": "jain", "at_least": 0.9, "advisory": True}])
    found = verdict(run_of(record()), scenario)
    assert found.passed
    assert misses(found) == ["jain"]
