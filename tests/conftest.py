"""Marks tests by their folder, and runs the fast ones first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for folder, tier in (("e2e", "e2e"), ("engine", "e2e"), ("gpu", "gpu")):
            if f"/tests/{folder}/" in str(item.path):
                item.add_marker(tier)
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Unit tests, then bare engines', then the shared server's, then those that end servers."""
    if item.get_closest_marker("e2e") is None:
        return 0
    if "/tests/engine/" in str(item.path):
        return 1
    return 3 if item.path.name == "test_endings.py" else 2
