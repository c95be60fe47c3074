"""The progress line, on a terminal and in a file."""

from __future__ import annotations

import io

from rich.console import Console

from loadtest.drive.progress import Progress, Tick
from loadtest.records import Record


def make_record(ttft: float = 0.2, **fields: object) -> Record:
    plain = {
        "phase": "steady",
        "stream": "mixed",
        "number": 0,
        "model": "a",
        "is_base": False,
        "streamed": True,
        "scheduled": 1.0,
        "sent": 1.0,
        "first": 1.0 + ttft,
        "ended": 2.0,
        "outcome": "ok",
    }
    return Record(**{**plain, **fields})


def make_progress(terminal: bool = False) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(Console(file=file, force_terminal=terminal, width=120)), file


def test_the_progress_line():
    progress, _ = make_progress()
    progress.begin("steady", 60)
    for second in range(13):
        progress.tick(Tick(second, second * 8, 3))
    for ttft in [*[0.1] * 99, 0.212, 0.212]:
        progress.record(make_record(ttft))
    progress.record(make_record(first=None, outcome="failed", reason="timeout"))
    progress.record(make_record(9.0, streamed=False))
    line = "steady 12/60 s · sent 8.0/s ended 8.0/s · in flight 3 · errors 1 · p99 TTFT 212 ms"
    assert progress.line() == line


def test_rates_are_those_of_the_last_seconds():
    progress, _ = make_progress()
    progress.begin("spike", 60)
    for second in range(21):
        sent = second if second <= 10 else 10 + (second - 10) * 20
        progress.tick(Tick(second, sent, sent - min(sent, 110)))
    assert "sent 20.0/s ended 0.0/s" in progress.line()


def test_a_new_phase_resets_the_line():
    progress, _ = make_progress()
    progress.begin("one", 5)
    progress.record(make_record(outcome="failed"))
    progress.tick(Tick(5.3, 40, 2))
    assert progress.line().startswith("one 5/5 s")
    progress.begin("two", 7)
    assert progress.line() == "two 0/7 s · sent 0.0/s ended 0.0/s · in flight 0 · errors 0"


def test_a_file_gets_a_line_every_ten_seconds():
    progress, file = make_progress()
    with progress:
        progress.begin("steady", 60)
        for tenth in range(251):
            progress.tick(Tick(tenth / 10, tenth, 0))
    assert [line.split(" s ")[0] for line in file.getvalue().splitlines()] == [
        "steady 10/60",
        "steady 20/60",
    ]


def test_a_terminal_line_is_updated_twice_a_second_and_removed_at_the_end():
    progress, file = make_progress(terminal=True)
    with progress:
        progress.begin("steady", 60)
        for tenth in range(21):
            progress.tick(Tick(tenth / 10, tenth, 0))
    assert file.getvalue().count("steady") == 5  # and once more when it ends
    assert file.getvalue().endswith("\x1b[2K")  # erased
