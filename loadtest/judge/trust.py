"""Whether a result can be trusted: the load generator's lag and load, and the number of calls."""

from __future__ import annotations

from math import fsum

from loadtest.judge.summary import LATE_SECONDS, Summary
from loadtest.records import Run
from loadtest.statistics import percentile

LAG_SECONDS = 0.02  # p99 of the event loops' lag: more distorts every latency
LATE_SHARE = 0.01
BUSY_SHARE = 0.9  # of a core, by each process of the client
FEW = 100  # calls; below, p99 is the slowest call


def lag_p99(run: Run) -> float | None:
    """p99 of the event loops' lag, seconds."""
    return percentile(sorted(run.client.lag), 0.99) if run.client.lag else None


def busy_share(run: Run) -> float | None:
    """Mean share of a core that a process of the client used in all phases."""
    seconds = fsum(window.ended - window.began for window in run.windows)
    return run.client.cpu_seconds / run.client.processes / seconds if seconds > 0 else None


def distrust(run: Run, summary: Summary) -> list[str]:
    """Reasons why the client may have distorted the figures; ideally empty."""
    found = []
    if (lag := lag_p99(run)) is not None and lag > LAG_SECONDS:
        found.append(
            f"The client's event loops were {1000 * lag:.0f} ms late (p99; up to "
            f"{1000 * LAG_SECONDS:.0f} ms is fine), which adds to all latencies. Give it more "
            "processes, or a machine of its own."
        )
    late, requests = summary.overall.late, summary.overall.requests
    if requests and late / requests > LATE_SHARE:
        found.append(
            f"{late} of {requests} calls were sent more than {1000 * LATE_SECONDS:.0f} ms late by "
            "the client, which adds to their latencies. Give it more processes, or lower the rates."
        )
    if (busy := busy_share(run)) is not None and busy > BUSY_SHARE:
        found.append(
            f"The client was busy {busy:.0%} of the time (mean of {run.client.processes} "
            "processes): the figures may be the client's own limit. Give it more "
            "processes."
        )
    return found


def notes(summary: Summary) -> list[str]:
    """Caveats about correct figures from few calls."""
    few = {
        name: stats.requests for name, stats in summary.phases.items() if 0 < stats.requests < FEW
    }
    if not few:
        return []
    named = ", ".join(f"{name} ({count})" for name, count in few.items())
    return [f"Fewer than {FEW} calls, so that p99 is the slowest one: {named}."]
