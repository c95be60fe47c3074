"""Homes for sides: a model folder that nobody reads, and a real tiny model."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bench.model import TINY, Home, prepare

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


@pytest.fixture(scope="session")
def tiny_home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    shape = replace(TINY, adapters=((8, 1), (16, 2)))
    return prepare(tmp_path_factory.mktemp("bench"), shape)
