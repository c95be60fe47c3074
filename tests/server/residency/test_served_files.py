"""What is checked of a version's files before each load, and what a check may be spared."""

from __future__ import annotations

import os
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

    def verify(self, digest):
        self.verified += 1
        if self.error is not None:
            raise self.error
        if not self.path(digest).is_dir():
            raise ObjectMissing("gone", "publish it again")


@pytest.fixture
def store(tmp_path, monkeypatch):
    def read_checkpoint(folder, base, values):
        assert not values  # its digest says that they are those that were judged

    monkeypatch.setattr(served_files, "read_checkpoint", read_checkpoint)
    folder = tmp_path / "d"
    folder.mkdir()
    for name in (CONFIG, WEIGHTS):
        (folder / name).write_bytes(b"x" * 100)
    return Store(tmp_path)


@pytest.fixture
def check(store):
    served = ServedObjects(store, None)
    return lambda: served.check(SimpleNamespace(digest="d"))


def test_what_has_not_changed_is_judged_once(store, check):
    for _ in range(3):
        check()
    assert store.verified == 1


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_bytes_changed_in_place_are_judged_again_even_when_the_times_are_put_back(
    store, check, name
):
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


def test_a_file_that_is_gone_is_told_by_the_store(store, check):
    check()
    (store.path("d") / WEIGHTS).unlink()
    store.error = ObjectDamaged("a file is gone", "fetch it again")
    with pytest.raises(ObjectDamaged):
        check()


def test_what_does_not_fit_is_never_remembered_as_fitting(store, check, monkeypatch):
    def refuse(folder, base, values):
        raise CheckpointInvalid([])

    monkeypatch.setattr(served_files, "read_checkpoint", refuse)
    for _ in range(2):
        with pytest.raises(CheckpointInvalid):
            check()
    assert store.verified == 2


def test_a_disk_that_fails_later_is_told_although_the_file_is_known(store, check, monkeypatch):
    check()

    def fail(self, *mode, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pathlib.Path.open", fail)
    with pytest.raises(StoreUnreadable, match="Input/output error"):
        check()
