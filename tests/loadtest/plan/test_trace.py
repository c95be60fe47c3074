"""A trace is replayed unchanged, or refused with its wrong line."""

from __future__ import annotations

from pathlib import Path

import pytest

from loadtest.errors import ScenarioInvalid
from loadtest.plan import trace as module
from loadtest.plan.trace import Line, read_trace
from loadtest.plan.traffic import Trace


@pytest.fixture
def file(tmp_path) -> Path:
    return tmp_path / "calls.jsonl"


def replay(file: Path, speed: float = 1.0, seconds: float = 60.0) -> list[Line]:
    return read_trace(Trace(kind="trace", file=file, speed=speed), seconds, adapters=3)


def test_lines_have_a_time_and_optional_fields(file):
    file.write_text(
        '{"at": 0}\n'
        '{"at": 1.5, "prompt_tokens": 7, "output_tokens": 9, "adapter": 2}\n'
        '{"at": 1.5}\n'
    )
    assert replay(file) == [
        Line(at=0.0),
        Line(at=1.5, prompt_tokens=7, output_tokens=9, adapter=2),
        Line(at=1.5),
    ]


def test_speed_scales_times_and_the_phases_end_bounds_them(file):
    file.write_text('{"at": 2}\n{"at": 19.9}\n{"at": 20}\n')
    assert [line.at for line in replay(file, seconds=20)] == [2, 19.9]
    assert [line.at for line in replay(file, speed=2, seconds=20)] == [1, 9.95, 10]
    assert [line.at for line in replay(file, speed=0.1, seconds=20)] == []


WRONG_LINES = [
    ('{"at": 1', "truncated"),
    ("", "truncated"),
    ("[1]", "Expected `object`"),
    ("{}", "`at`"),
    ('{"at": -1}', ">= 0"),
    ('{"at": "1"}', "Expected `float`"),
    ('{"at": NaN}', "malformed"),
    ('{"at": 1e999}', "out of range"),
    ('{"at": 0.5}', "sort the lines"),
    ('{"at": 2, "prompt_tokens": 0}', ">= 1"),
    ('{"at": 2, "output_tokens": 1.5}', "Expected `int"),
    ('{"at": 2, "output_tokens": 1000001}', "<= 1000000"),
    ('{"at": 2, "adapter": -1}', ">= 0"),
    ('{"at": 2, "adapter": 3}', "the stream has 3"),
    ('{"at": 2, "model": "a"}', "unknown field `model`"),
    ('{"at": 2, "\udcff": 1}', "utf-8"),
]


def refusal(file: Path, line: str) -> str:
    file.write_bytes(f'{{"at": 1}}\n{line}\n'.encode(errors="surrogateescape"))
    with pytest.raises(ScenarioInvalid) as refused:
        replay(file)
    return str(refused.value)


def test_a_wrong_line_is_named(file):
    messages = [(problem, refusal(file, line)) for line, problem in WRONG_LINES]
    start = f"{file}, line 2: "
    assert [m for problem, m in messages if problem not in m or not m.startswith(start)] == []


def test_lines_past_the_end_are_validated(file):
    file.write_text('{"at": 100}\n{"at": 101, "adapter": 9}\n')
    with pytest.raises(ScenarioInvalid, match="line 2"):
        replay(file, seconds=1)


def test_the_number_of_lines_is_bounded(file, monkeypatch):
    monkeypatch.setattr(module, "MOST_LINES", 2)
    file.write_text('{"at": 1}\n' * 2)
    assert len(replay(file)) == 2
    file.write_text('{"at": 1}\n' * 3)
    with pytest.raises(ScenarioInvalid, match="line 3: a trace has at most 2 lines"):
        replay(file)


@pytest.mark.parametrize("missing", ["none.jsonl", "."])
def test_an_unreadable_file_is_named(tmp_path, missing):
    with pytest.raises(ScenarioInvalid, match="can't read the trace"):
        replay(tmp_path / missing)
