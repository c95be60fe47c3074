"""Pass or fail: the checks of every run, and the scenario's expectations.

Every run: no answer comes from another adapter, client and server counts agree, all planned calls
are made, all actions succeed, and no call fails outside of outage phases. A scenario's own
expectation on `failed` or `failed_share` replaces the last check for the calls that it selects. A
metric without calls does not pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from loadtest.judge.summary import Summary, metric_of
from loadtest.plan.scenario import Expectation, Scenario, Selection
from loadtest.records import Run, Window


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """A check with its bound and its value in words."""

    name: str
    wanted: str
    found: str
    passed: bool
    advisory: bool = False  # a miss is reported, but fails nothing


class Verdict(msgspec.Struct, frozen=True):
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed or check.advisory for check in self.checks)


def judge(run: Run, summary: Summary, scenario: Scenario) -> Verdict:
    always = (
        _no_wrong_answers(run),
        _counts_agree(run),
        _all_calls_made(run, scenario),
        _all_actions_done(run),
        _no_failed_calls(run, scenario),
    )
    return Verdict((*always, *(_expect(each, summary) for each in scenario.expect)))


def _no_wrong_answers(run: Run) -> Check:
    return Check(
        name="no answer from another adapter",
        wanted="0 wrong",
        found=f"{len(run.wrong)} wrong, {run.judged} judged by their marker",
        passed=not run.wrong,
    )


def _counts_agree(run: Run) -> Check:
    differing = len(run.agreement.disagreements)
    return Check(
        name="client and server counts agree",
        wanted="0 differ",
        found=f"{differing} of {run.agreement.compared} differ",
        passed=not differing,
    )


def _all_calls_made(run: Run, scenario: Scenario) -> Check:
    """Without this check, lost records or a skipped phase would look like a good result."""
    made = Counter((record.phase, record.stream) for record in run.records)
    planned = {
        (window.phase, stream): calls or 0
        for window in run.windows
        for stream, calls in window.planned.items()
    }
    lost = sum(max(calls - made[key], 0) for key, calls in planned.items())
    came = {window.phase for window in run.windows}
    skipped = [phase.name for phase in scenario.phases if phase.name not in came]
    found = f"{len(run.records)} made, {lost} missing"
    return Check(
        name="every planned call made",
        wanted="0 missing",
        found=found + (f"; no phase {', '.join(skipped)}" if skipped else ""),
        passed=not lost and not skipped,
    )


def _all_actions_done(run: Run) -> Check:
    failures = [done for done in run.actions if done.failure]
    found = f"{len(failures)} of {len(run.actions)} failed"
    if failures:
        found += f"; first {failures[0].what} in {failures[0].phase}: {failures[0].failure}"
    return Check(name="every action done", wanted="0 failed", found=found, passed=not failures)


def _no_failed_calls(run: Run, scenario: Scenario) -> Check:
    windows = {window.phase: window for window in run.windows}
    own = [e for e in scenario.expect if e.metric in ("failed", "failed_share")]
    reasons = Counter(
        f"{record.reason} in {record.phase}"
        for record in run.records
        if record.outcome == "failed"
        and not windows[record.phase].outage
        and not any(_covers(each, windows[record.phase], record.stream) for each in own)
    )
    worst = ", ".join(f"{count} {what}" for what, count in reasons.most_common(3))
    return Check(
        name="no failed call (except in outages and own expectations)",
        wanted="0 failed",
        found=f"{reasons.total()} failed" + (f": {worst}" if worst else ""),
        passed=not reasons,
    )


def _covers(expectation: Expectation, window: Window, stream: str) -> bool:
    if expectation.stream not in (None, stream):
        return False
    return window.measured if expectation.phase is None else expectation.phase == window.phase


def _expect(expectation: Expectation, summary: Summary) -> Check:
    found, words = _find(expectation, summary)
    return Check(
        name=_name(expectation),
        wanted=" and ".join(_bounds(expectation)),
        found=words,
        passed=found is not None and _holds(expectation, found),
        advisory=expectation.advisory,
    )


def _find(expectation: Expectation, summary: Summary) -> tuple[float | None, str]:
    value = metric_of(summary, expectation.metric, expectation.phase, expectation.stream)
    if expectation.over is None:
        return value, _figure(value)
    under = metric_of(summary, expectation.metric, expectation.over.phase, expectation.over.stream)
    ratio = value / under if value is not None and under else None
    return ratio, f"{_figure(ratio)} ({_figure(value)} / {_figure(under)})"


def _holds(expectation: Expectation, found: float) -> bool:
    least, most = expectation.at_least, expectation.at_most
    return (least is None or found >= least) and (most is None or found <= most)


def _bounds(expectation: Expectation) -> Iterator[str]:
    if expectation.at_least is not None:
        yield f"at least {_figure(expectation.at_least)}"
    if expectation.at_most is not None:
        yield f"at most {_figure(expectation.at_most)}"


def _name(expectation: Expectation) -> str:
    name = f"{expectation.metric}{_place(expectation)}"
    if expectation.over is None:
        return name
    return f"{name}, over that of{_place(expectation.over) or ' all'}"


def _place(selection: Selection) -> str:
    parts: Sequence[tuple[str, str | None]] = (
        ("phase", selection.phase),
        ("stream", selection.stream),
    )
    return "".join(f" {what} {name}" for what, name in parts if name is not None)


def _figure(value: float | None) -> str:
    if value is None:
        return "no data"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.1f}"
