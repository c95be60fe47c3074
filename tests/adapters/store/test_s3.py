"""A store behind a real S3 API (moto's server, s3fs), and what it costs.

`python -m pytest --all -s tests/adapters/store/test_s3.py` prints what docs/operations.md says.
"""

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3_server import BUCKET, CREDENTIALS, S3

from adapters.errors import ObjectDamaged, ObjectMissing, StoreUnreadable
from adapters.store import Store, bucket, open_store, parse_place, shared
from adapters.store.shared import SharedStore

WEIGHTS = "adapter_model.safetensors"
URL = f"s3://{BUCKET}/prod/lorry"
LARGE = 20 << 20  # three pieces


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def store(s3, monkeypatch, tmp_path: Path) -> SharedStore:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    store = open_store(parse_place(URL), cache=tmp_path / "cache")
    assert isinstance(store, SharedStore)
    return store


def write_large(kit, folder: Path, seed: int) -> Path:
    draft = kit.build(seed=seed)
    values = np.random.default_rng(seed).normal(size=LARGE // 4)
    draft.tensors["large"] = kit.f32(values)
    return draft.write(folder)


def publish(store: SharedStore, folder: Path) -> str:
    with store.stage(folder) as staged:
        digest = store.commit(staged)
        store.settle(staged)
    return digest


def load(store: SharedStore | Store, digest: str) -> bytes:
    with store.using(digest) as folder:
        store.verify(digest)
        return (folder / WEIGHTS).read_bytes()


def took(work, *arguments: object) -> float:
    started = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - started


def refused(store: SharedStore, digest: str) -> None:
    with pytest.raises(StoreUnreadable) as lost:
        load(store, digest)
    assert not [each for each in CREDENTIALS.values() if each in f"{lost.value!r}"]


def test_objects_come_and_go(store, kit, tmp_path, monkeypatch) -> None:
    folder = write_large(kit, tmp_path / "a", 0)
    digest = publish(store, folder)
    assert list(store.digests()) == [digest]
    assert load(store, digest) == (folder / WEIGHTS).read_bytes()
    store.verify_original(digest)
    assert 0 <= time.time() - store.bucket.now() < 60
    monkeypatch.setattr(shared, "DAMAGED_SECONDS", 0.0)
    key = store._key(digest, WEIGHTS)
    (tmp_path / "wrong").write_bytes(b"wrong")
    store.bucket.put(tmp_path / "wrong", key)
    with pytest.raises(ObjectDamaged):
        store.verify_original(digest)
    publish(store, folder)
    store.verify_original(digest)
    store.remove(digest)
    assert store.folders() == {}
    with pytest.raises(ObjectMissing):
        store.verify_original(digest)


def test_a_note_is_written_once(store) -> None:
    assert store.bucket.read_note("catalog-id", 100) is None
    for text in (b"first", b"second"):
        store.bucket.write_note("catalog-id", text)
    assert store.bucket.read_note("catalog-id", 100) == b"first"


def test_a_cold_load_costs_little_more_than_from_a_folder(store, kit, tmp_path) -> None:
    plain = Store(tmp_path / "plain")
    cold, warm, local = [], [], []
    for seed in range(1, 4):
        folder = write_large(kit, tmp_path / f"a{seed}", seed)
        digest = publish(store, folder)
        plain.add(folder)
        cold.append(took(load, store, digest))
        warm.append(took(load, store, digest))
        local.append(took(load, plain, digest))
    times = [1000 * statistics.median(each) for each in (cold, warm, local)]
    sys.stdout.write(
        f"\n{LARGE >> 20} MiB: from the bucket {times[0]:.0f} ms, from its copy {times[1]:.0f} ms,"
        f" from a folder {times[2]:.0f} ms\n"
    )
    assert times[1] < 5 * times[2]


@pytest.mark.slow  # waits for the driver to give up
def test_while_the_bucket_is_away_copies_are_loaded_and_others_fail_in_time(
    store, s3, kit, tmp_path
) -> None:
    here = publish(store, kit.build(seed=5).write(tmp_path / "here"))
    there = publish(store, kit.build(seed=6).write(tmp_path / "there"))
    load(store, here)
    s3.stop()
    try:
        assert took(load, store, here) < 1
        seconds = [took(refused, store, there) for _ in range(2)]
    finally:
        s3.start()
    sys.stdout.write(
        f"\nno bucket: {seconds[0]:.1f} s until the error, then {1000 * seconds[1]:.1f} ms\n"
    )
    assert seconds[0] < bucket.ANSWER_SECONDS + 2
    assert seconds[1] < 0.5
    store.bucket._lost = None
    load(store, there)
