"""The chart's objects."""

from __future__ import annotations

from typing import Any

import chart
import pytest


@pytest.fixture(scope="session")
def rendered() -> dict[str, list[Any]]:
    return chart.rendered()


@pytest.fixture(scope="session")
def everything(rendered: dict[str, list[Any]]) -> list[Any]:
    return rendered["everything"]
