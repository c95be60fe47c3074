"""Whether memory grew: the line through the samples, and from where they come."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from bench.errors import OptionsClash, SideFailed
from bench.growth import MIB, Sample, sample_while, session_of, summarize


def samples(*held_mib: float, calls: int = 500) -> list[Sample]:
    """One every 30 s, the first of which are of the first minute; `calls` between two."""
    return [
        Sample(number * 30.0, number * calls, round(held * MIB))
        for number, held in enumerate(held_mib)
    ]


def test_a_server_that_leaks_has_a_slope_for_each_thousand_calls() -> None:
    grown = summarize(samples(10, 90, 100, 102, 104, 106))
    assert grown == {
        "start_mib": 100.0,
        "end_mib": 106.0,
        "mib_per_1000_calls": 4.0,
        "calls": 1500,
        "seconds": 90.0,
        "samples": 4,
    }


def test_what_a_server_builds_up_in_its_first_minute_is_no_growth() -> None:
    flat = summarize(samples(10, 500, 700, 700, 700))
    assert flat["mib_per_1000_calls"] == 0


def test_the_slope_is_that_of_the_least_squares_not_of_the_ends() -> None:
    # x: 1, 1.5, 2, 2.5 thousand; y: 100, 100, 100, 110. Covariance 7.5, variance 1.25.
    assert summarize(samples(0, 0, 100, 100, 100, 110))["mib_per_1000_calls"] == 6.0


def test_memory_that_is_given_back_has_a_slope_below_zero() -> None:
    assert summarize(samples(0, 0, 104, 102, 100))["mib_per_1000_calls"] == -4.0


def test_without_an_answer_there_is_no_slope() -> None:
    assert summarize(samples(0, 0, 100, 101, calls=0))["mib_per_1000_calls"] is None


@pytest.mark.parametrize("held", [(), (1, 2), (1, 2, 3)])
def test_a_run_of_a_minute_says_nothing(held) -> None:
    with pytest.raises(OptionsClash, match="--minutes"):
        summarize(samples(*held))


def test_a_server_in_the_commands_own_session_is_refused() -> None:
    with pytest.raises(OptionsClash, match="setsid"):
        session_of(os.getpid())


@pytest.fixture
def server():
    code = "import sys; print(flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, **pipes) as process:
        process.stdout.readline()
        yield process


async def test_samples_are_of_the_servers_session_until_the_run_ends(server) -> None:
    session = session_of(server.pid)
    assert session == server.pid
    answered = iter(range(100))
    run = asyncio.create_task(asyncio.sleep(0.3))
    found = await sample_while(run, session, lambda: next(answered), 0.05)
    assert [each.calls for each in found] == list(range(len(found)))
    assert len(found) > 1
    assert all(MIB < each.held < 1000 * MIB for each in found)


async def test_a_server_that_ends_ends_the_run(server) -> None:
    session = session_of(server.pid)
    server.communicate()
    run = asyncio.create_task(asyncio.sleep(60))
    with pytest.raises(SideFailed, match="has ended"):
        await sample_while(run, session, lambda: 0, 0.05)
    run.cancel()
    with pytest.raises(SideFailed, match="no process"):
        session_of(server.pid)
