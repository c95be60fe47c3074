"""The report of a run: an HTML page, a JSON document, the records as JSON lines.

The JSON document: `passed`, `checks`, `distrust`, `notes`; what was run (`scenario`, `about`,
`seed`, `plan`, `target`, `date`, `machine`, `windows`, `actions`); `summary`
(loadtest/judge/summary.py defines each figure); `wrong`, `judged`, `agreement`; `client`.
Files appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from loadtest.judge.summary import Summary
from loadtest.judge.trust import busy_share, distrust, lag_p99, notes
from loadtest.judge.verdict import Verdict
from loadtest.plan.scenario import Slo
from loadtest.records import Run
from loadtest.report import charts
from loadtest.report.files import describe_machine, render, write_file
from loadtest.report.timeline import Timeline, begin_of, timeline_of
from loadtest.statistics import Latency

SHOWN_ADAPTERS = 30  # bars in the chart; the table has all adapters


def write_json(run: Run, summary: Summary, verdict: Verdict, path: Path) -> None:
    """Write everything but the records.

    Raises:
        OutUnwritable: the file can't be written; also in the functions below.
    """
    document = msgspec.json.encode(_document(run, summary, verdict), enc_hook=_encode_slo)
    write_file(path, [msgspec.json.format(document, indent=2), b"\n"])


def write_records(run: Run, path: Path) -> None:
    """Write one call per line, in the order of the records."""
    encoder = msgspec.json.Encoder()
    write_file(path, (encoder.encode(record) + b"\n" for record in run.records))


def write_html(run: Run, summary: Summary, verdict: Verdict, path: Path) -> None:
    """Write one file of about 5 MB that opens offline: it contains plotly.js and all styles."""
    write_file(path, [render_html(run, summary, verdict).encode()])


def render_html(run: Run, summary: Summary, verdict: Verdict) -> str:
    lag = lag_p99(run)
    return render(
        "report.html.j2",
        run=run,
        summary=summary,
        verdict=verdict,
        distrust=distrust(run, summary),
        notes=notes(summary),
        machine=describe_machine(),
        busy=busy_share(run),
        lag_ms=None if lag is None else 1000 * lag,
        began=begin_of(run),
        slo_words=_slo_words(summary.slo),
        reasons=[
            (phase, reason, count)
            for phase, stats in summary.phases.items()
            for reason, count in stats.reasons.items()
        ],
        plotly=charts.plotly_script(),
        charts={
            "time": _over_time(run),
            "latencies": _distributions(run),
            "adapters": _adapters(summary),
        },
    )


def _document(run: Run, summary: Summary, verdict: Verdict) -> dict[str, Any]:
    lag = lag_p99(run)
    shared = ("scenario", "about", "seed", "plan", "target", "date", "windows", "actions")
    return {
        "passed": verdict.passed,
        "checks": verdict.checks,
        "distrust": distrust(run, summary),
        "notes": notes(summary),
        **{name: getattr(run, name) for name in shared},
        "machine": describe_machine(),
        "summary": summary,
        "wrong": run.wrong,
        "judged": run.judged,
        "agreement": run.agreement,
        "client": {
            "processes": run.client.processes,
            "cpu_seconds": run.client.cpu_seconds,
            "busy_share": busy_share(run),
            "lag_p99_ms": None if lag is None else 1000 * lag,
        },
    }


def _over_time(run: Run) -> list[str]:
    line, began = timeline_of(run), begin_of(run)
    edges = [window.began - began for window in run.windows[1:]] + [len(line.begins) * line.seconds]
    bands = [
        charts.Band(window.phase, window.began - began, edge, window.outage)
        for window, edge in zip(run.windows, edges, strict=True)
    ]
    marks = [charts.Mark(done.what, done.began - began) for done in run.actions]
    return [
        charts.over_time(title, unit, line.begins, series, bands, marks)
        for title, unit, series in _lines(line)
    ]


def _lines(line: Timeline) -> list[tuple[str, str, list[charts.Series]]]:
    calls = [
        charts.Series("due", line.due, charts.GREY),
        charts.Series("answered", line.answered, charts.BLUE, filled=True),
        charts.Series("failed", line.failed, charts.ORANGE),
    ]
    tokens = [charts.Series("output tokens", line.tokens, charts.GREEN, filled=True)]
    flight = [charts.Series("in flight", line.in_flight, charts.PURPLE, filled=True)]
    ttft = [
        charts.Series(name, _each(line.ttft, name), colour)
        for name, colour in (
            ("p50", charts.GREEN),
            ("p90", charts.BLUE),
            ("p99", charts.ORANGE),
        )
    ]
    return [
        ("Calls", "calls/s", calls),
        ("Output tokens", "tokens/s", tokens),
        ("Calls in flight", "calls", flight),
        ("Time to first token, by the time when a call was due", "ms", ttft),
    ]


def _each(latencies: Sequence[Latency | None], name: str) -> list[float | None]:
    return [None if each is None else getattr(each, name) for each in latencies]


def _distributions(run: Run) -> list[str]:
    measured = {window.phase for window in run.windows if window.measured}
    ttft: dict[str, list[float]] = {}
    gaps: dict[str, list[float]] = {}
    for record in run.records:
        if record.phase not in measured or not record.streamed or record.outcome == "failed":
            continue
        if record.ttft is not None:
            ttft.setdefault(record.stream, []).append(1000 * record.ttft)
        if record.outcome == "ok":
            gaps.setdefault(record.stream, []).extend(1000 * gap for gap in record.gaps)
    titles = (("Time to first token", ttft), ("Inter-token latency", gaps))
    return [
        charts.distribution(f"{title}: share of values up to", "ms", groups)
        for title, groups in titles
        if any(groups.values())
    ]


def _adapters(summary: Summary) -> str:
    """Empty if no call to an adapter was streamed."""
    found = [(name, stats) for name, stats in summary.adapters.items() if stats.ttft]
    rows = [
        charts.Bar(name, stats.ttft.p50, stats.ttft.p99, f"{stats.requests} calls")
        for name, stats in found[:SHOWN_ADAPTERS]
        if stats.ttft
    ]
    some = f", {len(rows)} of {len(found)}" if len(found) > len(rows) else ""
    title = f"Time to first token by adapter, the most requested first{some}"
    return charts.bars(title, "ms", rows) if rows else ""


def _slo_words(slo: Slo) -> str:
    bounds = (("TTFT", slo.ttft_ms), ("TPOT", slo.tpot_ms), ("E2E", slo.e2e_ms))
    return ", ".join(f"{name} ≤ {most:g} ms" for name, most in bounds if most is not None)


def _encode_slo(value: Any) -> Any:
    if isinstance(value, Slo):
        return value.model_dump()
    raise NotImplementedError(type(value))
