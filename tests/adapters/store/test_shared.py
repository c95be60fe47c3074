"""A store in a bucket and its cache: memory:// and file://, with faults that the tests cause."""

import asyncio
import errno
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from adapters.errors import (
    ObjectDamaged,
    ObjectMissing,
    StoreFull,
    StoreReadOnly,
    StoreUnreadable,
    StoreUnwritable,
)
from adapters.store import Store, bucket, open_store, parse_place, shared
from adapters.store.shared import SharedStore

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
URL = "memory://bucket/adapters"
Publish = Callable[[int], str]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


@pytest.fixture
def open_shared(memory, tmp_path: Path) -> Callable[..., SharedStore]:
    def open_shared(name: str = "cache", url: str = URL, **options) -> SharedStore:
        store = open_store(parse_place(url), cache=tmp_path / name, **options)
        assert isinstance(store, SharedStore)
        return store

    return open_shared


@pytest.fixture
def store(open_shared) -> SharedStore:
    return open_shared()


@pytest.fixture
def publish(open_shared, kit, tmp_path: Path) -> Publish:
    """Puts the object of another seed into the bucket, from another machine."""

    def publish(seed: int = 0) -> str:
        sender = open_shared("sender")
        folder = kit.build(seed=seed).write(tmp_path / f"adapter{seed}")
        with sender.stage(folder) as staged:
            return sender.commit(staged)

    return publish


def key_of(digest: str, name: str) -> str:
    return f"/bucket/adapters/objects/sha256/{digest[7:9]}/{digest[7:]}/{name}"


def load(store: SharedStore, digest: str) -> bytes:
    """As a server does before the engine reads the files."""
    with store.using(digest) as folder:
        store.verify(digest)
        return (folder / WEIGHTS).read_bytes()


@pytest.fixture
def requests(monkeypatch) -> list[str]:
    """The files that are read from a bucket in memory, in order."""
    asked: list[str] = []
    cat_file = fsspec.get_filesystem_class("memory").cat_file

    def note(self, path, *args, **options):
        asked.append(path.rpartition("/")[2])
        return cat_file(self, path, *args, **options)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", note)
    return asked


def test_an_object_is_the_same_in_a_bucket_and_in_a_folder(store, publish, tmp_path) -> None:
    digest = publish(0)
    plain = Store(tmp_path / "plain")
    assert plain.add(tmp_path / "adapter0") == digest
    assert load(store, digest) == (plain.path(digest) / WEIGHTS).read_bytes()
    assert list(store.digests()) == [digest]
    store.verify_original(digest)
    assert store.where(digest) == f"{URL}/objects/sha256/{digest[7:9]}/{digest[7:]}"
    assert list(store.tmp.glob("[!0-9a-f]*")) == []


def test_an_object_is_fetched_once(store, publish, requests) -> None:
    digest = publish(0)
    for _ in range(3):
        load(store, digest)
    assert requests == [CONFIG, WEIGHTS]


def test_loads_at_the_same_time_share_one_fetch(open_shared, publish, requests) -> None:
    digest = publish(0)
    stores = [open_shared() for _ in range(2)]  # two that share a cache know nothing of each other
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda store=store: found.append(load(store, digest)))
        for store in stores * 4
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join(30)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert requests == [CONFIG, WEIGHTS]


def load_in_process(url: str, cache: Path, digest: str, found: multiprocessing.Queue) -> None:
    store = open_store(parse_place(url), cache=cache)
    with store.using(digest) as folder:
        store.verify(digest)
        found.put(folder.stat().st_ino)


def test_processes_share_one_copy(open_shared, kit, tmp_path) -> None:
    """Processes, because locks and the rename act between them."""
    (tmp_path / "bucket").mkdir()
    url = f"file://{tmp_path}/bucket"
    sender = open_shared("sender", url)
    with sender.stage(kit.build().write(tmp_path / "a")) as staged:
        digest = sender.commit(staged)
    context = multiprocessing.get_context("spawn")  # fsspec's loop is no thread of a fork
    found = context.Queue()
    given = (url, tmp_path / "cache", digest, found)
    workers = [context.Process(target=load_in_process, args=given) for _ in range(2)]
    for each in workers:
        each.start()
    copies = {found.get(timeout=60) for _ in workers}
    for each in workers:
        each.join(30)
    assert copies == {Store(tmp_path / "cache").path(digest).stat().st_ino}
    assert list((tmp_path / "bucket").rglob("*.part")) == []


# --- faults of the bucket ---


def test_half_an_upload_is_no_object(store, memory, publish) -> None:
    digest = publish(0)
    memory.rm(key_of(digest, CONFIG))
    with pytest.raises(ObjectMissing, match="publish the adapter again"):
        load(store, digest)
    with pytest.raises(ObjectMissing):
        store.verify_original(digest)
    assert list(store.digests()) == []
    assert list(store.folders()) == [digest]  # for gc


def test_an_upload_ends_with_the_config(open_shared, memory, kit, tmp_path, monkeypatch) -> None:
    draft = kit.build()
    draft.extra = {"lorry.json": b"{}"}
    sent = []
    put = bucket.Bucket.put
    monkeypatch.setattr(
        bucket.Bucket, "put", lambda self, path, key: (sent.append(path.name), put(self, path, key))
    )
    store = open_shared()
    with store.stage(draft.write(tmp_path / "a")) as staged:
        store.commit(staged)
    assert sent == [WEIGHTS, "lorry.json", CONFIG]


@pytest.mark.parametrize("harm", ["flip", "cut", "grow"])
def test_wrong_bytes_are_never_served_and_mended_by_publishing_again(
    store, memory, publish, monkeypatch, harm
) -> None:
    monkeypatch.setattr(shared, "DAMAGED_SECONDS", 0.0)
    digest = publish(0)
    key = key_of(digest, WEIGHTS)
    content = memory.cat_file(key)
    wrong = {"flip": content[:-1] + b"\x99", "cut": content[:-9], "grow": content + b"x"}[harm]
    memory.pipe_file(key, wrong)
    for _ in range(2):
        with pytest.raises(ObjectDamaged, match="publish the same adapter again"):
            load(store, digest)
    assert not store.path(digest).exists()
    with pytest.raises(ObjectDamaged):
        store.verify_original(digest)
    publish(0)
    assert load(store, digest) == content


def test_a_damaged_object_is_not_fetched_again_at_once(store, memory, publish, requests) -> None:
    digest = publish(0)
    memory.pipe_file(key_of(digest, CONFIG), b"{}")
    for _ in range(3):
        with pytest.raises(ObjectDamaged):
            load(store, digest)
    assert requests == [CONFIG, WEIGHTS]


def test_a_file_is_fetched_only_up_to_its_limit(store, memory, publish, requests) -> None:
    digest = publish(0)
    memory.pipe_file(key_of(digest, CONFIG), bytes(2 << 20))
    with pytest.raises(ObjectDamaged, match="too large"):
        load(store, digest)
    assert requests == []


def test_a_damaged_copy_is_fetched_again(store, publish, requests) -> None:
    digest = publish(0)
    content = load(store, digest)
    file = store.path(digest) / WEIGHTS
    file.chmod(0o644)
    file.write_bytes(bytes(len(content)))
    with pytest.raises(ObjectDamaged, match="fetched again"):
        load(store, digest)
    assert load(store, digest) == content
    assert requests == [CONFIG, WEIGHTS] * 2


class Away(Exception):
    """A driver's error, whose text may hold a secret."""


def break_bucket(patch, store: SharedStore, do: Callable[[], object], *names: str) -> None:
    """Let requests of the bucket do something else."""

    async def broken(*_: object, **__: object) -> None:
        await asyncio.to_thread(do)

    for name in names or ("cat_file", "find", "put_file", "pipe_file", "rm_file"):
        patch.setattr(store.bucket._open().files, f"_{name}", broken)


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_while_the_bucket_is_away_copies_are_used_and_others_fail_without_a_secret(
    store, publish, monkeypatch, kit, tmp_path
) -> None:
    here, there = publish(0), publish(1)
    load(store, here)
    with monkeypatch.context() as patch:
        break_bucket(patch, store, raising(Away("https://key:s3cret@host/?sig=s3cret")))
        load(store, here)
        with pytest.raises(StoreUnreadable, match=r"memory://bucket/adapters.*\(Away\)") as lost:
            load(store, there)
        assert "s3cret" not in f"{lost.value!r}{lost.value.__cause__}{lost.value.__context__}"
        with (
            store.stage(kit.build(seed=2).write(tmp_path / "a")) as staged,
            pytest.raises(StoreUnreadable),
        ):
            store.commit(staged)
    monkeypatch.setattr(store.bucket, "_lost", None)
    load(store, there)


def test_a_bucket_that_is_away_is_not_waited_for_twice(store, publish, monkeypatch) -> None:
    digest = publish(0)
    asked, over = [], threading.Event()

    def hang() -> None:
        asked.append(1)
        over.wait(30)

    monkeypatch.setattr(bucket, "ANSWER_SECONDS", 0.05)
    break_bucket(monkeypatch, store, hang, "find")
    for _ in range(3):
        with pytest.raises(StoreUnreadable, match="no answer within"):
            load(store, digest)
    over.set()
    assert asked == [1]


def test_a_bucket_that_can_not_be_written_says_so(store, kit, tmp_path, monkeypatch) -> None:
    cases = [
        (PermissionError("denied"), StoreReadOnly, "not permitted"),
        (FileNotFoundError("no bucket"), StoreUnwritable, "no such bucket"),
    ]
    folder = kit.build().write(tmp_path / "a")
    for error, kind, said in cases:
        break_bucket(monkeypatch, store, raising(error), "put_file")
        with store.stage(folder) as staged, pytest.raises(kind, match=said):
            store.commit(staged)


# --- publishing ---


def test_two_may_publish_the_same_bytes_at_once(open_shared, kit, tmp_path, store) -> None:
    folder = kit.build().write(tmp_path / "a")
    senders = [open_shared(f"sender{number}") for number in range(2)]
    with senders[0].stage(folder) as first, senders[1].stage(folder) as second:
        digests = {senders[0].commit(first), senders[1].commit(second)}
        for sender, staged in zip(senders, (first, second), strict=True):
            sender.settle(staged)
    (digest,) = digests
    load(store, digest)


def test_what_was_collected_at_the_last_moment_is_sent_again(
    store, memory, kit, tmp_path, publish
) -> None:
    digest = publish(0)
    with store.stage(tmp_path / "adapter0") as staged:
        store.commit(staged)
        memory.rm(f"/bucket/adapters/objects/sha256/{digest[7:9]}", recursive=True)
        store.settle(staged)
    store.verify_original(digest)


def test_known_bytes_are_not_sent_again(store, publish, tmp_path, monkeypatch) -> None:
    publish(0)
    sent = []
    monkeypatch.setattr(bucket.Bucket, "put", lambda self, path, key: sent.append(path.name))
    with store.stage(tmp_path / "adapter0") as staged:
        store.commit(staged, is_known=True)
        assert sent == []
        store.commit(staged)
    assert sent == [WEIGHTS, CONFIG]


# --- the cache's bound ---


def size_of(store: SharedStore, digest: str) -> int:
    return sum(file.size for file in store.folders()[digest].values())


def used_last(store: SharedStore, digest: str, at: int) -> None:
    os.utime(store.path(digest), (at, at))


@pytest.fixture
def bounded(open_shared, publish) -> Callable[..., tuple[SharedStore, list[str]]]:
    """A store whose cache has room for two of its three objects."""

    def bounded(**options) -> tuple[SharedStore, list[str]]:
        digests = [publish(seed) for seed in range(3)]
        room = 2.5 * size_of(open_shared(), digests[0])
        return open_shared(cache_gib=room / (1 << 30), **options), digests

    return bounded


def cached(store: SharedStore, digests: list[str]) -> list[bool]:
    return [store.path(digest).exists() for digest in digests]


def test_the_least_recently_used_copy_makes_room(bounded) -> None:
    store, digests = bounded()
    load(store, digests[0])
    load(store, digests[1])
    used_last(store, digests[1], 1000)
    used_last(store, digests[0], 2000)
    load(store, digests[2])
    assert cached(store, digests) == [True, False, True]
    load(store, digests[1])
    assert sum(cached(store, digests)) == 2
    assert [path for path in store.tmp.iterdir() if path.is_dir()] == []


def test_copies_in_use_are_not_evicted_and_the_bound_holds(bounded, open_shared) -> None:
    store, digests = bounded()
    neighbour = open_shared()  # another process of the same cache
    with store.using(digests[0]), neighbour.using(digests[1]):
        with pytest.raises(StoreFull, match="raise store_cache_gib"):
            load(store, digests[2])
        assert cached(store, digests) == [True, True, False]
    load(store, digests[2])
    assert sum(cached(store, digests)) == 2


def test_what_an_engine_holds_stays_until_it_is_evicted_there(bounded) -> None:
    resident: set[str] = set()
    store, digests = bounded(needed=lambda: resident)
    resident |= {digests[0], digests[1]}
    load(store, digests[0])
    load(store, digests[1])
    with pytest.raises(StoreFull):
        load(store, digests[2])
    resident.remove(digests[0])
    load(store, digests[2])
    assert cached(store, digests) == [False, True, True]


def test_a_full_disk_is_a_clear_error(store, publish, monkeypatch) -> None:
    digest = publish(0)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shared, "copy_bounded", full)
        with pytest.raises(StoreFull, match=r"the cache .*No space left.*store_cache"):
            load(store, digest)
    load(store, digest)


def test_a_cache_may_be_emptied_while_it_is_used(store, publish) -> None:
    digest = publish(0)
    load(store, digest)
    shutil.rmtree(store.path(digest))
    load(store, digest)


def test_leftovers_of_a_killed_process_are_deleted_with_the_next_fetch(store, publish) -> None:
    (store.tmp / "abandoned").mkdir(parents=True)
    (store.tmp / f"{'0' * 64}.lock").write_text(str(1 << 40))  # it was going to take all the room
    load(store, publish(0))
    assert not (store.tmp / "abandoned").exists()


# --- addresses ---


def test_an_address_with_a_secret_is_refused_and_not_shown() -> None:
    for text in (
        "s3://key:s3cret@b/p",
        "s3://b/p?token=s3cret",
        "az://c:s3cret@a/p",
        "s3://b#s3cret",
    ):
        place = parse_place(text)
        assert "s3cret" not in f"{place} {place!r}"
        with pytest.raises(StoreUnreadable, match=r"leave them out.*AWS_ACCESS_KEY_ID") as refused:
            place.check()
        assert "s3cret" not in str(refused.value)
    container = "abfss://container@account.dfs.core.windows.net/p"
    assert str(parse_place(container)) == container


def test_an_address_that_no_store_can_have_is_refused() -> None:
    for text in (
        "https://h/p",
        "hf://org/repo",
        "nonsense://b/p",
        "memory://a::zip://b",
        "s3://[b",
        "://x",
    ):
        with pytest.raises(StoreUnreadable, match="can't be used"):
            parse_place(text).check()


def test_the_missing_driver_is_named(monkeypatch) -> None:
    monkeypatch.setattr(bucket.addresses.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StoreUnreadable, match="pip install gcsfs"):
        parse_place("gs://b/p").check()


def test_a_plain_path_is_no_bucket(tmp_path) -> None:
    assert parse_place(str(tmp_path)) == tmp_path
    assert isinstance(open_store(parse_place(".lorry/store")), Store)
