"""A home for stand-in sides: a model folder that is never read."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bench.model import Home

STANDIN = (sys.executable, "-m", "tests.bench.standin_side")


@pytest.fixture
def standin() -> tuple[str, ...]:
    """The command of a side that speaks the real protocol without an engine."""
    return STANDIN


@pytest.fixture
def home(tmp_path: Path) -> Home:
    for name in ("base", "adapters", "cache", "logs"):
        (tmp_path / name).mkdir()
    return Home(
        base=tmp_path / "base",
        adapters=tmp_path / "adapters",
        cache=tmp_path / "cache",
        logs=tmp_path / "logs",
        vocabulary=256,
    )
