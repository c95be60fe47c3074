"""Ratios from rounds, and the checks of a scenario's comparisons."""

from __future__ import annotations

import pytest
from load_records import failed, record, run_of, scenario_of, window
from msgspec.structs import replace

from loadtest.judge.comparison import Round, checks_of, failures_of, lengths_of, rows_of
from loadtest.judge.summary import summarize

ASKED = {"metric": "output_tokens_per_second", "phase": "steady", "peer": "stock"}


def scenario(**bounds):
    return scenario_of(compare=[{**ASKED, **bounds}])


def round_of(side: str, number: int, calls: int, **faults: int) -> Round:
    records = [
        record(scheduled=1000 + n / 100, number=n, output_tokens=10, streamed=False)
        for n in range(calls)
    ]
    run = run_of(*records, windows=[window(began=1000)])
    summary = summarize(run, scenario_of())
    counts = {"wrong": 0, "failed": 0, "judged": calls, **faults}
    return Round(side=side, number=number, summary=summary, **counts)


def rounds(*pairs: tuple[int, int]) -> list[Round]:
    return [
        each
        for number, (ours, theirs) in enumerate(pairs)
        for each in (round_of("lorry", number, ours), round_of("stock", number, theirs))
    ]


def tokens_row(found):
    return next(row for row in found if row.metric == "output_tokens_per_second")


def test_a_ratio_pairs_the_sides_of_one_round():
    row = tokens_row(rows_of(rounds((20, 10), (60, 20), (40, 40)), scenario(at_least=1)))
    assert (row.ratio.low, row.ratio.median, row.ratio.high) == (1, 2, 3)
    assert (row.ours, row.theirs) == (40, 20)
    assert row.difference == 20


def test_a_metric_without_data_has_no_row():
    found = rows_of(rounds((2, 2)), scenario(at_least=1))
    assert "ttft_p50_ms" not in {row.metric for row in found}  # nothing was streamed


def test_the_scenarios_comparisons_are_checked():
    played = rounds((20, 10), (20, 10))

    def passed(**bounds) -> bool:
        asked = scenario(**bounds)
        return checks_of(rows_of(played, asked), played, asked, ["stock"])[1].passed

    assert passed(at_least=2)
    assert not passed(at_least=2.1)
    assert passed(at_most=2)
    assert not passed(at_most=1.9)
    assert passed(difference_at_most=10)
    assert not passed(difference_at_most=9)


def test_comparisons_with_other_peers_are_skipped():
    played, asked = rounds((5, 5)), scenario(at_least=2)
    assert len(checks_of(rows_of(played, asked), played, asked, ["peft"])) == 1


@pytest.mark.parametrize("played", [[round_of("lorry", 0, 5)], rounds((5, 0))])
def test_a_comparison_without_data_fails(played):
    asked = scenario(at_least=1)
    missed = checks_of(rows_of(played, asked), played, asked, ["stock"])[1]
    assert (missed.passed, missed.found) == (False, "no data")


def test_only_our_own_wrong_answers_fail():
    ours = [round_of("lorry", 0, 5, wrong=1), round_of("stock", 0, 5)]
    theirs = [round_of("lorry", 0, 5), round_of("stock", 0, 5, wrong=3, failed=1)]
    asked = scenario(at_least=0)
    assert not checks_of(rows_of(ours, asked), ours, asked, ["stock"])[0].passed
    assert checks_of(rows_of(theirs, asked), theirs, asked, ["stock"])[0].passed


def test_differing_counts_of_our_own_server_fail():
    played, asked = [round_of("lorry", 0, 5, apart=2)], scenario(at_least=0)
    found = checks_of(rows_of(played, asked), played, asked, [])[0]
    assert (found.passed, found.found) == (False, "0, 0 and 2")


def foreign(output_tokens: int = 10, **faults: int) -> list[Round]:
    """A round of ours, and of llama.cpp with other answers."""
    ours = [record(number=n) for n in range(3)]
    theirs = [record(number=n, output_tokens=output_tokens) for n in range(1, 5)]
    sides = (("lorry", ours, {}), ("llamacpp", theirs, faults))
    return [
        replace(round_of(side, 0, 1, **counts), lengths=lengths_of(records))
        for side, records, counts in sides
    ]


@pytest.mark.parametrize(
    ("played", "found"),
    [
        (foreign(), "0, 0 and 0"),
        (foreign(output_tokens=9), "0, 0 and 2"),  # of calls that both sides made
        (foreign(wrong=1, failed=2), "1, 2 and 0"),
        ([round_of("lorry", 0, 5)], "no data"),
    ],
)
def test_a_peer_with_files_of_its_own_must_do_the_same_work(played, found):
    check = checks_of([], played, scenario_of(), ["llamacpp"])[1]
    assert (check.found, check.passed) == (found, found == "0, 0 and 0")


def test_failed_calls_are_noted_by_side_and_reason():
    calls = [failed(number=1), failed(number=2), failed(number=3, reason="timeout"), record()]
    theirs = replace(round_of("stock", 0, 1), summary=summarize(run_of(*calls), scenario_of()))
    assert failures_of([round_of("lorry", 0, 5), theirs, theirs]) == [
        "stock: failed calls: 4 http_503_adapters_busy, 2 timeout"
    ]
