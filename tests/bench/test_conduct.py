"""Rows from measurements: who runs when, and what a failed side takes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.conduct import measure, rotate
from bench.results import Result
from bench.rows import BASE16, Contest, Entry, Row, all_rows, shrink
from bench.sides import Sides
from bench.spec import SideSpec
from bench.workload import Workload

ROWS = {row.name: shrink(row) for row in all_rows()}
WORK = Workload(streams=2, prompt_tokens=4, output_tokens=4)


@pytest.fixture
def conduct(home, standin):
    def run(*rows: Row, rounds: int = 2) -> dict[str, Result]:
        with Sides(home, standin) as sides:
            results = measure(rows, rounds, sides, lambda line: None)
        return {result.row.name: result for result in results}

    return run


def test_each_entry_is_first_in_some_round():
    entries = [Entry(BASE16, replace(WORK, streams=n)) for n in (1, 2, 3)]
    assert [rotate(entries, n)[0] for n in range(4)] == [*entries, entries[0]]
    assert all(set(rotate(entries, n)) == set(entries) for n in range(4))


def test_speed_rows_get_the_rounds_asked_for_and_slow_contests_fewer(conduct):
    results = conduct(ROWS["mixed-bf16"], ROWS["prompt-128"], rounds=4)
    assert results["mixed-bf16"].rounds == 4
    assert results["prompt-128"].rounds == 3
    # The stand-in says that each run took half a second.
    mixed = results["mixed-bf16"].row.over.workload
    assert results["mixed-bf16"].over == mixed.streams * mixed.output_tokens / 0.5
    ratio = results["mixed-bf16"].ratio
    assert ratio is not None
    assert ratio.median == 1.0


def test_memory_rows_show_the_peak_and_what_is_held_after_it(conduct):
    result = conduct(ROWS["memory-bf16"])["memory-bf16"]
    assert result.over is not None
    assert result.over > 1_000_000
    assert "held after the run: 0." in result.note


def test_base_requests_that_an_adapter_leaks_into_are_found_wrong(conduct):
    results = conduct(ROWS["truth-bf16"], ROWS["truth-stock-nf4"])
    right, wrong = results["truth-bf16"], results["truth-stock-nf4"]
    assert (right.over, right.under, right.reached) == (16, 16, True)
    assert (wrong.over, wrong.under, wrong.reached) == (0, 8, None)
    assert "8 wrong" in wrong.note


def test_a_side_that_fails_takes_its_own_rows_with_it_and_no_others(conduct):
    results = conduct(ROWS["memory-bf16"], ROWS["memory-bf16-stock"], ROWS["mixed-bf16"])
    assert "stock vLLM, bf16: RuntimeError: this machine" in results["memory-bf16-stock"].failure
    assert results["memory-bf16"].failure == ""
    assert results["mixed-bf16"].failure == ""


def test_a_side_that_dies_in_a_round_takes_its_row_with_it(conduct):
    results = conduct(ROWS["peer-switch"])
    assert "PEFT, set_adapter: it ended" in results["peer-switch"].failure


def test_rows_with_a_goal_come_first(conduct):
    contest = Contest("one")
    pair = Entry(SideSpec("lorry"), WORK), Entry(SideSpec("stock-tuned"), WORK)
    rows = [Row("b", "", contest, *pair), Row("a", "", contest, *pair, goal=0.5)]
    assert list(conduct(*rows, rounds=1)) == ["a", "b"]
