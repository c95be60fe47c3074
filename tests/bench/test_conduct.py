"""Which sides run when, and which rows a failed side takes with it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.conduct import measure, rotate
from bench.results import Result
from bench.rows import BASE16, Contest, Entry, Row, all_rows, shrink
from bench.sides import Sides
from bench.spec import SideSpec
from bench.workload import Workload
from tests.bench.standin_side import FATAL

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
    slow = Contest("slow", most_rounds=3)
    pair = Entry(SideSpec("lorry"), WORK), Entry(SideSpec("stock-tuned"), WORK)
    results = conduct(ROWS["mixed-bf16"], Row("slow", "", slow, *pair), rounds=4)
    assert results["mixed-bf16"].rounds == 4
    assert results["slow"].rounds == 3
    # The stand-in reports half a second for each run.
    mixed = results["mixed-bf16"].row.over.workload
    assert results["mixed-bf16"].over == mixed.streams * mixed.output_tokens / 0.5
    ratio = results["mixed-bf16"].ratio
    assert ratio is not None
    assert ratio.median == 1.0


def test_base_requests_that_an_adapter_leaks_into_are_found_wrong(conduct):
    right = ROWS["truth-bf16"]
    leaking = replace(right.over, side=SideSpec("stock-tuned", max_loras=8))
    wrong = replace(right, name="wrong", over=leaking, under=leaking)
    results = conduct(right, wrong)
    figures = {name: (each.over, each.under, each.reached) for name, each in results.items()}
    assert figures == {"truth-bf16": (16, 16, True), "wrong": (0, 16, False)}
    assert "16 wrong" in results["wrong"].note


def test_a_side_that_fails_takes_its_own_rows_with_it_and_no_others(conduct):
    results = conduct(ROWS["stock-nf4"], ROWS["stock-tuned-nf4"], ROWS["mixed-nf4"])
    assert "stock vLLM, NF4: RuntimeError: this machine" in results["stock-nf4"].failure
    assert results["stock-tuned-nf4"].failure == ""
    assert results["mixed-nf4"].failure == ""


def test_a_side_that_dies_in_a_round_takes_its_row_with_it(conduct):
    fatal = replace(WORK, output_tokens=FATAL)
    pair = Entry(SideSpec("lorry"), fatal), Entry(SideSpec("stock-tuned"), WORK)
    results = conduct(Row("fatal", "", Contest("one"), *pair))
    assert "best base, bf16: it ended" in results["fatal"].failure


def test_rows_with_a_goal_come_first(conduct):
    contest = Contest("one")
    pair = Entry(SideSpec("lorry"), WORK), Entry(SideSpec("stock-tuned"), WORK)
    rows = [Row("b", "", contest, *pair), Row("a", "", contest, *pair, goal=0.5)]
    assert list(conduct(*rows, rounds=1)) == ["a", "b"]
