"""The file of a catalog is replaced, restored, deleted, damaged or locked while it is open."""

import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import event

from adapters.catalog import Catalog, database
from adapters.errors import (
    AdapterError,
    AdapterNotFound,
    CatalogReplaced,
    CatalogUnreadable,
    SchemaMismatch,
)
from adapters.names import parse_reference

ORDERS, SECOND = parse_reference("orders"), parse_reference("orders@2")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def file(store: Path) -> Path:
    return store / "catalog.db"


@pytest.fixture
def backup(store: Path, tmp_path: Path, enter) -> Path:
    """A copy of the catalog as it was when orders@1 was the only version."""
    with Catalog.open(store) as catalog:
        enter(catalog, number=1)
    return Path(shutil.copy(store / "catalog.db", tmp_path / "backup.db"))


@pytest.fixture
def catalog(store: Path, backup: Path, enter):
    """An open catalog that has had orders@2, and knows it by heart."""
    with Catalog.open(store) as catalog:
        enter(catalog, number=2)
        assert catalog.resolve(ORDERS).version == catalog.resolve(SECOND).version == 2
        yield catalog


def other_catalog(folder: Path, enter) -> Path:
    """The file of another store with as many changes: its header is the same."""
    with Catalog.open(folder) as other:
        enter(other, number=1)
        enter(other, number=2)
    return folder / "catalog.db"


def in_wal(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()


def with_log(path: Path) -> tuple[Path, ...]:
    """Copies of a file in write-ahead logging, with what belongs to it, as a running program had
    them; the log drops the alias `stable`."""
    in_wal(path)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("DELETE FROM targets")
    copies = [
        Path(shutil.copy(f"{path}{end}", f"{path}.copy{end}")) for end in ("", "-wal", "-shm")
    ]
    writer.close()
    return tuple(copies)


def move(new: Path, file: Path) -> None:
    new.rename(file)


def copy_over(new: Path, file: Path) -> None:
    shutil.copy(new, file)


def copy_with_times(new: Path, file: Path) -> None:
    shutil.copy2(new, file)


def delete_first(new: Path, file: Path) -> None:
    file.unlink()
    shutil.copy(new, file)


WAYS = [move, copy_over, copy_with_times, delete_first]


@pytest.mark.parametrize("way", WAYS)
def test_a_restored_file_is_answered_from_at_once(catalog, backup, file, enter, way) -> None:
    way(backup, file)
    catalog.check()
    assert catalog.remembered(ORDERS).version == 1
    assert catalog.resolve(ORDERS).version == 1
    with pytest.raises(AdapterNotFound):
        catalog.resolve(SECOND)
    assert [version.label for version in catalog.list_versions()] == ["orders@1"]
    assert enter(catalog, number=3).label == "orders@2"
    with Catalog.open(file.parent, create=False) as reader:
        assert reader.resolve(SECOND).digest == catalog.resolve(SECOND).digest


@pytest.mark.parametrize("way", WAYS)
def test_another_stores_file_is_refused_and_what_is_known_is_answered(
    catalog, backup, file, tmp_path, enter, way
) -> None:
    right = Path(shutil.copy(file, tmp_path / "right.db"))
    way(other_catalog(tmp_path / "other", enter), file)
    with pytest.raises(CatalogReplaced):
        catalog.check()
    assert catalog.remembered(ORDERS).version == 2
    for ask in (catalog.list_versions, lambda: enter(catalog, number=5), catalog.list_published):
        with pytest.raises(CatalogReplaced):
            ask()
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT max(number) FROM versions").fetchone() == (2,)
    way(right, file)
    catalog.check()
    assert catalog.resolve(ORDERS).version == 2
    assert enter(catalog, number=3).version == 3


def damage_head(file: Path) -> None:
    with file.open("r+b") as damaged:
        damaged.write(b"nonsense" * 32)


def damage_middle(file: Path) -> None:
    size = file.stat().st_size
    with file.open("r+b") as damaged:
        damaged.seek(4096)
        damaged.write(b"\xff" * (size - 4096))


def truncate(file: Path) -> None:
    with file.open("r+b") as damaged:
        damaged.truncate(file.stat().st_size // 2)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def make_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "spoil", [Path.unlink, damage_head, damage_middle, truncate, empty, make_folder]
)
def test_a_lost_or_damaged_file_is_an_error_until_it_is_back(
    catalog, file, tmp_path, enter, spoil: Callable[[Path], None]
) -> None:
    right = Path(shutil.copy(file, tmp_path / "right.db"))
    spoil(file)
    with pytest.raises((CatalogUnreadable, SchemaMismatch)):
        catalog.check()
    with pytest.raises(AdapterError):
        enter(catalog, number=3)
    if file.is_dir():
        file.rmdir()
    shutil.copy(right, file)
    catalog.check()
    assert catalog.resolve(ORDERS).version == 2
    assert enter(catalog, number=3).version == 3


def test_what_was_known_before_a_change_is_looked_up_again_for_worse_days(
    catalog, file, enter
) -> None:
    catalog.rollback("orders", "stable", actor="ann")
    catalog.check()
    file.unlink()
    assert catalog.remembered(ORDERS).version == 1, "as of the last change, not before"
    assert catalog.remembered(SECOND).version == 2


def test_a_deleted_file_is_not_made_again_and_what_is_known_is_answered(
    catalog, file, enter
) -> None:
    file.unlink()
    assert catalog.resolve(ORDERS).version == 2
    with pytest.raises(CatalogUnreadable, match="no such file"):
        enter(catalog, number=3)
    with pytest.raises(CatalogUnreadable, match="no such file"):
        catalog.resolve(parse_reference("orders@1"))
    assert not file.exists()


@pytest.mark.parametrize("way", [move, delete_first])
def test_a_change_that_goes_to_a_file_that_is_gone_is_never_reported_as_done(
    catalog, backup, file, way
) -> None:
    def replace(*_: object) -> None:
        if backup.exists():
            way(backup, file)
            backup.unlink(missing_ok=True)

    event.listen(catalog._transactions.engine, "commit", replace)
    with pytest.raises(CatalogReplaced, match="replaced during the change"):
        catalog.pin("orders", 1, actor="ann")
    assert not catalog.resolve(parse_reference("orders@1")).pinned
    assert catalog.pin("orders", 1, actor="ann").pinned
    assert catalog.resolve(parse_reference("orders@1")).pinned


def test_a_file_that_is_gone_at_the_end_of_a_change_is_an_error_too(catalog, file) -> None:
    event.listen(catalog._transactions.engine, "commit", lambda _: file.unlink())
    with pytest.raises((CatalogReplaced, CatalogUnreadable)):
        catalog.pin("orders", 1, actor="ann")


def test_a_backup_in_write_ahead_logging_is_read_with_its_log(catalog, backup, file) -> None:
    db, log, index = with_log(backup)
    shutil.copy(log, f"{file}-wal")
    shutil.copy(index, f"{file}-shm")
    db.rename(file)
    catalog.check()
    with pytest.raises(AdapterNotFound):
        catalog.resolve(ORDERS)  # its alias was dropped in the log
    assert catalog.resolve(parse_reference("orders@1")).version == 1
    assert not Path(f"{file}-shm").exists(), "no shared memory that a copy could replace"


def test_a_backup_without_its_log_replaces_a_file_that_had_one(catalog, backup, file) -> None:
    in_wal(backup)
    copy_over(backup, file)
    assert catalog.resolve(ORDERS).version == 1
    assert catalog.pin("orders", 1, actor="ann").pinned
    assert [path.name for path in file.parent.glob("catalog.db-*")] == []


def test_a_file_is_followed_through_a_link_that_is_turned(store, backup, tmp_path, enter) -> None:
    file = store / "catalog.db"
    file.rename(tmp_path / "new.db")
    (tmp_path / "link").symlink_to(tmp_path / "new.db")
    (tmp_path / "link").rename(file)
    with Catalog.open(store) as catalog:
        enter(catalog, number=2)
        assert catalog.resolve(ORDERS).version == 2
        (tmp_path / "link").symlink_to(backup)
        (tmp_path / "link").rename(file)
        assert catalog.resolve(ORDERS).version == 1


def test_what_is_known_is_answered_at_once_while_a_change_is_being_made(catalog, file) -> None:
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("DELETE FROM targets")
    began = time.perf_counter()
    for _ in range(20):
        assert catalog.resolve(ORDERS).version == 2
        assert catalog.remembered(ORDERS).version == 2
    assert time.perf_counter() - began < 1
    holder.execute("COMMIT")
    holder.close()
    with pytest.raises(AdapterNotFound):
        catalog.resolve(ORDERS)


def test_a_file_that_stays_locked_is_a_clear_error(catalog, file, monkeypatch) -> None:
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.05)
    holder = sqlite3.connect(file, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(CatalogUnreadable, match="locked"):
        catalog.check()
    with pytest.raises(CatalogUnreadable, match="locked"):
        catalog.pin("orders", 1, actor="ann")
    holder.close()
    catalog.check()


def test_nothing_of_an_earlier_file_is_left_in_any_cache(catalog, backup, file) -> None:
    listed = catalog.list_published()
    assert [each.version for each in listed] == [2]
    move(backup, file)
    assert [each.version for each in catalog.list_published()] == [1]
    assert [each.label for each in catalog.pins()] == []


def test_a_flood_of_restores_never_mixes_two_files(catalog, backup, file, tmp_path) -> None:
    """Readers see one file or the other, each as a whole."""
    newer = Path(shutil.copy(file, tmp_path / "newer.db"))
    stop, faults = threading.Event(), []

    def restore() -> None:
        while not stop.is_set():
            for source in (backup, newer):
                shutil.copy(source, tmp_path / "next")
                (tmp_path / "next").rename(file)

    thread = threading.Thread(target=restore)
    thread.start()
    try:
        for _ in range(100):
            labels = [version.label for version in catalog.list_versions()]
            if labels not in (["orders@1"], ["orders@1", "orders@2"]):
                faults.append(labels)
            catalog.resolve(ORDERS)
            catalog.check()
    finally:
        stop.set()
        thread.join()
    assert faults == []
