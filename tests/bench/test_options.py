"""The programs beside `python -m bench` refuse what they can't measure with, in a sentence."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from bench import fixed, many, spinning, strategies, telemetry

RUNNING = ["run", "--url", "http://127.0.0.1:1"]


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
@pytest.mark.parametrize(
    ("program", "arguments"),
    [(fixed, []), (many, RUNNING), (spinning, []), (strategies, []), (telemetry, [])],
)
def test_rounds_are_one_or_more(
    program: ModuleType,
    arguments: list[str],
    value: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [program.__name__, *arguments, f"--rounds={value}"])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"argument --rounds: {value!r} is not a number from 1 on" in said
