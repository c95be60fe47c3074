"""The rows, and that each compares like with like."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.errors import RowUnknown
from bench.rows import Row, all_rows, choose, shrink

ROWS = all_rows()
BY_NAME = {row.name: row for row in ROWS}
GOALS = {
    "mixed-bf16": 0.90,
    "mixed-nf4": 0.90,
    "stock-nf4": 10,
    "stock-tuned-nf4": 7,
    "base-only-bf16": 0.98,
    "base-only-nf4": 0.98,
    "nf4-1": 1.5,
    "nf4-24": 0.9,
    "truth-bf16": 1.0,
    "truth-nf4": 1.0,
    "slots-32": 0.85,
    "rank-64": 0.80,
    "sums-16": 0.98,
}


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


def test_every_goal_has_its_row_and_only_the_noise_has_none():
    assert {row.name: row.goal for row in ROWS if row.goal is not None} == GOALS
    assert [row.name for row in ROWS if row.goal is None] == ["noise-bf16", "noise-nf4"]


def test_names_are_unique_and_so_are_the_files_of_different_sides():
    assert len(BY_NAME) == len(ROWS)
    sides = {entry.side for row in ROWS for entry in row.entries}
    assert len({side.slug for side in sides}) == len(sides)


def test_both_sides_answer_requests_of_one_shape():
    shapes = {row: {replace(each.workload, adapters=()) for each in row.entries} for row in ROWS}
    assert [row.name for row, its in shapes.items() if len(its) > 1] == []


def test_the_sides_of_a_speed_row_are_different_processes():
    assert all(row.over.side != row.under.side for row in ROWS if row.contest.kind == "speed")


def test_a_side_has_a_slot_and_a_stream_for_every_adapter_of_its_workload():
    for entry in (entry for row in ROWS for entry in row.entries):
        adapters = {name for name in entry.workload.adapters if name}
        assert len(adapters) <= min(entry.workload.streams, entry.side.max_loras), entry


def test_the_best_base_is_our_engine_with_lora_off():
    row = BY_NAME["mixed-nf4"]
    assert row.under.side == replace(row.over.side, max_loras=0)


@pytest.mark.parametrize("weights", ["bf16", "nf4"])
def test_noise_compares_the_best_base_with_a_second_process_in_the_same_rounds(weights):
    noise, judged = BY_NAME[f"noise-{weights}"], BY_NAME[f"base-only-{weights}"]
    assert noise.contest == judged.contest
    assert noise.over == judged.under
    assert noise.under == replace(noise.over, side=replace(noise.over.side, is_twin=True))
    assert noise.goal is None


def test_stock_gets_the_same_requests_and_lacks_our_plugin():
    for name in ("stock-nf4", "stock-tuned-nf4"):
        row = BY_NAME[name]
        assert row.under.workload == row.over.workload
        assert replace(row.under.side, kind="lorry") == row.over.side
        assert row.under.side.kind in ("stock", "stock-tuned")


def test_in_a_truth_row_base_and_adapters_take_turns():
    adapters = BY_NAME["truth-nf4"].over.workload.adapters
    assert len(adapters) == 16
    assert set(adapters[::2]) == {None}
    assert None not in adapters[1::2]


def test_never_more_than_five_sides_are_up_together():
    contests = list(dict.fromkeys(row.contest for row in ROWS))
    started: set[object] = set()
    for number, contest in enumerate(contests):
        later = {e.side for row in ROWS if row.contest in contests[number:] for e in row.entries}
        started = started & later
        started |= {e.side for row in ROWS if row.contest == contest for e in row.entries}
        assert len(started) <= 5


def test_rows_are_chosen_by_name_and_by_pattern_in_their_own_order():
    assert names(choose(["mixed-nf4", "mixed-bf16"], ROWS)) == ["mixed-bf16", "mixed-nf4"]
    assert names(choose(["stock-*"], ROWS)) == ["stock-nf4", "stock-tuned-nf4"]
    assert choose(["*"], ROWS) == ROWS


def test_a_pattern_that_matches_no_row_is_refused_and_the_rows_are_named():
    with pytest.raises(RowUnknown, match=r"'mixed'.*mixed-bf16"):
        choose(["nf4-1", "mixed"], ROWS)


def test_a_shrunken_row_gives_both_sides_the_same_requests_with_fewer_tokens():
    row = shrink(BY_NAME["mixed-nf4"])
    assert row.over.workload.prompt_tokens == row.under.workload.prompt_tokens < 128
    assert row.over.workload.adapters == BY_NAME["mixed-nf4"].over.workload.adapters
