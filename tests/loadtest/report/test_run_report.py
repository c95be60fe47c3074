"""The page is well-formed, self-contained and escaped; documents are complete."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from load_records import busy_run, failed, record, run_of, scenario_of, window

from loadtest.errors import OutUnwritable
from loadtest.judge.summary import Summary, summarize
from loadtest.judge.verdict import Verdict, judge
from loadtest.plan.scenario import Scenario
from loadtest.records import Agreement, Disagreement, Done, Record, Run, Wrong
from loadtest.report import charts
from loadtest.report.files import describe_machine
from loadtest.report.run_report import render_html, write_html, write_json, write_records

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects a page's content; fails on an unclosed tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.scripts: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open[-1:] == ["script"] else self.words).append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def judged(run: Run, **more: Any) -> tuple[Run, Summary, Verdict]:
    streams = {"mixed": {}, "interactive": {}, "batch": {}}
    phases = tuple(each.phase for each in run.windows) or ("steady",)
    scenario: Scenario = scenario_of(phases, **{"streams": streams, **more})
    summary = summarize(run, scenario)
    return run, summary, judge(run, summary, scenario)


def page(run: Run, **more: Any) -> Page:
    return Page(render_html(*judged(run, **more)))


def test_a_page_shows_verdict_plan_charts_and_tables():
    found = page(busy_run(seconds=5.0), slo={"ttft_ms": 150})
    for words in ("FAILED", "sha256:0123456789abcdef", "TTFT ≤ 150 ms", "warm-up (10 s, not"):
        assert words in found.text
    assert sum("Plotly.newPlot(" in words for words in found.scripts) == 7
    assert found.scripts[0] == charts.plotly_script()  # once on the page
    assert "publish adapter-3" in found.text


def test_a_page_opens_offline():
    run = busy_run(seconds=2.0)
    html = render_html(*judged(run)).replace(charts.plotly_script(), "")
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    found = Page(html)
    assert not {"link", "img", "iframe"} & set(found.tags)
    assert not [a for a in found.attributes if a[0] in ("src", "href") or a[0].startswith("on")]


def test_text_from_a_server_is_escaped_everywhere():
    bad = "<script>alert(1)</script>"
    run = run_of(
        record(model=bad, phase="steady"),
        failed(reason=bad),
        wrong=[Wrong(phase="steady", stream="mixed", number=0, model=bad, message=bad)],
        agreement=Agreement(
            disagreements=(Disagreement(what=bad, client=1, server=2),), left_out=(bad,)
        ),
        actions=[Done(phase="steady", what=bad, began=1.0, ended=2.0, failure=bad)],
        target=bad,
        about=bad,
    )
    found = page(run)
    assert found.tags.count("script") == len(found.scripts)
    assert not any(bad in script for script in found.scripts[1:])
    assert found.text.count(bad) >= 10


@pytest.mark.parametrize(
    "run",
    [
        run_of(),
        run_of(failed()),
        run_of(record(streamed=False, gaps=[], first=None)),
        run_of(record(is_base=True, model="base")),
        run_of(record(), windows=[window(measured=False)]),
        run_of(record(outcome="hung_up")),
        run_of(record(gaps=[0.0] * 9)),
    ],
    ids=["nothing", "failed", "not-streamed", "base", "warm-up", "hung-up", "no-gaps"],
)
def test_a_page_renders_for_incomplete_runs(run):
    assert page(run).text


def test_a_page_warns_about_figures_that_cannot_be_trusted():
    late = record(sent=1.0, first=1.1, ended=1.2)
    assert "Do not trust these figures" in page(run_of(late)).text
    assert "Do not trust" not in page(run_of(record())).text


def test_the_document_has_everything_but_the_records(tmp_path: Path):
    run, summary, verdict = judged(run_of(record(), failed()), slo={"ttft_ms": 150})
    write_json(run, summary, verdict, tmp_path / "new" / "result.json")
    document = json.loads((tmp_path / "new" / "result.json").read_text())
    assert document["passed"] is False
    assert document["plan"] == run.plan
    assert document["summary"]["slo"]["ttft_ms"] == 150
    assert document["summary"]["overall"]["ttft"]["p99"] == pytest.approx(100)
    assert document["summary"]["phase_streams"]["steady"]["mixed"]["failed"] == 1
    assert [each["name"] for each in document["checks"]] == [each.name for each in verdict.checks]
    assert document["client"]["lag_p99_ms"] == 1
    assert "records" not in document


def test_record_lines_can_be_read_back(tmp_path: Path):
    run = run_of(record(number=0), failed(number=1))
    write_records(run, tmp_path / "records.jsonl")
    lines = (tmp_path / "records.jsonl").read_bytes().splitlines()
    assert [msgspec.json.decode(line, type=Record) for line in lines] == run.records


def test_an_unwritable_file_is_reported_and_leaves_nothing(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("as it was")
    run, summary, verdict = judged(run_of(record()))
    with pytest.raises(OutUnwritable, match="can't write"):
        write_html(run, summary, verdict, tmp_path / "folder")
    with pytest.raises(OutUnwritable, match="can't write"):
        write_records(run, tmp_path / "file" / "records.jsonl")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder"]


def test_a_file_is_replaced_atomically(tmp_path: Path):
    (tmp_path / "report.html").write_text("the one before")
    write_html(*judged(run_of(record())), tmp_path / "report.html")
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    Page((tmp_path / "report.html").read_text())


def test_a_device_is_written_and_not_replaced():
    write_records(run_of(record()), Path("/dev/null"))
    assert Path("/dev/null").is_char_device()


def test_the_machine_is_described_even_with_little_information(tmp_path: Path):
    assert "cores of" in describe_machine(tmp_path)
    (tmp_path / "cpuinfo").write_text("model name\t: A Processor\n")
    (tmp_path / "meminfo").write_text("MemTotal:       2097152 kB\n")
    words = describe_machine(tmp_path)
    assert "A Processor" in words
    assert words.endswith("2 GiB")


def test_the_machine_is_described_with_what_kernels_choose_by(tmp_path: Path):
    (tmp_path / "cpuinfo").write_text("model name\t: A Processor\nflags\t: fpu avx512f avx2\n")
    assert "A Processor (AVX2, AVX512F)" in describe_machine(tmp_path)
