"""The comparison as a table, a chart, and the part of docs/scaling.md that holds both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from matplotlib import rc_context
from matplotlib.figure import Figure

from cluster.simulation.figures import Figures, by_phase, over_time
from cluster.simulation.run import PHASES, Outcome, Plan

Outcomes = Mapping[str, Outcome]

BEGIN, END = "<!-- simulation:begin -->", "<!-- simulation:end -->"
CHART: Final = "scaling.svg"
_COLOURS: Final = ("#7d8896", "#2a6fdb", "#e0662f", "#17976b")
_HEAD: Final = ("placement", "hits", "wait p50, ms", "wait p99, ms", "loads/s", "fairness")
_LEAST: Final = 0.01  # seconds; a logarithmic axis has no zero


def table(plan: Plan, outcomes: Outcomes) -> str:
    """In Markdown: a block of rows for each phase."""
    lines = ["| " + " | ".join(_HEAD) + " |", "|" + "---|" * len(_HEAD)]
    figures = {name: by_phase(plan, outcome) for name, outcome in outcomes.items()}
    for number, phase in enumerate(PHASES):
        lines.append(f"| **{phase}** |" + " |" * (len(_HEAD) - 1))
        lines += [_row(name, phases[number]) for name, phases in figures.items()]
    return "\n".join(lines)


def _row(name: str, of: Figures) -> str:
    return (
        f"| {name} | {of.hit_rate:.0%} | {1000 * of.wait_p50:,.0f} | {1000 * of.wait_p99:,.0f} "
        f"| {of.loads_per_second:.0f} | {of.fairness:.2f} |"
    )


def facts(plan: Plan, outcomes: Outcomes) -> str:
    """A sentence on the run, and one on the calls that deaths cut."""
    calls = len(next(iter(outcomes.values())).calls)
    cut = [sum(call.was_cut for call in outcome.calls) for outcome in outcomes.values()]
    return (
        f"{plan.replicas} replicas with {plan.machine.sequences} sequences, {plan.machine.slots} "
        f"slots and {plan.machine.places} host places each, {plan.adapters:,} adapters, "
        f"{calls / plan.seconds:,.0f} calls a second ({plan.load:.0%} of what they can answer), "
        f"a load of {1000 * plan.machine.load_seconds:.0f} ms, seed {plan.seed}. "
        f"The deaths cut {min(cut)} to {max(cut)} calls that had begun."
    )


def draw(plan: Plan, outcomes: Outcomes, path: Path) -> None:
    """Wait (p99) and hits over time, as SVG; the same bytes for the same figures."""
    # Text stays text: smaller, and a change of a figure is a small difference.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "lorry", "font.size": 9}):
        picture = Figure(figsize=(8, 5.5), layout="constrained", facecolor="white")
        waits, hits = picture.subplots(2, sharex=True)
        for (name, outcome), colour in zip(outcomes.items(), _COLOURS, strict=True):
            times, figures = zip(*over_time(plan, outcome), strict=True)
            p99 = [max(_LEAST, each.wait_p99) for each in figures]
            waits.plot(times, p99, color=colour, label=name)
            hits.plot(times, [100 * each.hit_rate for each in figures], color=colour)
        waits.set(yscale="log", ylabel="wait, p99, seconds")
        hits.set(ylabel="adapter was resident, %", ylim=(0, 100), xlabel="seconds")
        for axes in (waits, hits):
            axes.grid(alpha=0.3)
            for phase in range(1, len(PHASES)):
                axes.axvline(plan.begin(phase), color="#7d8896", linestyle="--", linewidth=0.8)
        for phase, name in enumerate(PHASES):
            middle = plan.begin(phase) + plan.phase_seconds / 2
            waits.annotate(
                name, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8
            )
        hits.legend(*waits.get_legend_handles_labels(), loc="lower left", ncols=2)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.savefig(path, format="svg", metadata={"Date": None, "Creator": None})


def write_docs(page: Path, plan: Plan, outcomes: Outcomes, command: str) -> None:
    """Replace what stands between the two markers of the page; the chart goes beside it."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    draw(plan, outcomes, page.with_name(CHART))
    page.write_text(before + "\n".join(_docs(plan, outcomes, command)) + after)


def _docs(plan: Plan, outcomes: Outcomes, command: str) -> Iterator[str]:
    yield BEGIN
    yield f"`{command}`: {facts(plan, outcomes)}\n"
    yield table(plan, outcomes)
    yield f"\n![Wait and hits over time, by way to place calls]({CHART})"
    yield END
