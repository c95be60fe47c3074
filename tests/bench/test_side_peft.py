"""The PEFT side for real, on a tiny model: child processes, torch, two adapters."""

from __future__ import annotations

from bench.sides import Sides
from bench.spec import SideSpec
from bench.workload import BASE, Workload

BOTH = Workload(streams=4, prompt_tokens=8, output_tokens=6, adapters=(BASE, "r16-00", "r16-01"))


def test_both_ways_of_peft_answer_each_request_with_its_own_adapter(tiny_home):
    specs = [SideSpec("peft-switch"), SideSpec("peft-mixed")]
    with Sides(tiny_home) as sides:
        sides.start(specs)
        outcomes = [sides.run(spec, BOTH, seed=1) for spec in specs]
        memory = [sides.memory(spec) for spec in specs]
    assert sides.failures == {}
    assert all(peak > held > 50 * 1024**2 for peak, held in memory), "torch alone is larger"
    switching, mixed = (outcome.tokens for outcome in outcomes)
    base, first, second, base_again = switching
    # The first token follows from the prompt alone: rounding has had no time to part them.
    assert [answer[0] for answer in mixed] == [base[0], first[0], second[0], base_again[0]]
    assert len({tuple(answer) for answer in mixed}) == 4
