"""Figures of a few records, against values computed by hand."""

from __future__ import annotations

import pytest
from load_records import failed, record, run_of, scenario_of, window

from loadtest.judge.summary import Stats, metric_of, stats_of, summarize
from loadtest.plan.scenario import Slo
from loadtest.records import Record, Window


def stats(*records: Record, windows: list[Window] | None = None, slo: Slo | None = None) -> Stats:
    return stats_of(records, windows or [window()], slo or Slo())


def test_latencies_equal_those_of_the_records():
    found = stats(*(record(first=ttft) for ttft in (0.1, 0.2, 0.3)))
    assert found.ttft is not None
    assert (found.ttft.p50, found.ttft.p99) == (pytest.approx(200), pytest.approx(300))
    assert found.itl is not None
    assert (found.itl.p50, found.itl.count) == (pytest.approx(10), 27)
    assert found.tpot is not None
    assert found.tpot.p50 == pytest.approx(10)
    assert found.e2e is not None
    assert found.e2e.mean == pytest.approx(200)


def test_waiting_in_the_client_counts_as_latency_and_as_lateness():
    """Otherwise an overloaded client would report a fast server: coordinated omission."""
    found = stats(record(scheduled=1.0, sent=3.0, first=3.1, ended=3.2), record())
    assert found.ttft is not None
    assert found.ttft.p99 == pytest.approx(2100)
    assert found.e2e is not None
    assert found.e2e.p99 == pytest.approx(2200)
    assert (found.late, found.lateness_p99_ms) == (1, pytest.approx(2000))


def test_failed_calls_have_no_latency_and_lower_goodput():
    found = stats(record(), failed(reason="timeout", first=0.1, ended=60.0))
    assert found.e2e is not None
    assert found.e2e.count == 1
    assert found.ttft is not None
    assert found.ttft.count == 1
    assert (found.failed_share, found.goodput_share) == (0.5, 0.5)
    assert found.reasons == {"timeout": 1}


def test_a_failed_call_is_unanswered_unless_a_part_of_an_answer_arrived():
    found = stats(
        failed(),  # 503
        failed(status=0, reason="connect"),
        failed(status=200, reason="stream_error_engine_dead"),  # before the first piece
        failed(status=200, reason="stream_error_engine_dead", answered="adapter-0@1"),
        failed(status=200, reason="stream_broken", first=0.1),
        record(),
    )
    assert (found.failed, found.failed_unanswered) == (5, 3)


def test_calls_are_cut_off_unless_the_server_reports_an_error():
    cut = ("connect", "disconnected", "stream_broken")
    told = ("http_503_engine_dead", "stream_error_engine_dead", "timeout")
    assert stats(*(failed(reason=reason) for reason in cut + told)).cut_off == len(cut)


def test_calls_that_hung_up_have_only_a_ttft_and_do_not_fail():
    found = stats(record(outcome="hung_up", first=0.4))
    assert found.ttft is not None
    assert found.ttft.p50 == pytest.approx(400)
    assert (found.itl, found.tpot, found.e2e) == (None, None, None)
    assert (found.hung_up, found.failed, found.goodput_share) == (1, 0, None)


def test_calls_without_streaming_have_only_an_e2e():
    found = stats(record(streamed=False, first=0.2, gaps=[]))
    assert (found.ttft, found.itl, found.tpot) == (None, None, None)
    assert found.e2e is not None


def test_tokens_after_the_phases_end_do_not_count():
    """Ten pieces from 9.55 s on, 0.1 s apart: five arrive before the phase ends at 10 s."""
    tail = record(scheduled=9.0, first=9.55, gaps=[0.1] * 9, output_tokens=20, ended=11.0)
    found = stats(tail, windows=[window(seconds=10.0, ended=11.0)])
    assert found.output_tokens_per_second == pytest.approx(20 * 5 / 10 / 10)
    assert found.requests_per_second == 0


def test_tokens_of_calls_without_streaming_count_at_their_end():
    early = record(streamed=False, ended=9.9)
    late = record(streamed=False, scheduled=9.0, ended=10.1)
    assert stats(early, late).output_tokens_per_second == pytest.approx(1.0)


def test_tokens_count_before_a_hang_up_but_not_before_a_failure():
    found = stats(failed(first=0.1, output_tokens=50), record(outcome="hung_up"))
    assert found.output_tokens_per_second == pytest.approx(1.0)


def test_token_times_are_those_of_the_pieces():
    times = record(first=1.0, gaps=[0.5, 0.25], output_tokens=6).token_times
    assert times == [1.0, 1.5, 1.75]
    assert record(output_tokens=0).token_times == []


@pytest.mark.parametrize(
    ("slo", "good"),
    [
        (Slo(), 1.0),
        (Slo(ttft_ms=150), 0.5),
        (Slo(e2e_ms=1000), 1.0),
        (Slo(e2e_ms=150), 0.0),
        (Slo(tpot_ms=9), 0.0),
        (Slo(ttft_ms=350, tpot_ms=11, e2e_ms=250), 1.0),
    ],
)
def test_a_good_call_keeps_every_bound(slo, good):
    assert stats(record(), record(first=0.3), slo=slo).goodput_share == good


def test_a_streamed_answer_without_content_has_its_end_as_ttft():
    empty = record(first=None, gaps=[], output_tokens=1)
    assert stats(empty, slo=Slo(ttft_ms=150)).goodput_share == 0
    assert stats(empty, slo=Slo(ttft_ms=250)).goodput_share == 1


def test_jain_ignores_popularity_and_detects_a_slow_adapter():
    fair = [record()] * 9 + [record(model="adapter-1")]
    assert stats(*fair).jain == pytest.approx(1)
    slow = record(model="adapter-1", ended=2.0)  # a tenth of the speed
    assert stats(record(), slow).jain == pytest.approx(1.1**2 / (2 * 1.01))


def test_a_failing_adapter_has_no_speed_and_the_base_does_not_count():
    found = stats(record(), failed(model="adapter-1"), record(model="base", is_base=True))
    assert found.jain == pytest.approx(0.5)
    assert stats(record(), record(model="base", is_base=True)).jain is None


def test_warm_ups_do_not_count_overall():
    windows = [window("warm-up", measured=False), window("steady", began=10.0)]
    run = run_of(record(phase="warm-up"), record(scheduled=10.0), windows=windows)
    summary = summarize(run, scenario_of(("warm-up", "steady")))
    assert summary.overall.requests == 1
    assert {name: each.requests for name, each in summary.phases.items()} == {
        "warm-up": 1,
        "steady": 1,
    }


def test_a_streams_rates_refer_to_its_own_phases():
    windows = [
        window("one", planned={"mixed": None}),
        window("two", began=10.0, planned={"mixed": None, "batch": None}),
    ]
    records = [record(phase="two", stream="batch", scheduled=10.0 + n) for n in range(5)]
    scenario = scenario_of(("one", "two"), streams={"mixed": {}, "batch": {}})
    summary = summarize(run_of(*records, windows=windows), scenario)
    assert summary.streams["batch"].requests_per_second == 0.5
    assert summary.phase_streams["two"]["batch"].requests == 5
    assert summary.phases["one"].requests == 0


def test_hot_adapters_together_get_half_of_the_calls():
    calls = {"a": 5, "b": 2, "c": 2, "d": 1}
    records = [record(model=name) for name, count in calls.items() for _ in range(count)]
    base = record(model="base", is_base=True)
    summary = summarize(run_of(*records, base), scenario_of())
    assert list(summary.adapters) == ["a", "b", "c", "d"]
    assert summary.hot is not None
    assert summary.cold is not None
    assert summary.base is not None
    assert (summary.hot.requests, summary.cold.requests, summary.base.requests) == (5, 5, 1)


def test_metrics_by_phase_and_stream_are_none_without_calls():
    windows = [window("one"), window("two", began=10.0)]
    run = run_of(record(phase="one"), windows=windows)
    summary = summarize(run, scenario_of(("one", "two")))
    assert metric_of(summary, "ttft_p50_ms") == pytest.approx(100)
    assert metric_of(summary, "e2e_p999_ms", "one", "mixed") == pytest.approx(200)
    assert metric_of(summary, "output_tokens_per_second", stream="mixed") == pytest.approx(0.5)
    assert metric_of(summary, "failed", "one") == 0
    assert metric_of(summary, "requests", "two") == 0
    assert metric_of(summary, "failed", "two") is None
    assert metric_of(summary, "ttft_p50_ms", "one", "elsewhere") is None
    assert metric_of(summary, "jain", "one") is None
