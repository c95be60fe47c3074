"""The terminal shows figures and faults."""

from __future__ import annotations

from io import StringIO
from typing import Any

from load_records import busy_run, failed, record, run_of, scenario_of, window
from rich.console import Console

from loadtest.judge.summary import summarize
from loadtest.judge.verdict import judge
from loadtest.plan.scenario import Scenario
from loadtest.records import Agreement, Client, Disagreement, Run, Wrong
from loadtest.report.table import ADAPTERS, SHOWN, terminal_report


def shown(run: Run, scenario: Scenario | None = None, width: int = 120) -> str:
    scenario = scenario or scenario_of(tuple(each.phase for each in run.windows))
    summary = summarize(run, scenario)
    console = Console(width=width, color_system=None, file=StringIO())
    with console.capture() as capture:
        console.print(terminal_report(run, summary, judge(run, summary, scenario)))
    return capture.get()


def line_of(text: str, word: str) -> str:
    return next(line for line in text.splitlines() if word in line)


def test_a_phase_is_one_line_of_figures():
    line = line_of(shown(run_of(record(), record())), " steady ")
    assert " ".join(line.split()) == "steady 2 0 0.200 2.00 100/100 10.0/10.0 10.0 200 100.0 %"


def test_warm_ups_are_marked_and_missing_figures_are_dashes():
    windows = [window("warm-up", measured=False), window("steady", began=10.0)]
    text = shown(run_of(windows=windows))
    assert "warm-up*" in text
    assert "* not measured" in text
    assert line_of(text, " steady ").split()[3:] == ["0", "0", "-", "-", "-", "-", "-"]


def test_failures_are_listed_by_reason():
    text = shown(run_of(failed(), failed(reason="timeout"), failed()))
    assert "failed calls in steady: 2 http_503_adapters_busy, 1 timeout" in text
    assert text.rstrip().endswith("FAILED")


def test_the_most_requested_and_the_slowest_of_many_adapters_are_shown():
    often = [record(model=f"often-{n:02}") for n in range(20) for _ in range(3)]
    slow = [record(model=f"slow-{n}", first=5.0 + n) for n in range(5)]
    text = shown(run_of(*often, *slow))
    rows = [line.split() for line in text.splitlines() if line.startswith((" often-", " slow-"))]
    names = [cells[0] for cells in rows]
    assert names == [f"often-{n:02}" for n in range(5)] + [f"slow-{n}" for n in range(5)]
    assert len(names) == ADAPTERS
    assert "10 of 25" in text


def test_checks_show_a_tick_or_a_cross():
    missed = {"metric": "requests", "at_least": 5, "advisory": True}
    text = shown(run_of(record()), scenario_of(expect=[missed]))
    assert line_of(text, "no answer from another adapter").split()[0] == "✓"
    assert line_of(text, "requests (advisory)").split()[0] == "✗"
    assert text.rstrip().endswith("PASSED")


def test_wrong_answers_differing_counts_and_distrust_are_shown():
    def wrong(number: int) -> Wrong:
        return Wrong(phase="p", stream="s", number=number, model="[red]m", message="b answered")

    more: dict[str, Any] = {
        "wrong": [wrong(n) for n in range(SHOWN + 1)],
        "agreement": Agreement(
            compared=1,
            disagreements=(Disagreement(what="requests of a", client=3, server=4),),
            left_out=("spans: none collected",),
        ),
        "client": Client(processes=1, lag=[0.5], cpu_seconds=0),
    }
    text = shown(run_of(record(), **more))
    assert "wrong answer: p/s/0 requested [red]m: b answered" in text
    assert text.count("wrong answer: ") == SHOWN
    assert "counts differ: requests of a: client 3, server 4" in text
    assert "not compared: spans: none collected" in text
    assert "not to be trusted: The client's event loops were 500 ms late" in text
    assert "note: Fewer than 100 calls" in text


def test_figures_are_complete_on_a_narrow_terminal():
    run = busy_run(seconds=4.0)
    streams = {"mixed": {}, "interactive": {}, "batch": {}}
    phases = tuple(each.phase for each in run.windows)
    text = shown(run, scenario_of(phases, streams=streams), width=80)
    assert "p50/p99" in text
    assert "…" not in text
