"""Two tiers: `pytest` proves the truths that matter in minutes, `pytest --all` everything.

Marks tests by their folder and puts those that need an engine after all others.
"""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

settings.register_profile("quick", max_examples=20, deadline=None)
settings.register_profile("full", max_examples=150, deadline=None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--all",
        action="store_true",
        help="run the slow tests too, train the adapters from scratch, try more random examples",
    )
    parser.addoption(
        "--write-docs",
        action="store_true",
        help="write the tables that tests prove into docs/",
    )


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("full" if config.option.all else "quick")
    _give_children_their_signals()


def _give_children_their_signals() -> None:
    """Under nohup, or in the background of a shell, signals are ignored, and children inherit it.

    What has a handler here is at its default in them.
    """
    for number in (signal.SIGINT, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        for folder, tier in (("e2e", "engine"), ("engine", "engine"), ("gpu", "gpu")):
            if f"/tests/{folder}/" in str(item.path):
                item.add_marker(tier)
    if not config.option.all:
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in set(slow)]
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Unit tests, then bare engines', then the shared server's, then those that end servers."""
    if item.get_closest_marker("engine") is None:
        return 0
    if "/tests/engine/" in str(item.path):
        return 1
    return 3 if item.path.name == "test_endings.py" else 2
