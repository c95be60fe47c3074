"""Kills a publisher before each of its steps in turn.

A step is anything that it asks of the file system (Python's audit hooks and fsync report it) or of
the database (every statement and commit). Only a process can be killed without any clean-up.
"""

import multiprocessing
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from publishing import publish
from sqlalchemy import Engine, event

from adapters.catalog import Catalog
from adapters.catalog.migrations import upgrade
from adapters.publish import Rules
from adapters.publish import publish as publish_into
from adapters.store import Store
from adapters.upkeep import audit, collect

FILE_STEPS = {
    "os.chmod",
    "os.mkdir",
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.utime",
    "shutil.rmtree",
    "tempfile.mkdtemp",
}
MOST_STEPS = 200
assert upgrade  # imported here, so that the killed processes need not import it


def publish_until(step: int, folder: Path, store: Path, base: Path, url: str | None) -> None:
    """Publishes in this process and kills it before its `step`-th step."""
    count = 0

    def take(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(what: str, details: tuple[Any, ...]) -> None:
        is_write = what == "open" and str(details[0]).startswith(str(store))
        if what in FILE_STEPS or is_write:
            take()

    def sync(descriptor: int) -> None:
        take()

    os.fsync = sync
    sys.addaudithook(watch)
    for moment in ("before_cursor_execute", "commit", "begin", "engine_connect"):
        event.listen(Engine, moment, take)
    publish(folder, name="orders", store=store, base=base, catalog_url=url)
    assert count >= 20, "not even the steps of a file system and a database were counted"


def run_until(step: int, *arguments: Any) -> int | None:
    context = multiprocessing.get_context("fork")
    process = context.Process(target=publish_until, args=(step, *arguments))
    process.start()
    process.join(60)
    return process.exitcode


@pytest.mark.parametrize(
    ("catalog_url", "is_first"),
    [
        ("sqlite", False),
        pytest.param("sqlite", True, marks=pytest.mark.slow),  # each kills twenty publishers
        pytest.param("postgresql", False, marks=pytest.mark.slow),
    ],
    indirect=["catalog_url"],
)
def test_killed_before_any_step_the_store_is_as_before_or_as_after(
    kit, base_folder, catalog_url, tmp_path, is_first
) -> None:
    store = tmp_path / "store"
    before: list[str] = []
    if not is_first:
        first = kit.build(seed=10_000).write(tmp_path / "first")
        publish(first, name="orders", store=store, base=base_folder, catalog_url=catalog_url)
        before = ["orders@1"]
    for step in range(1, MOST_STEPS):
        folder = kit.build(seed=step).write(tmp_path / str(step))
        killed = run_until(step, folder, store, base_folder, catalog_url)
        after = [*before, f"orders@{len(before) + 1}"]
        # Where there are objects there must be a catalog already.
        create = not (store / "objects").exists()
        with Catalog.open(store, catalog_url, create=create) as catalog:
            if killed == 0:
                assert labels(catalog) == after
                break
            assert killed == -signal.SIGKILL
            assert labels(catalog) in (before, after)
            assert statuses(store, catalog) <= {"ok", "orphan"}
            rules = Rules(base_folder)
            again = publish_into(folder, "orders", store=Store(store), catalog=catalog, rules=rules)
            assert again.label == after[-1]
            collect(Store(store), catalog, min_age=timedelta(0))
            assert statuses(store, catalog) == {"ok"}
            assert list((store / "tmp").iterdir()) == []
        if is_first:  # begin without a store each time
            forget(store)
        else:
            before = after
    else:
        pytest.fail("a publish that takes hundreds of steps")
    assert step > 20


def forget(store: Path) -> None:
    for path in sorted(store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def labels(catalog: Catalog) -> list[str]:
    return [version.label for version in catalog.list_versions()]


def statuses(store: Path, catalog: Catalog) -> set[str]:
    return {finding.status for finding in audit(Store(store), catalog)}
