import builtins
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from publishing import publish

from adapters import publish as publish_module
from adapters.catalog import Catalog, changes, history
from adapters.checkpoint.base import read_base
from adapters.errors import (
    AdapterError,
    BadName,
    BaseUnreadable,
    CheckpointInvalid,
    OtherBase,
)
from adapters.names import parse_reference
from adapters.store import Store
from adapters.upkeep import audit

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def statuses(store: Path) -> list[str]:
    with Catalog.open(store) as catalog:
        return [finding.status for finding in audit(Store(store), catalog)]


def labels(store: Path) -> list[str]:
    with Catalog.open(store) as catalog:
        return [version.label for version in catalog.list_versions()]


def test_a_published_adapter_can_be_resolved_and_read(kit, base_folder, store, tmp_path) -> None:
    draft = kit.build()
    draft.extra = {"lorry.json": json.dumps({"data": "sha256:1", "recipe": {"r": 4}}).encode()}
    folder = draft.write(tmp_path / "a")
    version = publish(folder, name="orders", store=store, base=base_folder, actor="ann")
    assert version.label == "orders@1"
    assert (version.rank, version.alpha, version.base) == (4, 8.0, "tiny-base")
    assert version.size_bytes == (folder / WEIGHTS).stat().st_size
    assert version.provenance == {"data": "sha256:1", "recipe": {"r": 4}}
    with Catalog.open(store, create=False) as catalog:
        assert catalog.resolve(parse_reference("orders")) == version
        assert catalog.list_events()[0].actor == "ann"
    assert (Store(store).path(version.digest) / WEIGHTS).exists()
    assert statuses(store) == ["ok"]


def test_the_same_folder_again_is_the_same_version(kit, base_folder, store, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    first = publish(folder, name="orders", store=store, base=base_folder)
    assert publish(folder, name="orders", store=store, base=base_folder) == first
    other = publish(folder, name="copies", store=store, base=base_folder)
    assert (other.label, other.digest) == ("copies@1", first.digest)
    assert len(list(Store(store).digests())) == 1


def test_the_same_bytes_for_another_base_are_not_taken_for_a_version_of_this_one(
    kit, base_folder, store, tmp_path
) -> None:
    folder = kit.build().write(tmp_path / "a")
    wrong = shutil.copytree(base_folder, tmp_path / "wrong" / base_folder.name)
    config = json.loads((wrong / "config.json").read_text())
    (wrong / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    publish(folder, name="orders", store=store, base=wrong)
    with pytest.raises(OtherBase, match="remove orders@1"):
        publish(folder, name="orders", store=store, base=base_folder)
    with pytest.raises(OtherBase):  # folder watching refuses it too
        publish(folder, name="orders", store=store, base=base_folder, if_new=True)
    known = publish(folder, name="orders", store=store, base=base_folder, allow_base_mismatch=True)
    assert known.label == "orders@1"
    with Catalog.open(store) as catalog:
        catalog.drop_alias("orders", "stable", actor="ann")
        catalog.remove("orders", 1, actor="ann")
    version = publish(folder, name="orders", store=store, base=base_folder)
    assert (version.label, version.base_digest) == ("orders@2", read_base(base_folder).digest)


def test_weights_larger_than_the_base_can_need_are_not_copied(
    kit, base_folder, store, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(publish_module, "largest_weights", lambda base: 100)
    with pytest.raises(CheckpointInvalid) as refused:
        publish(kit.build().write(tmp_path / "a"), name="a", store=store, base=base_folder)
    assert {problem.code for problem in refused.value.problems} == {"file_too_large"}


@pytest.mark.parametrize(
    "index", [{"weight_map": {"a": [1]}}, {"weight_map": {"a": 1}}, {"weight_map": []}]
)
def test_a_base_whose_index_names_no_files_is_refused(base_folder, tmp_path, index) -> None:
    base = shutil.copytree(base_folder, tmp_path / "base")
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BaseUnreadable, match="names no files"):
        read_base(base)


def test_a_base_with_an_invalid_number_is_refused(base_folder, tmp_path) -> None:
    base = shutil.copytree(base_folder, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"rope_theta": 10**400}))
    with pytest.raises(BaseUnreadable, match="number"):
        read_base(base)


def test_the_base_may_be_given_another_name(kit, base_folder, store, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    version = publish(folder, name="a", store=store, base=base_folder, base_name="acme/tiny")
    assert version.base == "acme/tiny"


def test_aliases_can_be_chosen(kit, base_folder, store, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    version = publish(folder, name="a", store=store, base=base_folder, aliases=["canary"])
    assert version.aliases == ("canary",)


def test_a_refused_adapter_leaves_no_trace(kit, base_folder, store, tmp_path) -> None:
    draft = kit.build()
    draft.config["use_dora"] = True
    with pytest.raises(CheckpointInvalid):
        publish(draft.write(tmp_path / "a"), name="orders", store=store, base=base_folder)
    left = {path.name for path in store.rglob("*")}
    assert left == {"catalog-id", "catalog.db", "lock", "tmp"}, "no object and no leftover"


def test_problems_of_files_and_contents_come_in_one_answer(
    kit, base_folder, store, tmp_path
) -> None:
    draft = kit.build()
    draft.config |= {"use_dora": True}
    draft.extra = {"lorry.json": b"[]", "adapter_model.bin": b"pickle"}
    folder = draft.write(tmp_path / "a")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointInvalid) as refused:
        publish(folder, name="orders", store=store, base=base_folder)
    found = [(problem.code, problem.where) for problem in refused.value.problems]
    assert found == [
        ("file_pickle", "adapter_model.bin"),
        ("dora_unsupported", "use_dora"),
        ("provenance_malformed", "lorry.json"),
    ]


@pytest.mark.parametrize("text", [b"[]", b"{", b"\xff", b'{"loss": NaN}'])
def test_provenance_must_be_an_object(kit, base_folder, store, tmp_path, text) -> None:
    draft = kit.build()
    draft.extra = {"lorry.json": text}
    with pytest.raises(CheckpointInvalid, match="provenance_malformed"):
        publish(draft.write(tmp_path / "a"), name="orders", store=store, base=base_folder)


def test_names_and_bases_are_judged_before_anything_is_written(kit, store, tmp_path) -> None:
    folder = kit.build().write(tmp_path / "a")
    with pytest.raises(BadName):
        publish(folder, name="text", store=store, base=tmp_path)
    with pytest.raises(BadName):
        publish(folder, name="orders", store=store, base=tmp_path, aliases=["7"])
    with pytest.raises(BaseUnreadable):
        publish(folder, name="orders", store=store, base=tmp_path / "none")
    assert {path.name for path in store.rglob("*")} == {"catalog-id", "catalog.db", "tmp"}


def test_what_is_judged_is_what_is_stored(kit, base_folder, store, tmp_path, monkeypatch) -> None:
    """If the source changes after it was copied, the good copy is published."""
    folder = kit.build().write(tmp_path / "a")
    good = (folder / WEIGHTS).read_bytes()
    inspect = publish_module.inspect_checkpoint

    def spoil_then_inspect(*args, **options):
        (folder / WEIGHTS).write_bytes(b"spoilt")
        return inspect(*args, **options)

    monkeypatch.setattr(publish_module, "inspect_checkpoint", spoil_then_inspect)
    version = publish(folder, name="orders", store=store, base=base_folder)
    assert (Store(store).path(version.digest) / WEIGHTS).read_bytes() == good


class Fault:
    """Makes the n-th relevant system call fail, as a full disk would."""

    TARGETS = ((os, "fsync"), (os, "open"), (os, "fchmod"), (os, "mkdir"), (os, "rename"))

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.left = at
        self.log: list[str] = []
        for module, name in self.TARGETS:
            monkeypatch.setattr(module, name, self.wrap(name, getattr(module, name)))

    def wrap(self, name: str, call: Callable) -> Callable:
        def faulty(*args, **options):
            self.log.append(name)
            self.left -= 1
            if self.left == 0:
                raise OSError(28, "No space left on device")
            return call(*args, **options)

        return faulty


def test_failing_at_any_step_leaves_the_store_as_before_or_as_after(
    kit, base_folder, store, tmp_path, monkeypatch
) -> None:
    publish(kit.build().write(tmp_path / "a"), name="orders", store=store, base=base_folder)
    failures = 0
    for step in range(1, 200):
        new, before = kit.build(seed=step).write(tmp_path / f"a{step}"), labels(store)
        with monkeypatch.context() as patch:
            fault = Fault(patch, step)
            try:
                publish(new, name="orders", store=store, base=base_folder)
            except AdapterError:
                failures += 1
        after = [*before, f"orders@{len(before) + 1}"]
        assert labels(store) in (before, after)
        assert set(statuses(store)) <= {"ok", "orphan"}
        assert list((store / "tmp").iterdir()) == []
        if fault.left > 0:
            break
        publish(new, name="orders", store=store, base=base_folder)
        assert labels(store) == after
    assert failures >= 8
    assert set(fault.log) == {name for _, name in Fault.TARGETS}


@pytest.mark.parametrize(
    ("owner", "step"),
    [
        (publish_module, "inspect_checkpoint"),
        (Store, "commit"),
        (Catalog, "open"),
        (Catalog, "publish"),
        (changes, "_ensure_version"),
        (history, "record"),
        (changes, "_move"),
        (changes, "find_version"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
@pytest.mark.parametrize("happens", ["instead", "afterwards"])
def test_dying_around_any_step_leaves_the_store_as_before_or_as_after(
    kit, base_folder, store_with_orders, tmp_path, monkeypatch, owner, step, happens
) -> None:
    class Killed(BaseException):
        pass

    store, new = store_with_orders, kit.build(seed=2).write(tmp_path / "a")
    call = getattr(owner, step)

    def die(*args, **options):
        if happens == "afterwards":
            call(*args, **options)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, die)
        with pytest.raises(Killed):
            publish(new, name="orders", store=store, base=base_folder)
    assert set(statuses(store)) <= {"ok", "orphan"}
    assert labels(store) in (["orders@1"], ["orders@1", "orders@2"])
    assert publish(new, name="orders", store=store, base=base_folder).label == "orders@2"
    assert set(statuses(store)) == {"ok"}


def publish_and_count(folders: list[Path], store: Path, base: Path, count) -> None:
    for folder in folders:
        publish(folder, name="orders", store=store, base=base)
        count.value += 1


def test_kill_9_in_the_middle_of_publishing_harms_nothing(
    kit, base_folder, store, tmp_path
) -> None:
    """At random moments, inside a step too. Only a process can be killed so."""
    folders = [kit.build(seed=seed).write(tmp_path / f"a{seed}") for seed in range(60)]
    context = multiprocessing.get_context("fork")
    for delay in (0.02, 0.05, 0.09, 0.14):
        count = context.Value("i", 0, lock=False)
        process = context.Process(
            target=publish_and_count, args=(folders, store, base_folder, count)
        )
        process.start()
        time.sleep(delay)
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
        assert set(statuses(store)) <= {"ok", "orphan"}
        found = labels(store)
        assert found == [f"orders@{number}" for number in range(1, len(found) + 1)]
        assert len(found) >= count.value
    publish_and_count(folders[:3], store, base_folder, count)
    assert len(labels(store)) >= 3


def publish_many(folders: list[Path], store: Path, base: Path, start) -> None:
    start.wait(10)
    for folder in folders:
        publish(folder, name="orders", store=store, base=base)


def test_two_publishers_at_once_both_succeed_with_different_versions(
    kit, base_folder, store, tmp_path
) -> None:
    """Processes, because the store's lock and the database's act between them."""
    folders = [kit.build(seed=seed).write(tmp_path / f"a{seed}") for seed in range(10)]
    context = multiprocessing.get_context("fork")
    start = context.Barrier(2)
    workers = [
        context.Process(target=publish_many, args=(share, store, base_folder, start))
        for share in (folders[:6], folders[4:])
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert labels(store) == [f"orders@{number}" for number in range(1, 11)]
    assert statuses(store) == ["ok"] * 10


@pytest.fixture
def without_heavy_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def guarded(name: str, *rest, **options):
        assert name.partition(".")[0] not in {"torch", "vllm", "peft", "transformers", "fastapi"}
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", guarded)


def test_publishing_imports_nothing_heavy(
    without_heavy_imports, kit, base_folder, store, tmp_path
) -> None:
    folder = kit.build().write(tmp_path / "a")
    publish(folder, name="orders", store=store, base=base_folder)


@pytest.mark.parametrize(
    "text", ['{"evaluation": "\\ud800"}', '{"a": ' + "[" * 40 + "]" * 40 + "}"]
)
def test_a_provenance_that_no_answer_can_hold_is_refused(kit, base_folder, tmp_path, text) -> None:
    folder = kit.build().write(tmp_path / "a")
    (folder / "lorry.json").write_text(text)
    with pytest.raises(CheckpointInvalid, match="provenance_malformed"):
        publish(folder, name="a", store=tmp_path / "store", base=base_folder)
