"""Marks tests by their folder, and runs the fast ones first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier in ("e2e", "gpu"):
            if f"/tests/{tier}/" in str(item.path):
                item.add_marker(tier)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Unit tests, then the shared server's, then those that end servers."""
    if item.get_closest_marker("e2e") is None:
        return 0
    return 2 if item.path.name == "test_endings.py" else 1
