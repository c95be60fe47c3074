"""Marks tests by their folder, and runs the fast ones first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for tier in ("e2e", "gpu"):
            if f"/tests/{tier}/" in str(item.path):
                item.add_marker(tier)
    items.sort(key=lambda item: item.get_closest_marker("e2e") is not None)
