"""The kernels' own benchmark refuses what it can't measure with, in a sentence."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from bench import strategies


@pytest.mark.parametrize("value", ["0", "-1", "two", ""])
def test_rounds_are_one_or_more(value: str) -> None:
    result = CliRunner().invoke(strategies.app, [f"--rounds={value}"])
    assert result.exit_code == 2
    assert "Invalid value for '--rounds'" in result.stderr
