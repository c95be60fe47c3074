"""A store on a read-only or a full disk is read as ever; what needs to write says why it can't."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from disks import Forbidden, fill, read_only, small_disk
from publishing import publish
from typer.testing import CliRunner, Result

from adapters.catalog import Catalog
from adapters.cli import app
from adapters.errors import StoreFull, StoreReadOnly
from adapters.names import parse_reference
from adapters.store import Store
from adapters.upkeep import audit, collect

ORDERS = parse_reference("orders")
Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


@pytest.fixture
def closed(store_with_orders: Path) -> Iterator[Path]:
    """A store with orders@1 on a read-only mount."""
    try:
        with read_only(store_with_orders):
            yield store_with_orders
    except Forbidden as error:
        pytest.skip(str(error))


@pytest.fixture
def full(first_store, tmp_path: Path) -> Iterator[Path]:
    """A store with orders@1 on a disk without a free byte."""
    try:
        with small_disk(tmp_path / "disk") as disk:
            store = shutil.copytree(first_store[0], disk / "store")
            fill(disk)
            yield store
    except Forbidden as error:
        pytest.skip(str(error))


def writing_commands(store: Path, kit, base_folder: Path, tmp_path: Path) -> list[tuple]:
    folder = kit.build(seed=7).write(tmp_path / "new")
    return [
        ("publish", folder, "--name", "orders", "--base", base_folder, "--store", store),
        ("alias", "orders", "canary", 1, "--store", store),
        ("split", "orders", "stable", "1=1", "--store", store),
        ("unalias", "orders", "stable", "--store", store),
        ("pin", "orders@1", "--store", store),
    ]


def check_reading(store: Path, call: Call) -> None:
    for create in (False, True):  # a command's, and a server's
        with Catalog.open(store, create=create) as catalog:
            catalog.check()
            assert catalog.resolve(ORDERS).version == 1
            assert catalog.remembered(ORDERS).version == 1
            assert [finding.status for finding in audit(Store(store), catalog)] == ["ok"]
    for command in ("list", "history", "verify"):
        assert call(command, "--store", store).exit_code == 0, command
    (listed,) = json.loads(call("list", "--store", store, "--json").stdout)
    assert listed["label"] == "orders@1"


def test_a_read_only_store_is_read_as_ever(closed, call) -> None:
    check_reading(closed, call)


def test_a_full_store_is_read_as_ever(full, call) -> None:
    check_reading(full, call)


def test_a_read_only_store_says_so_to_who_writes(closed, call, kit, base_folder, tmp_path) -> None:
    for command in writing_commands(closed, kit, base_folder, tmp_path):
        said = call(*command)
        if command[0] == "split":  # changes nothing
            continue
        assert said.exit_code == 1, (command, said.output)
        assert "(store_read_only)" in said.output, (command, said.output)
    with Catalog.open(closed) as catalog, pytest.raises(StoreReadOnly):
        collect(Store(closed), catalog, min_age=timedelta(0))
    check_reading(closed, call)


def test_a_full_store_says_so_to_who_writes(full, call, kit, base_folder, tmp_path) -> None:
    for command in writing_commands(full, kit, base_folder, tmp_path):
        if command[0] == "split":
            continue
        said = call(*command)
        assert said.exit_code == 1, (command, said.output)
        assert "(store_full)" in said.output, (command, said.output)
    check_reading(full, call)


def test_a_full_store_can_be_collected_and_is_written_to_again(full, tmp_path) -> None:
    (full.parent / "filling").unlink()
    orphan = tmp_path / "orphan"
    orphan.mkdir()
    (orphan / "adapter_config.json").write_text("{}")
    (orphan / "adapter_model.safetensors").write_bytes(bytes(100 << 10))
    Store(full).add(orphan)
    fill(full.parent)
    with Catalog.open(full) as catalog:
        with pytest.raises(StoreFull):
            catalog.point("orders", "canary", 1, actor="ann")
        assert len(collect(Store(full), catalog, min_age=timedelta(0)).orphans) == 1
        assert catalog.point("orders", "canary", 1, actor="ann").targets


def test_a_catalog_in_write_ahead_logging_is_read_from_a_read_only_store(
    store_with_orders, call
) -> None:
    connection = sqlite3.connect(store_with_orders / "catalog.db")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    try:
        with read_only(store_with_orders):
            check_reading(store_with_orders, call)
            assert "(store_read_only)" in call("pin", "orders", "--store", store_with_orders).output
    except Forbidden as error:
        pytest.skip(str(error))


def test_a_store_that_becomes_writable_again_is_written_to(store_with_orders) -> None:
    with Catalog.open(store_with_orders) as catalog:
        try:
            with read_only(store_with_orders), pytest.raises(StoreReadOnly):
                catalog.pin("orders", 1, actor="ann")
        except Forbidden as error:
            pytest.skip(str(error))
        assert catalog.pin("orders", 1, actor="ann").pinned


def test_a_store_that_cannot_be_begun_says_why(tmp_path, kit, base_folder) -> None:
    (tmp_path / "empty").mkdir()
    folder = kit.build().write(tmp_path / "a")
    try:
        with read_only(tmp_path / "empty"), pytest.raises(StoreReadOnly):
            publish(folder, name="a", store=tmp_path / "empty" / "store", base=base_folder)
        with read_only(tmp_path / "empty"), pytest.raises(StoreReadOnly):
            publish(folder, name="a", store=tmp_path / "empty", base=base_folder)
    except Forbidden as error:
        pytest.skip(str(error))
