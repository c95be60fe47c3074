"""What a step costs whatever the model's width, on sides that all take half a second."""

from __future__ import annotations

import pytest

from bench import fixed
from bench.errors import SideFailed
from bench.model import FULL, Home
from bench.rows import Entry
from bench.sides import Sides
from bench.spec import Outcome, SideSpec
from bench.workload import Workload


def test_each_side_has_a_line_with_its_milliseconds_a_step(
    home: Home, standin: tuple[str, ...]
) -> None:
    with Sides(home, standin) as sides:
        table = fixed.measure("bitsandbytes", 1, sides)
    assert [line["side"] for line in table] == ["base", "twin", "base requests", "mixed"]
    assert {line["ms a step"] for line in table} == {round(500 / 64, 2)}


def test_what_is_more_is_the_median_of_the_rounds_own_differences(
    home: Home, standin: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = Workload(output_tokens=1000)
    base, ours = (Entry(SideSpec("lorry", max_loras=slots), workload) for slots in (0, 8))
    took = {base.side: [10.0, 30.0, 20.0], ours.side: [13.0, 31.0, 60.0]}
    monkeypatch.setattr(fixed, "entries", lambda quantization: {"base": base, "ours": ours})
    with Sides(home, standin) as sides:
        monkeypatch.setattr(
            sides, "answer", lambda spec, workload, seed: Outcome(took[spec][seed % 3], [])
        )
        table = fixed.measure("none", 3, sides)
    assert table == [
        {"side": "base", "ms a step": 20.0, "more": 0.0},
        {"side": "ours", "ms a step": 31.0, "more": 3.0},
    ]


def test_a_side_that_fails_leaves_nothing_to_compare(
    home: Home, standin: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Entry(SideSpec("stock"), Workload())
    monkeypatch.setattr(fixed, "entries", lambda quantization: {"base": broken})
    with Sides(home, standin) as sides, pytest.raises(SideFailed, match="too small"):
        fixed.measure("none", 1, sides)


def test_the_narrow_model_makes_as_many_calls_as_the_bench_s() -> None:
    assert fixed.NARROW.layers == FULL.layers
    narrow, full = list(fixed.NARROW.linears()), list(FULL.linears())
    assert [name for name, *_ in narrow] == [name for name, *_ in full]
    # What the NF4 kernel takes: whole panels of columns and blocks of weights.
    assert all(outputs % 16 == 0 and inputs % 64 == 0 for _, outputs, inputs in narrow)
