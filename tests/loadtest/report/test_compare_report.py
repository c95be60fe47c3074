"""A comparison's main figures as markdown, for a page of documentation."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from loadtest.judge.comparison import Memory, Row
from loadtest.report.compare_report import Comparison, markdown, write
from loadtest.statistics import ratio_of

SPEED = Row(
    peer="llamacpp",
    phase="mixed-24",
    stream=None,
    metric="output_tokens_per_second",
    ours=600.0,
    theirs=100.0,
    ratio=ratio_of([(600, 100), (590, 100), (660, 100)]),
)
FOUND = Comparison(
    scenario="llama-cpp",
    date="2026-01-02T03:04:05+00:00",
    plans=["0" * 64],
    rounds=3,
    sides={"lorry": "this server", "llamacpp": "llama.cpp's"},
    rows=[SPEED, replace(SPEED, metric="e2e_p50_ms")],
    checks=[],
    answers={"lorry": (0, 90, 0), "llamacpp": (0, 30, 1)},
    memory=[
        Memory(side="lorry", processes=1, held=3 << 30, start_seconds=45.04),
        Memory(side="llamacpp", processes=1, held=1 << 29, start_seconds=1.0),
    ],
    notes=[],
)


def test_the_main_figures_stand_in_two_tables_with_the_day():
    text = markdown(FOUND)
    assert "; 2026-01-02, 3 rounds" in text
    speed = "| llamacpp | mixed-24 | output_tokens_per_second | 600 | 100 | 6.00 (5.90-6.60) |"
    assert speed in text.splitlines()
    assert "e2e_p50_ms" not in text  # the page and the JSON have it
    assert "| lorry | 3.00 | 45.0 | 0 / 90 / 0 |" in text.splitlines()
    assert "| llamacpp | 0.50 | 1.0 | 0 / 30 / 1 |" in text.splitlines()


def test_each_form_is_written(tmp_path: Path):
    write(FOUND, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "compare.html",
        "compare.json",
        "compare.md",
    }
    assert "45.0" in (tmp_path / "compare.html").read_text()
