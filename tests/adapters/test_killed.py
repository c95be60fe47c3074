"""A publisher that is killed before each single step it takes, in turn.

A step is anything it asks of the file system (Python's audit hooks and fsync tell) or of the
database (every statement and commit).
"""

import multiprocessing
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from adapters.catalog import Catalog
from adapters.catalog.migrations import upgrade
from adapters.publish import publish
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
assert upgrade  # imported here, so that not each killed process does it


def publish_until(step: int, folder: Path, store: Path, base: Path, url: str | None) -> None:
    """Publishes in this process, which is killed before its `step`-th step."""
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
    [("sqlite", True), ("sqlite", False), ("postgresql", False)],
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
        if killed == 0:
            assert labels(store, catalog_url) == after
            break
        assert killed == -signal.SIGKILL
        if (store / "lock").exists() and (store / "objects").exists():  # what the commands open
            with Catalog.open(store, catalog_url, create=False, for_objects=True) as catalog:
                assert {finding.status for finding in audit(Store(store), catalog)} <= {
                    "ok",
                    "orphan",
                }
        assert labels(store, catalog_url) in (before, after)
        assert set(statuses(store, catalog_url)) <= {"ok", "orphan"}
        if is_first:  # from nothing each time: the store is made, too
            again(store, folder, base_folder, catalog_url, "orders@1")
            forget(store)
        else:
            again(store, folder, base_folder, catalog_url, after[-1])
            before = after
    else:
        pytest.fail("a publish that takes hundreds of steps")
    assert step > 20


def again(store: Path, folder: Path, base: Path, url: str | None, label: str) -> None:
    """A new publish works, and after cleaning up nothing is there that is not needed."""
    version = publish(folder, name="orders", store=store, base=base, catalog_url=url)
    assert version.label == label
    with Catalog.open(store, url) as catalog:
        collect(Store(store), catalog, min_age=timedelta(0))
    assert set(statuses(store, url)) == {"ok"}
    assert list((store / "tmp").iterdir()) == []


def forget(store: Path) -> None:
    for path in sorted(store.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()


def labels(store: Path, url: str | None) -> list[str]:
    with Catalog.open(store, url) as catalog:
        return [version.label for version in catalog.list_versions()]


def statuses(store: Path, url: str | None) -> list[str]:
    with Catalog.open(store, url) as catalog:
        return [finding.status for finding in audit(Store(store), catalog)]
