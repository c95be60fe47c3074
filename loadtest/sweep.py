"""`sweep`: the same traffic at rising rates, a phase each, and where the server falls behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from loadtest.errors import OptionsClash
from loadtest.judge.knee import Sweep, knee_of, phase_name, points_of
from loadtest.judge.summary import Summary, metric_of, summarize
from loadtest.plan.scenario import Phase, Scenario
from loadtest.plan.traffic import Closed, Poisson
from loadtest.records import Run
from loadtest.report import sweep_report
from loadtest.report.files import show_paths
from loadtest.run import run_with_progress
from loadtest.servers.testbed import Options, opened

# Rates to try, as shares of a closed loop's throughput. Its callers wait for each other's steps, so
# an open loop, with more calls in flight, may get well beyond 1.
SHARES = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.2, 1.45, 1.75)
_CAPACITY = "capacity"  # the phase that measures the throughput
_CALLERS = 24  # of its closed loop
_WARM_UP = Phase(
    name="warm-up", seconds=5, measured=False, traffic={"x": Closed(kind="closed", concurrency=8)}
)


async def sweep(
    scenario: Scenario,
    stream: str,
    rates: Sequence[float],
    seconds: float,
    options: Options,
    out: Path,
    console: Console,
    as_json: bool,
) -> bool:
    """Run the sweep and write its report.

    Args:
        rates: calls per second; empty measures the throughput first and chooses rates around it.
        seconds: duration of each rate's phase.

    Returns:
        False if an answer was wrong or the counts differ. A server that does not keep up passes.
    """
    runs: list[Run] = []
    async with opened(scenario, options) as setting:
        if not rates:
            capacity = measuring_capacity(scenario, stream, seconds)
            runs.append(await run_with_progress(capacity, setting))
            rates = rates_of(summarize(runs[-1], capacity))
        swept = sweeping(scenario, stream, rates, seconds)
        run = await run_with_progress(swept, setting)
    runs.append(run)
    points = points_of(run, summarize(run, swept), rates)
    found = Sweep(
        scenario=scenario.name,
        stream=stream,
        target=run.target,
        date=run.date,
        plan=run.plan,
        points=points,
        knee=knee_of(points),
        wrong=sum(len(each.wrong) for each in runs),
        apart=sum(len(each.agreement.disagreements) for each in runs),
    )
    console.print(sweep_report.table(found))
    sweep_report.write(found, out)
    show_paths(console, out / "sweep.html", out / "sweep.json", as_json)
    return found.passed


def measuring_capacity(scenario: Scenario, stream: str, seconds: float) -> Scenario:
    """The scenario that measures the throughput of a closed loop."""
    closed = Closed(kind="closed", concurrency=_CALLERS)
    return _with_phases(
        scenario,
        _WARM_UP.model_copy(update={"traffic": {stream: closed}}),
        Phase(name=_CAPACITY, seconds=seconds, traffic={stream: closed}),
    )


def rates_of(capacity: Summary) -> list[float]:
    """Calls per second to try, from the closed loop's throughput.

    Raises:
        OptionsClash: no call was answered.
    """
    most = metric_of(capacity, "requests_per_second", _CAPACITY, None)
    if not most:
        raise OptionsClash("no call was answered, so no rates can be chosen: give --rates")
    return [round(most * share, 2) for share in SHARES]


def sweeping(scenario: Scenario, stream: str, rates: Sequence[float], seconds: float) -> Scenario:
    """The scenario with a phase for each rate, lowest first, after a warm-up."""
    first = Poisson(kind="poisson", rate=min(rates))
    return _with_phases(
        scenario,
        _WARM_UP.model_copy(update={"traffic": {stream: first}}),
        *(
            Phase(
                name=phase_name(number),
                seconds=seconds,
                traffic={stream: Poisson(kind="poisson", rate=rate)},
            )
            for number, rate in enumerate(sorted(rates))
        ),
    )


def _with_phases(scenario: Scenario, *phases: Phase) -> Scenario:
    """Without the scenario's own expectations: those are about its own phases."""
    return scenario.model_copy(update={"phases": list(phases), "expect": (), "compare": ()})
