"""Marks tests by their folder, runs the fast ones first, sets the number of hypothesis examples.

HYPOTHESIS_PROFILE is `quick` (20 examples, the default: `make test`) or `full` (`make test-all`).
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# No deadline: the first products of a process are slow, and the machine may be busy.
settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("full", max_examples=150, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))


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
