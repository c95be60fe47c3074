"""Backups are whole, come back while a server serves, and never mix two stores."""

import shutil
import time
from pathlib import Path

import pytest
from publishing import publish
from typer.testing import CliRunner

from adapters.backup import Copied, copy_store
from adapters.catalog import Catalog
from adapters.cli import app
from adapters.errors import BadName, StoreUnreadable
from adapters.names import parse_reference
from adapters.store import Store
from adapters.upkeep import audit

ORDERS = parse_reference("orders")


@pytest.fixture
def store(store_with_orders: Path) -> Path:
    return store_with_orders


def labels(store: Path) -> list[str]:
    with Catalog.open(store, create=False) as catalog:
        assert {finding.status for finding in audit(Store(store), catalog)} <= {"ok", "orphan"}
        return [version.label for version in catalog.list_versions()]


def test_a_backup_is_a_store_and_is_brought_up_to_date(store, kit, base_folder, tmp_path) -> None:
    target = tmp_path / "backup"
    assert len(copy_store(store, target).objects) == 1
    assert labels(target) == ["orders@1"]
    publish(kit.build(seed=2).write(tmp_path / "b"), name="orders", store=store, base=base_folder)
    done = copy_store(store, target)
    assert (len(done.objects), done.already_there, done.absent) == (1, 1, ())
    assert labels(target) == ["orders@1", "orders@2"]
    assert list((target / "tmp").iterdir()) == []


def test_a_backup_comes_back_under_an_open_catalog(store, kit, base_folder, tmp_path) -> None:
    target = tmp_path / "backup"
    copy_store(store, target)
    with Catalog.open(store) as catalog:
        publish(
            kit.build(seed=2).write(tmp_path / "b"), name="orders", store=store, base=base_folder
        )
        assert catalog.resolve(ORDERS).version == 2
        (store / "catalog.db-journal").write_bytes(b"of a writer that was killed")
        assert copy_store(target, store) == Copied((), 1, ())
        assert not (store / "catalog.db-journal").exists()
        catalog.check()
        assert catalog.resolve(ORDERS).version == 1
    shutil.rmtree(store / "objects")
    (store / "catalog.db").unlink()
    copy_store(target, store)
    assert labels(store) == ["orders@1"]


def test_a_weight_is_backed_up_too(store, tmp_path) -> None:
    with Catalog.open(store) as catalog:
        catalog.weigh("orders", 2, actor="test")
        copy_store(store, tmp_path / "backup")
        catalog.weigh("orders", 3, actor="test")
        copy_store(tmp_path / "backup", store)
        assert catalog.resolve(ORDERS).weight == 2


def test_a_store_that_is_gone_comes_back_whole(store, tmp_path) -> None:
    copy_store(store, tmp_path / "backup")
    shutil.rmtree(store)
    copy_store(tmp_path / "backup", store)
    assert labels(store) == ["orders@1"]
    Catalog.open(store).close()


def test_an_object_that_is_damaged_is_reported_and_left_out(store, tmp_path) -> None:
    (digest,) = Store(store).digests()
    weights = Store(store).path(digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"damaged")
    said = CliRunner().invoke(app, ["backup", str(tmp_path / "b"), "--store", str(store)])
    assert said.exit_code == 1
    assert digest in said.output
    assert list(Store(tmp_path / "b").digests()) == []


def test_a_restore_replaces_a_damaged_object_and_a_backup_does_not(store, tmp_path) -> None:
    (digest,) = Store(store).digests()
    copy_store(store, tmp_path / "backup")
    weights = Store(store).path(digest) / "adapter_model.safetensors"
    weights.chmod(0o644)
    with weights.open("r+b") as reader:  # as an engine that reads it
        reader.write(b"damaged")
        reader.flush()
        assert copy_store(tmp_path / "backup", store).replaced == ()
        command = ["restore", str(tmp_path / "backup"), "--store", str(store)]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0
        assert "0 were there already, 1 were damaged and are replaced" in done.output
        reader.seek(0)
        assert reader.read(7) == b"damaged"
    assert labels(store) == ["orders@1"]
    assert CliRunner().invoke(app, command).output.endswith("; 1 were there already\n")


def test_a_damaged_object_stays_where_the_backup_has_none_for_it(store, tmp_path) -> None:
    (digest,) = Store(store).digests()
    copy_store(store, tmp_path / "backup")
    for each in (store, tmp_path / "backup"):
        (Store(each).path(digest) / "adapter_config.json").unlink()
    done = copy_store(tmp_path / "backup", store, mend=True)
    assert (done.replaced, len(done.absent)) == ((), 1)
    assert Store(store).path(digest).is_dir()


def test_another_stores_backup_is_refused(store, kit, base_folder, tmp_path) -> None:
    folder = kit.build(seed=5).write(tmp_path / "a")
    publish(folder, name="a", store=tmp_path / "other", base=base_folder)
    with pytest.raises(StoreUnreadable, match="are in the catalog"):
        copy_store(tmp_path / "other", store)
    with pytest.raises(StoreUnreadable, match="no adapter store"):
        copy_store(tmp_path / "nothing", store)
    for inside in (store, store / "objects" / "b"):
        with pytest.raises(BadName):
            copy_store(store, inside)
    assert labels(store) == ["orders@1"]


def test_a_catalog_in_postgresql_comes_back_from_its_dump(
    postgres, kit, base_folder, tmp_path
) -> None:
    """The order of docs/operations.md: dump, objects; objects, restore. An open catalog follows."""
    store, backup, dump = tmp_path / "store", tmp_path / "backup", tmp_path / "catalog.dump"
    given = {"name": "orders", "store": store, "base": base_folder, "catalog_url": postgres.url}
    publish(kit.build(seed=1).write(tmp_path / "a"), **given)
    with Catalog.open(store, postgres.url) as catalog:
        postgres.tool("pg_dump", "--format=custom", f"--file={dump}", postgres.url)
        shutil.copytree(store / "objects", backup / "objects")
        publish(kit.build(seed=2).write(tmp_path / "b"), **given)
        assert catalog.resolve(ORDERS).version == 2

        shutil.rmtree(store / "objects")
        shutil.copytree(backup / "objects", store / "objects")
        postgres.tool("pg_restore", "--clean", "--if-exists", f"--dbname={postgres.url}", dump)
        deadline = time.monotonic() + 10  # a second, as a rule
        while catalog.resolve(ORDERS).version != 1:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert [each.status for each in audit(Store(store), catalog)] == ["ok"]


def test_the_commands_that_the_docs_show(store, tmp_path, monkeypatch) -> None:
    """The block of docs/operations.md, word by word."""
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    block = page.read_text().split("## Back up and restore", 1)[1].split("```")[1]
    lines = [line.partition("#")[0].split() for line in block.splitlines()[1:]]
    commands = [line[2:] for line in lines if line[:2] == [".venv/bin/lorry", "adapters"]]
    assert [command[0] for command in commands] == ["backup", "verify", "restore"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LORRY_STORE", raising=False)
    (tmp_path / ".lorry").mkdir()
    store.rename(tmp_path / ".lorry" / "store")
    for command in commands:
        words = [word.replace("/backups/", f"{tmp_path}/") for word in command]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
