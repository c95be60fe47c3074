"""A store in a bucket beside a catalog in PostgreSQL: its owner, garbage collection, commands."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner, Result

from adapters import upkeep
from adapters.catalog import AdapterVersion, Catalog
from adapters.cli import app
from adapters.errors import StoreUnreadable
from adapters.publish import Rules, publish
from adapters.store import open_store, parse_place
from adapters.store.shared import SharedStore
from adapters.upkeep import audit, collect

URL = "memory://shared/adapters"
HOUR = timedelta(hours=1)


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/shared"):
        files.rm("/shared", recursive=True)


@pytest.fixture
def store(memory, tmp_path) -> SharedStore:
    store = open_store(parse_place(URL), cache=tmp_path / "cache")
    assert isinstance(store, SharedStore)
    return store


@pytest.fixture
def catalog(postgres, store) -> Iterator[Catalog]:
    with Catalog.open(store.bucket, postgres.url) as catalog:
        yield catalog


@pytest.fixture
def send(store, catalog, base_folder, adapter) -> Callable[..., AdapterVersion]:
    def send(seed: int = 0, name: str = "orders", **given) -> AdapterVersion:
        rules = Rules(base_folder)
        return publish(adapter(seed), name, store=store, catalog=catalog, rules=rules, **given)

    return send


def age(memory, digest: str, by: timedelta = 2 * HOUR) -> None:
    """Let an object's files be older."""
    for path, file in memory.store.items():
        if digest[7:] in path:
            file.modified = file.created = datetime.now(UTC) - by


def remove(catalog: Catalog, version: AdapterVersion) -> None:
    catalog.drop_alias(version.name, "stable", actor="ann")
    catalog.remove(version.name, version.version, actor="ann")


def statuses(store: SharedStore, catalog: Catalog) -> list[str]:
    return sorted(finding.status for finding in audit(store, catalog))


# --- whose it is ---


def test_the_first_catalog_owns_the_bucket(
    store, catalog, memory, postgres, send, tmp_path
) -> None:
    send(0)
    note = memory.cat_file("/shared/adapters/catalog-id").decode()
    assert note.endswith(f"127.0.0.1:{postgres.port}/postgres\n")
    assert "p/s" not in note
    memory.pipe_file("/shared/adapters/catalog-id", b"another postgresql+psycopg://there/lorry\n")
    with pytest.raises(StoreUnreadable, match=r"in the catalog 'postgresql\+psycopg://there/lorry"):
        Catalog.open(store.bucket, postgres.url)
    age(memory, send(1).digest)
    with pytest.raises(StoreUnreadable, match="there/lorry"):
        collect(store, catalog)
    memory.rm("/shared/adapters/catalog-id")
    with pytest.raises(StoreUnreadable, match="does not know the catalog"):
        collect(store, catalog)
    assert statuses(store, catalog) == ["ok", "ok"]


@pytest.mark.parametrize("url", [None, "sqlite:////tmp/shared.db"])
def test_a_bucket_needs_a_catalog_on_a_server(store, url) -> None:
    for create in (False, True):
        with pytest.raises(StoreUnreadable, match=r"give a catalog in PostgreSQL.*LORRY_CATALOG"):
            Catalog.open(store.bucket, url, create=create)


# --- garbage ---


def test_only_what_no_version_names_is_collected_and_only_when_it_is_old(
    store, catalog, memory, send, monkeypatch
) -> None:
    kept, gone, young = (send(seed, f"a{seed}") for seed in range(3))
    memory.pipe_file("/shared/adapters/objects/README", b"not ours")
    for version in (gone, young):
        remove(catalog, version)
    age(memory, kept.digest)
    age(memory, gone.digest)
    assert collect(store, catalog, min_age=timedelta(0)).too_young == 2  # just removed
    monkeypatch.setattr(upkeep, "_just_removed", lambda *_: set())
    found = collect(store, catalog, dry_run=True)
    assert (found.orphans, found.too_young) == ((gone.digest,), 1)
    assert statuses(store, catalog) == ["ok", "orphan", "orphan"]
    found = collect(store, catalog, min_age=timedelta(0))
    assert (found.orphans, found.too_young) == ((gone.digest,), 1)
    assert found.freed_bytes > 1000
    assert statuses(store, catalog) == ["ok", "orphan"]
    assert memory.exists("/shared/adapters/objects/README")
    assert not [path for path in memory.find("/shared") if "clock" in path]


def test_remains_of_an_upload_are_garbage_too(store, catalog, memory, send) -> None:
    version = send(0)
    half = "/shared/adapters/objects/sha256/00/" + "0" * 64
    memory.pipe_file(f"{half}/adapter_model.safetensors", b"x")
    assert collect(store, catalog).too_young == 1
    age(memory, "sha256:" + "0" * 64)
    assert collect(store, catalog).orphans == ("sha256:" + "0" * 64,)
    assert store.folders().keys() == {version.digest}


def test_garbage_that_is_published_meanwhile_is_kept(
    store, catalog, memory, send, monkeypatch
) -> None:
    """Between the moment in which `gc` has found it and the one in which it would delete it."""
    first, version = send(7, "other"), send(0)
    monkeypatch.setattr(upkeep, "_just_removed", lambda *_: set())
    remove(catalog, version)
    remove_shared = upkeep._remove_shared

    def publish_meanwhile(*arguments: object) -> bool:
        age(memory, version.digest)  # though its files are old: the name alone is enough
        send(0)
        age(memory, version.digest)
        return remove_shared(*arguments)

    age(memory, version.digest)
    monkeypatch.setattr(upkeep, "_remove_shared", publish_meanwhile)
    assert collect(store, catalog).orphans == ()
    assert statuses(store, catalog) == ["ok", "ok"]
    assert first.digest != version.digest


def test_garbage_that_is_sent_anew_meanwhile_is_kept(
    store, catalog, memory, send, adapter, monkeypatch
) -> None:
    send(7, "other")
    version = send(0)
    monkeypatch.setattr(upkeep, "_just_removed", lambda *_: set())
    remove(catalog, version)
    age(memory, version.digest)
    remove_shared = upkeep._remove_shared

    def send_meanwhile(*arguments: object) -> bool:
        with store.stage(adapter(0)) as staged:
            store.commit(staged)  # its version is entered later
        return remove_shared(*arguments)

    monkeypatch.setattr(upkeep, "_remove_shared", send_meanwhile)
    assert collect(store, catalog).orphans == ()


def test_a_version_that_is_entered_after_its_object_was_deleted_gets_it_back(
    store, catalog, memory, send, monkeypatch
) -> None:
    send(7, "other")
    enter = Catalog.publish

    def collected_before(self: Catalog, **given: object) -> AdapterVersion:
        store.remove(str(given["digest"]))
        return enter(self, **given)

    monkeypatch.setattr(Catalog, "publish", collected_before)
    send(0)
    assert statuses(store, catalog) == ["ok", "ok"]


def test_an_audit_reads_the_bucket_and_not_the_cache(store, catalog, memory, send) -> None:
    version = send(0)
    with store.using(version.digest):
        pass
    (path,) = (path for path in memory.find("/shared") if path.endswith("model.safetensors"))
    memory.pipe_file(path, b"other")
    assert statuses(store, catalog) == ["damaged"]
    memory.rm("/shared/adapters/objects", recursive=True)
    assert statuses(store, catalog) == ["missing"]


# --- commands ---


@pytest.fixture
def call(postgres, memory, monkeypatch, tmp_path: Path) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORRY_STORE", URL)
    monkeypatch.setenv("LORRY_CATALOG", postgres.url)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_commands_work_on_a_bucket(call, memory, base_folder, adapter, tmp_path) -> None:
    done = call("publish", adapter(0), "--name", "orders", "--base", base_folder, "--json")
    assert done.exit_code == 0, done.output
    digest = json.loads(done.stdout)["digest"]
    assert call("list").exit_code == 0
    shown = json.loads(call("show", "orders", "--json").stdout)
    assert shown["path"] == f"{URL}/objects/sha256/{digest[7:9]}/{digest[7:]}"
    call("alias", "orders", "canary", 1)
    assert call("verify").stdout.startswith("ok      sha256:")
    assert "freed 0 bytes of 0" in call("gc").stdout
    (path,) = (path for path in memory.find("/shared") if path.endswith("model.safetensors"))
    memory.rm(path)
    assert call("verify").exit_code == 1
    assert call("publish", adapter(0), "--name", "orders", "--base", base_folder).exit_code == 0
    assert call("verify").exit_code == 0
    (tmp_path / "drop").mkdir()
    adapter(1).rename(tmp_path / "drop" / "invoices")
    watched = call("watch", tmp_path / "drop", "--base", base_folder, "--once", "--interval", 0.01)
    assert "published invoices invoices@1" in watched.stdout
    assert not (tmp_path / ".lorry" / "store").exists()


def test_commands_that_can_not_work_on_a_bucket_say_why(call, monkeypatch, tmp_path) -> None:
    for command in ("backup", "restore"):
        refused = call(command, tmp_path / "copy")
        assert refused.exit_code == 2
        assert "pg_dump" in refused.stderr
    young = call("gc", "--older-than", "59m")
    assert young.exit_code == 2
    assert "at least 1h" in young.stderr
    monkeypatch.delenv("LORRY_CATALOG")
    for words in (["list"], ["publish", "a", "--name", "a", "--base", tmp_path], ["gc"]):
        refused = call(*words)
        assert refused.exit_code == 2
    refused = call("list")
    assert "give a catalog in PostgreSQL" in refused.stderr
    assert refused.stderr.endswith("(store_unreadable)\n")
    assert call("backup", tmp_path / "copy").exit_code == 2


def test_a_secret_in_the_stores_address_is_never_printed(call, monkeypatch) -> None:
    for secret in ("s3://key:s3cret@bucket/p", "s3://bucket/p?sig=s3cret"):
        monkeypatch.setenv("LORRY_STORE", secret)
        for words in (["list"], ["verify"], ["gc"], ["show", "a"]):
            refused = call(*words)
            assert refused.exit_code == 2, words
            assert "s3cret" not in refused.output
            assert "AWS_ACCESS_KEY_ID" in refused.stderr
