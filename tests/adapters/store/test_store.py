import hashlib
import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from adapters.errors import (
    CheckpointInvalid,
    ObjectDamaged,
    ObjectMissing,
    StoreUnreadable,
    StoreUnwritable,
)
from adapters.store import Store, digest_of
from adapters.store.files import copy_bounded

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def folder(kit, tmp_path: Path) -> Path:
    return kit.build().write(tmp_path / "source")


def test_the_digest_is_what_sha256sum_says(store, folder) -> None:
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n"
        for name in (CONFIG, WEIGHTS)
    ]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert store.add(folder) == f"sha256:{expected}"


def test_an_object_holds_the_same_bytes_read_only(store, folder) -> None:
    path = store.path(store.add(folder))
    assert path.is_absolute()
    assert sorted(file.name for file in path.iterdir()) == [CONFIG, WEIGHTS]
    for name in (CONFIG, WEIGHTS):
        assert (path / name).read_bytes() == (folder / name).read_bytes()
        assert stat.S_IMODE((path / name).stat().st_mode) == 0o444
    assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_the_path_holds_the_digest(store, folder) -> None:
    digest = store.add(folder).removeprefix("sha256:")
    assert store.path(f"sha256:{digest}") == (
        store.root / "objects" / "sha256" / digest[:2] / digest
    )


def test_only_served_files_and_provenance_are_copied(store, kit, tmp_path) -> None:
    draft = kit.build()
    draft.extra = {"lorry.json": b"{}", "README.md": b"hi", "optimizer.pt": b"pickle"}
    path = store.path(store.add(draft.write(tmp_path / "a")))
    assert sorted(file.name for file in path.iterdir()) == [CONFIG, WEIGHTS, "lorry.json"]


def test_provenance_is_no_part_of_the_digest(store, kit, tmp_path) -> None:
    draft = kit.build()
    plain = store.add(draft.write(tmp_path / "a"))
    draft.extra = {"lorry.json": b'{"data": "other"}'}
    assert store.add(draft.write(tmp_path / "b")) == plain
    assert list(store.digests()) == [plain]


def test_the_same_bytes_are_one_object_that_is_never_rewritten(store, folder) -> None:
    path = store.path(store.add(folder))
    before = [(file.name, file.stat().st_ino, file.stat().st_mtime_ns) for file in path.iterdir()]
    store.add(folder)
    after = [(file.name, file.stat().st_ino, file.stat().st_mtime_ns) for file in path.iterdir()]
    assert after == before


def test_other_bytes_are_another_object(store, kit, tmp_path) -> None:
    digests = {store.add(kit.build(seed=seed).write(tmp_path / str(seed))) for seed in range(3)}
    assert sorted(digests) == list(store.digests())
    assert len(digests) == 3


def test_nothing_stays_behind_after_adding_or_refusing(store, folder) -> None:
    store.add(folder)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointInvalid):
        store.add(folder)
    assert list((store.root / "tmp").iterdir()) == []


def test_links_are_refused_and_not_copied(store, folder, tmp_path) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / CONFIG).unlink()
    (folder / CONFIG).symlink_to(tmp_path / "secret")
    with store.stage(folder) as staged:
        assert [problem.code for problem in staged.problems] == ["file_not_regular"]
        assert not (staged.path / CONFIG).exists()


def test_the_source_may_change_after_it_was_copied(store, folder) -> None:
    content = (folder / WEIGHTS).read_bytes()
    with store.stage(folder) as staged:
        (folder / WEIGHTS).write_bytes(b"something else")
        digest = store.commit(staged)
    assert (store.path(digest) / WEIGHTS).read_bytes() == content
    store.verify(digest)


def flip(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def replace_by_link(path: Path) -> None:
    path.rename(path.parent.parent / path.name)
    path.symlink_to(path.parent.parent / path.name)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("harm", [flip, Path.unlink, replace_by_link])
def test_a_damaged_object_is_detected(store, folder, name, harm) -> None:
    digest = store.add(folder)
    store.verify(digest)
    harm(store.path(digest) / name)
    with pytest.raises(ObjectDamaged, match=digest):
        store.verify(digest)


def test_a_damaged_object_is_not_reused(store, folder) -> None:
    digest = store.add(folder)
    flip(store.path(digest) / WEIGHTS)
    with pytest.raises(ObjectDamaged):
        store.add(folder)


def test_an_object_that_is_not_there_is_missing(store) -> None:
    assert list(store.digests()) == []
    for digest in ("sha256:" + "0" * 64, "sha256:../../etc", "0" * 64, ""):
        with pytest.raises(ObjectMissing):
            store.verify(digest)


def test_foreign_files_among_the_objects_are_ignored(store, folder) -> None:
    digest = store.add(folder)
    (store.root / "objects" / "sha256" / "README").write_text("hi")
    (store.path(digest).parent / "lost+found").mkdir()
    assert list(store.digests()) == [digest]


def test_a_store_that_cannot_be_written_is_a_clear_error(folder, tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreUnwritable, match="nothing was published"):
        Store(tmp_path / "file").add(folder)


def test_an_unreadable_folder_is_a_clear_error(store, folder, monkeypatch) -> None:
    digest = store.add(folder)

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", forbid)
        with pytest.raises(StoreUnreadable, match="Permission denied"):
            store.verify(digest)
    monkeypatch.setattr(os, "open", forbid)
    with pytest.raises(ObjectDamaged, match="Permission denied"):
        store.verify(digest)


def test_the_same_bytes_may_be_added_twice_at_once(store, folder, monkeypatch) -> None:
    rename = Path.rename

    def rename_late(self: Path, target: Path) -> Path:
        monkeypatch.undo()
        Store(store.root).add(folder)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    digest = store.add(folder)
    store.verify(digest)
    assert list((store.root / "tmp").iterdir()) == []


def test_files_and_folders_reach_the_disk_before_the_object_appears(
    store, folder, monkeypatch
) -> None:
    steps = []
    fsync, rename = os.fsync, Path.rename

    def note_fsync(descriptor: int) -> None:
        steps.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def note_rename(self: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "rename", note_rename)
    path = store.path(store.add(folder))
    before, after = steps[: steps.index("rename")], steps[steps.index("rename") + 1 :]
    assert before[:2] == [CONFIG, WEIGHTS]
    assert before[-1] not in (CONFIG, WEIGHTS)
    assert after == [path.parent.name]


def add_many(root: Path, folders: list[Path]) -> None:
    store = Store(root)
    for folder in folders:
        store.verify(store.add(folder))


def test_processes_may_add_the_same_adapters_at_the_same_time(store, kit, tmp_path) -> None:
    """Processes, because the lock and the rename act between them."""
    folders = [kit.build(seed=seed).write(tmp_path / f"a{seed}") for seed in range(8)]
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=add_many, args=(store.root, folders)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(30)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert len(list(store.digests())) == 8


def test_a_scratch_folder_is_moved_and_hashed_as_it_is(store, folder) -> None:
    copied = store.add(folder)
    with store.scratch() as ours:
        for name in (CONFIG, WEIGHTS):
            with (folder / name).open("rb") as source:
                copy_bounded(source, ours / name, 10_000)
        numbers = {name: (ours / name).stat().st_ino for name in (CONFIG, WEIGHTS)}
        with store.stage(ours) as staged:
            assert digest_of(staged.hashes) == copied
            moved = {name: (staged.path / name).stat().st_ino for name in (CONFIG, WEIGHTS)}
            assert moved == numbers
    assert store.leftovers() == []
