"""The simulation: its servers are those that were measured, and its comparison comes out."""

from __future__ import annotations

from math import inf, isfinite
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from cluster.simulation import cli, report
from cluster.simulation.figures import by_phase
from cluster.simulation.machine import Machine
from cluster.simulation.replica import Call, SimulatedReplica
from cluster.simulation.run import PHASES, Plan, policies, simulate

SMALL = Plan(replicas=20, adapters=2000, phase_seconds=10)
DOCS = Path(__file__).parents[2] / cli.DOCS


class Clock:
    """The events of one replica, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list = []

    def schedule(self, when, what) -> None:
        self.events.append((when, len(self.events), what))
        self.events.sort(key=lambda event: event[:2])

    def run(self, until=float("inf"), check=lambda: None) -> None:
        while self.events and self.events[0][0] <= until:
            self.now, _, what = self.events.pop(0)
            what(self.now)
            check()


def tokens_per_second(calls: int, adapters: int) -> float:
    """Of a replica that answers so many endless calls at once."""
    clock = Clock()
    replica = SimulatedReplica("only", Machine(load_seconds=0), clock.schedule)
    for number in range(calls):
        adapter = f"adapter-{number % adapters}" if adapters else None
        replica.take(Call(0.0, adapter, tokens=100), 0.0)
    clock.run()
    return calls * 100 / clock.now


def test_a_replica_answers_as_fast_as_the_benchmarks_say():
    """docs/benchmarks.md: nf4-1, nf4-24, and mixed-nf4 by its ratio to its own base, 524.3."""
    assert tokens_per_second(1, 0) == pytest.approx(95.1, rel=0.01)
    assert tokens_per_second(24, 0) == pytest.approx(516.9, rel=0.01)
    assert tokens_per_second(24, 8) == pytest.approx(452.8, rel=0.02)


def test_a_replica_with_one_place_is_the_queue_of_the_textbook():
    """M/M/1: calls wait rho / (mu - lambda) on average."""
    machine = Machine(1, 1, 1, step_seconds=1 / 32, sequence_seconds=0, adapter_seconds=0)
    plan = Plan(replicas=1, load=0.5, phase_seconds=4000, machine=machine)
    clock = Clock()
    replica = SimulatedReplica("only", machine, clock.schedule)
    calls = list(plan.traffic().calls(plan.seconds))
    for call in calls:
        call.adapter = None
        clock.run(call.arrived)
        replica.take(call, call.arrived)
    clock.run()
    assert sum(call.started - call.arrived for call in calls) / len(calls) == pytest.approx(
        0.5 / (1 - 0.5), rel=0.1
    )


CALLS = st.lists(
    st.tuples(
        st.floats(0, 0.5), st.none() | st.integers(0, 9).map(str), st.floats(1, 60), st.booleans()
    ),
    min_size=1,
    max_size=60,
)


@given(CALLS, st.integers(1, 6), st.integers(1, 4), st.integers(0, 4))
def test_a_replica_answers_every_call_within_its_places(calls, sequences, slots, more) -> None:
    clock, taken = Clock(), []
    machine = Machine(sequences, slots, slots + more)
    replica = SimulatedReplica("only", machine, clock.schedule)

    def check() -> None:
        loading = replica._loading
        assert len(replica.steps) + sum(map(len, loading.values())) <= sequences
        assert len(replica.steps.adapters) + len(loading) <= slots
        assert len(replica._resident) + len(loading) <= slots + more
        assert set(replica.steps.adapters) <= set(replica._resident)
        assert replica.in_flight >= len(replica.steps)

    at = 0.0
    for gap, adapter, tokens, dies in calls:
        at += gap
        clock.run(at, check)
        if dies and len(taken) % 7 == 6:
            left = replica.die()
            assert all(call.started == inf for call in left)
            for call in left:
                replica.take(call, at)
        taken.append(Call(at, adapter, tokens))
        replica.take(taken[-1], at)
        check()
    clock.run(check=check)
    assert replica.in_flight == 0
    assert all(isfinite(call.started) for call in taken)


@pytest.fixture(scope="module")
def figures():
    return {name: by_phase(SMALL, simulate(SMALL, policy)) for name, policy in policies(1).items()}


@pytest.mark.parametrize("phase", range(len(PHASES)), ids=PHASES)
def test_bounded_affinity_hits_as_affinity_does_and_waits_less_than_all(figures, phase):
    at = {name: each[phase] for name, each in figures.items()}
    bounded, plain = at["bounded affinity"], at["plain affinity"]
    assert bounded.hit_rate > 1.5 * max(at["random"].hit_rate, at["least loaded"].hit_rate)
    assert bounded.hit_rate > plain.hit_rate - 0.15
    assert bounded.loads_per_second < 0.6 * at["random"].loads_per_second
    assert bounded.wait_p99 < 0.7 * min(
        each.wait_p99 for name, each in at.items() if name != "bounded affinity"
    )
    assert bounded.wait_p99 < plain.wait_p99 / 5
    assert bounded.fairness > 0.95 > plain.fairness


def test_calls_are_lost_only_where_they_had_begun_on_a_replica_that_died():
    plan = Plan(replicas=5, adapters=50, load=0.3, phase_seconds=5)
    outcome = simulate(plan, policies(1)["bounded affinity"])
    deaths = plan.begin(1)
    cut = [call for call in outcome.calls if call.was_cut]
    assert cut
    assert all(call.replica == "replica-000" and call.started <= deaths for call in cut)
    assert all(isfinite(call.started) for call in outcome.calls)
    away = (call for call in outcome.calls if deaths < call.arrived < plan.begin(2))
    assert "replica-000" not in {call.replica for call in away}


def run(folder: Path, *options: str) -> str:
    small = ("--replicas=4", "--adapters=100", "--phase=2")
    result = CliRunner().invoke(cli.app, [*small, f"--chart={folder / 'chart.svg'}", *options])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_same_seed_prints_and_draws_the_same(tmp_path):
    first, second = run(tmp_path / "a"), run(tmp_path / "b")
    assert first.replace("/a/", "/b/") == second
    charts = [(tmp_path / each / "chart.svg").read_bytes() for each in "ab"]
    assert charts[0] == charts[1]
    assert run(tmp_path / "c", "--seed=2").splitlines()[4:] != first.splitlines()[4:]


def test_the_table_has_each_way_in_each_phase_and_the_chart_names_them(tmp_path):
    printed = run(tmp_path)
    chart = (tmp_path / "chart.svg").read_text()
    for name in policies(1):
        assert printed.count(f"| {name} |") == len(PHASES)
        assert name in chart
    assert all(f"**{phase}**" in printed and phase in chart for phase in PHASES)


def test_docs_get_table_and_chart_between_their_marks_and_keep_the_rest(tmp_path, monkeypatch):
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    monkeypatch.setattr(cli, "DOCS", page)
    run(tmp_path, "--write-docs")
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n`python -m cluster.simulation")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "| bounded affinity |" in text
    assert (tmp_path / report.CHART).read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--replicas=1"], "--replicas"),
        (["--load=0"], "--load"),
        (["--bound=0.9"], "--bound"),
        (["--slots=40", "--places=32"], "as many places as slots"),
        (["--phase=3600"], "lower --phase"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(options, said):
    result = CliRunner().invoke(cli.app, options)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_chart_that_cannot_be_written_is_an_error_in_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    options = ["--replicas=2", "--adapters=10", "--phase=1"]
    result = CliRunner().invoke(cli.app, [*options, f"--chart={tmp_path}/file/chart.svg"])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: can't write")


@pytest.mark.slow
def test_the_figures_in_the_docs_are_those_of_this_code():
    plan = Plan()
    outcomes = {name: simulate(plan, policy) for name, policy in policies(plan.seed).items()}
    text = DOCS.read_text()
    assert report.facts(plan, outcomes) in text
    assert report.table(plan, outcomes) in text
