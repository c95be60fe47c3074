"""A side is a real process tree here, with the real protocol and a stand-in for the engine."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from bench import sides
from bench.errors import SideFailed
from bench.model import Home
from bench.sides import Side, Sides
from bench.spec import SideSpec
from bench.workload import Workload
from loadtest.servers import processes
from tests.bench import standin_side

LONG = Workload(streams=1, prompt_tokens=4, output_tokens=standin_side.LONG)
SHORT = Workload(streams=3, prompt_tokens=4, output_tokens=5, adapters=("a", None))
FATAL = replace(SHORT, output_tokens=standin_side.FATAL)
WELL = SideSpec("lorry")
pytestmark = pytest.mark.slow


Make = Callable[..., Side]


@pytest.fixture
def make(home: Home, standin) -> Iterator[Make]:
    with contextlib.ExitStack() as stack:

        def make(spec: SideSpec, command: Sequence[str] = standin) -> Side:
            side = Side(spec, home, command)
            stack.callback(side.stop)
            return side

        yield make


@pytest.fixture
def side(make: Make) -> Side:
    return make(WELL)


def states(session: int) -> set[str]:
    stats = [Path(f"/proc/{pid}/stat").read_text() for pid in processes.members(session)]
    return {stat.rpartition(")")[2].split()[0] for stat in stats}


def wait_frozen(session: int) -> bool:
    deadline = time.monotonic() + 5
    while states(session) != {"T"} and time.monotonic() < deadline:
        time.sleep(0.005)
    return states(session) == {"T"}


def test_output_of_a_side_and_its_children_does_not_reach_the_answers(side, home):
    side.begin()
    side.wait_ready()
    for seed in range(3):
        outcome = side.run(SHORT, seed)
        assert [len(answer) for answer in outcome.tokens] == [5, 5, 5]
        assert outcome.rate == 15 / 0.5
    log = next(home.logs.iterdir()).read_text()
    for noise in ("a line of noise", "noise below Python", "noise before", "noise of a child"):
        assert noise in log


def test_the_same_seed_gives_the_same_requests_and_only_selects_some_of_them(side):
    side.begin()
    side.wait_ready()
    all_of_it = side.run(SHORT, seed=7)
    assert side.run(SHORT, seed=7).tokens == all_of_it.tokens
    part = side.run(SHORT, seed=7, only=[2], rivals=True)
    assert part.tokens == [all_of_it.tokens[2]]
    assert part.rivals == [[[]] * 5]
    assert all_of_it.rivals is None


def test_an_idle_side_stands_still_with_all_its_children(side):
    side.begin()
    side.wait_ready()
    assert len(processes.members(side.session)) == 2
    assert wait_frozen(side.session)
    side.run(SHORT, seed=0)
    assert wait_frozen(side.session)


def test_memory_is_that_of_the_whole_tree(side):
    side.begin()
    side.wait_ready()
    side.run(SHORT, seed=0)
    peak, held = processes.peak_bytes(side.session), processes.held_bytes(side.session)
    alone = Path(f"/proc/{side.session}/status").read_text().partition("VmHWM:")[2].split()[0]
    assert peak > int(alone) * 1024
    assert 0 < held < peak


def test_stopping_a_frozen_side_leaves_no_process(side):
    side.begin()
    side.wait_ready()
    session = side.session
    side.stop()
    assert processes.members(session) == []


def test_a_side_that_does_not_start_says_why(make):
    side = make(SideSpec("stock"))
    side.begin()
    with pytest.raises(SideFailed, match=r"^RuntimeError: this machine is too small \(see .*stock"):
        side.wait_ready()


def test_a_side_that_dies_while_it_answers_has_failed(side):
    side.begin()
    side.wait_ready()
    with pytest.raises(SideFailed, match="it ended"):
        side.run(FATAL, seed=0)
    side.stop()
    assert processes.members(side.session) == []


def test_a_side_that_was_killed_between_two_runs_has_failed(side):
    side.begin()
    side.wait_ready()
    processes.send(side.session, signal.SIGKILL)
    while processes.members(side.session):
        time.sleep(0.005)
    with pytest.raises(SideFailed, match="it ended"):
        side.run(SHORT, seed=0)


def test_an_answer_with_too_few_tokens_fails_the_side(side):
    side.begin()
    side.wait_ready()
    with pytest.raises(SideFailed, match=r"3 answers of 91 tokens, got \[90, 90, 90\]"):
        side.run(replace(SHORT, output_tokens=standin_side.SHORTENED), seed=0)


def test_a_silent_side_fails_after_a_timeout(make, monkeypatch):
    monkeypatch.setattr(sides, "START_SECONDS", 0.1)
    side = make(WELL, ("sleep", "60"))
    side.begin()
    with pytest.raises(SideFailed, match="no answer within"):
        side.wait_ready()
    monkeypatch.setattr(sides, "_STOP_SECONDS", 0.1)
    side.stop()
    assert processes.members(side.session) == []


def test_a_failed_side_is_taken_down_and_the_others_go_on(home, standin):
    bad = SideSpec("stock")
    with Sides(home, standin) as up:
        up.start([WELL, bad])
        assert "too small" in up.failures[bad]
        assert up.run(bad, SHORT, 0) is None
        sessions = up.sessions()
        up.start([WELL, bad])
        assert up.sessions() == sessions, "neither a second one nor another try"
        assert up.run(WELL, SHORT, 0) is not None


def test_sides_go_down_when_the_bench_is_interrupted(home, standin):
    specs = [WELL, SideSpec("stock-tuned")]
    up = Sides(home, standin)
    with contextlib.suppress(KeyboardInterrupt), up:
        up.start(specs)
        sessions = up.sessions()
        raise KeyboardInterrupt
    assert len(sessions) == 2
    assert [processes.members(session) for session in sessions] == [[], []]


def test_a_race_is_run_in_turns_and_each_is_timed_while_awake(home, standin, monkeypatch):
    monkeypatch.setattr(sides, "SLICE_SECONDS", 0.05)
    specs = [WELL, SideSpec("stock-tuned")]
    with Sides(home, standin) as up:
        up.start(specs)
        advanced = note_turns(monkeypatch)
        began = time.perf_counter()
        outcomes = up.race({specs[0]: LONG, specs[1]: LONG}, seed=0)
        took = time.perf_counter() - began
        assert all(wait_frozen(session) for session in up.sessions())
    assert len(advanced) > 8
    assert advanced[:8] == specs * 4
    seconds = [outcomes[spec].seconds for spec in specs]
    # Not the time that it reports. A stop takes effect moments late, and it works until then.
    assert min(seconds) > 0.9 * standin_side.COMPUTING
    assert sum(seconds) <= took


def note_turns(monkeypatch: pytest.MonkeyPatch) -> list[SideSpec]:
    advanced = []
    advance = Side.advance

    def noting(self, seconds):
        advanced.append(self.spec)
        return advance(self, seconds)

    monkeypatch.setattr(Side, "advance", noting)
    return advanced


def test_a_side_that_dies_in_a_race_leaves_the_other_its_outcome(home, standin):
    dying = SideSpec("stock-tuned")
    with Sides(home, standin) as up:
        up.start([dying, WELL])
        outcomes = up.race({dying: FATAL, WELL: SHORT}, seed=0)
        assert list(outcomes) == [WELL]
        assert "it ended" in up.failures[dying]
        assert list(up.race({dying: SHORT, WELL: SHORT}, seed=1)) == [WELL]


def test_an_endless_answer_fails_the_side(side, monkeypatch):
    monkeypatch.setattr(sides, "RUN_SECONDS", 0.1)
    side.begin()
    side.wait_ready()
    side.ask(LONG, seed=0)
    assert side.advance(0.05) is None
    with pytest.raises(SideFailed, match="no answer within 0 s"):
        side.advance(0.05)
