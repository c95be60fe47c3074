"""The checks of a version's files before each load, and which of them are done only once."""

from __future__ import annotations

import os
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from adapters.errors import CheckpointInvalid, ObjectDamaged, ObjectMissing, StoreUnreadable
from adapters.store.files import CONFIG, WEIGHTS
from server.residency import served_files
from server.residency.served_files import ServedObjects


class Store:
    """Counts how often it hashes an object."""

    def __init__(self, root):
        self.root, self.verified, self.error = root, 0, None

    def path(self, digest):
        return self.root / digest

    @contextmanager
    def using(self, digest):
        yield self.path(digest)

    def verify(self, digest):
        self.verified += 1
        if self.error is not None:
            raise self.error
        if not self.path(digest).is_dir():
            raise ObjectMissing("gone", "publish it again")


@pytest.fixture
def store(tmp_path, monkeypatch):
    def read_checkpoint(folder, base, values):
        assert not values  # the digest means they are the values checked at publishing

    monkeypatch.setattr(served_files, "read_checkpoint", read_checkpoint)
    folder = tmp_path / "d"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes(b"x" * 100)
    return Store(tmp_path)


@pytest.fixture
def check(store):
    served = ServedObjects(store, None, None)
    return lambda: served.check(SimpleNamespace(digest="d"))


def test_unchanged_files_are_hashed_once(store, check):
    for _ in range(3):
        check()
    assert store.verified == 1


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_bytes_changed_in_place_are_hashed_again_even_with_the_old_mtime(store, check, name):
    check()
    file = store.path("d") / name
    before = file.stat()
    file.write_bytes(b"y" * 100)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.error = ObjectDamaged("other bytes", "fetch it again")
    with pytest.raises(ObjectDamaged):
        check()
    store.error = None
    check()
    assert store.verified == 3


def test_a_missing_file_is_reported_by_the_store(store, check):
    check()
    (store.path("d") / WEIGHTS).unlink()
    store.error = ObjectDamaged("a file is gone", "fetch it again")
    with pytest.raises(ObjectDamaged):
        check()


def test_a_refusal_is_not_remembered_as_a_pass(store, check, monkeypatch):
    def refuse(folder, base, values):
        raise CheckpointInvalid([])

    monkeypatch.setattr(served_files, "read_checkpoint", refuse)
    for _ in range(2):
        with pytest.raises(CheckpointInvalid):
            check()
    assert store.verified == 2


def test_a_failing_disk_is_detected_although_the_file_was_hashed(store, check, monkeypatch):
    check()

    def fail(self, *mode, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", fail)
    with pytest.raises(StoreUnreadable, match="Input/output error"):
        check()
