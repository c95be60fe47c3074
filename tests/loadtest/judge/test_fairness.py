"""How evenly adapters are served, against values computed by hand."""

from __future__ import annotations

import pytest
from load_records import failed, record, window

from loadtest.judge import fairness
from loadtest.records import Record, Window


def call(model: str, at: float, output_tokens: int = 10, **fields: object) -> Record:
    """A call whose tokens all arrive at once."""
    times = {"scheduled": at, "first": at, "gaps": [], "ended": at}
    return record(model=model, output_tokens=output_tokens, **{**times, **fields})


def tokens(calls: list[Record], windows: list[Window]) -> list[float]:
    return fairness.tokens(fairness.by_second(calls, windows))


def least_share(calls: list[Record], windows: list[Window]) -> float | None:
    return fairness.least_share(fairness.by_second(calls, windows))


def steadily(model: str, seconds: range, output_tokens: int = 10) -> list[Record]:
    return [call(model, second + 0.5, output_tokens) for second in seconds]


def test_adapters_with_equal_tokens_have_their_due_in_every_window():
    calls = steadily("a", range(30)) + steadily("b", range(30))
    assert least_share(calls, [window(seconds=30)]) == 1
    assert tokens(calls, [window(seconds=30)]) == [300, 300]


def test_the_least_share_is_that_of_the_worst_window_and_adapter():
    """B gets nothing from second 10 to 14: half in the windows around it, and less of its due."""
    pause = [*range(10), *range(15, 30)]
    calls = steadily("a", range(30)) + [call("b", second + 0.5) for second in pause]
    assert least_share(calls, [window(seconds=30)]) == pytest.approx(5 / 7.5)


def test_windows_lie_within_the_phases_whole_seconds():
    """Tokens before its begin and after its end, as callers finish, do not count."""
    calls = steadily("a", range(100, 112)) + steadily("b", range(100, 111))
    late = [call("b", 111.5), *steadily("b", range(112, 130))]
    windows = [window(began=100.0, seconds=11.9)]
    assert least_share(calls + late, windows) == 1
    assert tokens(calls + late, windows) == [110, 110]


def test_an_adapter_without_an_answer_has_no_share():
    calls = [*steadily("a", range(10)), failed(model="b", ended=30.0)]
    assert least_share(calls, [window()]) == 0
    assert tokens(calls, [window()]) == [100, 0]


def test_seconds_in_which_nobody_is_served_do_not_count():
    calls = steadily("a", range(10)) + steadily("b", range(10))
    assert least_share(calls, [window(seconds=60)]) == 1
    assert least_share([failed(model="a"), failed(model="b")], [window()]) is None


def test_a_window_needs_ten_seconds_and_two_adapters():
    calls = steadily("a", range(9)) + steadily("b", range(9))
    assert least_share(calls, [window(seconds=9.9)]) is None
    base = [record(model="base", is_base=True)]
    assert least_share(steadily("a", range(30)) + base, [window(seconds=30)]) is None


def test_tokens_of_a_stream_count_when_its_pieces_arrive():
    """Twenty pieces a second apart: ten of them in the phase."""
    stream = record(model="a", first=0.5, gaps=[1.0] * 19, output_tokens=40, ended=20.0)
    assert tokens([stream], [window()]) == [20]


def test_each_phase_has_windows_of_its_own():
    windows = [window("one"), window("two", began=10.0)]
    calls = [
        *(call("a", 0.5, 30, phase="one"), call("b", 0.5, 10, phase="one")),
        *(call("a", 10.5, 10, phase="two"), call("b", 10.5, 30, phase="two")),
    ]
    assert least_share(calls, windows) == 0.5
    assert tokens(calls, windows) == [40, 40]
