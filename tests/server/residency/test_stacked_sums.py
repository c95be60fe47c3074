"""The files of sums: built once, kept while they are resident, and gone with their server."""

from __future__ import annotations

import fcntl
import os
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from adapter_files import Draft, f32
from marked_server import write_adapter
from publishing import publish
from server_process import ROOT

from adapters.checkpoint import read_checkpoint
from adapters.checkpoint.base import read_base
from adapters.errors import ObjectMissing, StoreUnwritable, SumInvalid
from adapters.store import Store
from adapters.sums import Part, add_up
from server.residency.served_files import ServedObjects
from server.residency.stacked_sums import StackedSums

FOLDER = ROOT / "examples" / "shop" / "base"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A store with two adapters of the shop's base, and one whose values are near the limit."""
    place = tmp_path_factory.mktemp("shelf")
    for seed, name in enumerate(("red", "green", "loud")):
        write_adapter(place / name, seed)
    loud = Draft.read(place / "loud")
    loud.tensors[loud.b] = f32(np.full(loud.tensors[loud.b].shape, 30000.0))
    loud.tensors[loud.a] = f32(np.full(loud.tensors[loud.a].shape, 1e-6))
    loud.config["lora_alpha"] = loud.config["r"]
    loud.write(place / "loud")
    versions = {
        name: publish(
            place / name, name=name, store=place / "store", base=FOLDER, allow_base_mismatch=True
        )
        for name in ("red", "green", "loud")
    }
    return Store(place / "store"), versions


@pytest.fixture
def sums(shelf, tmp_path):
    made = StackedSums(tmp_path / "cache", shelf[0], read_base(FOLDER), most=2)
    yield made
    made.close()


def sum_of(shelf, weight="0.5", names=("red", "green")):
    return add_up(Part(shelf[1][name], Decimal(weight)) for name in names)


def built(sums: StackedSums) -> set[str]:
    return {path.name for path in sums._own.iterdir() if path.is_dir()}


def test_a_sum_is_built_once_and_fits_the_base(shelf, sums):
    version = sum_of(shelf)
    sums.make(version)
    folder = sums.path(version.digest)
    before = (folder / "adapter_model.safetensors").stat()
    sums.make(version)
    assert (folder / "adapter_model.safetensors").stat() == before
    assert read_checkpoint(folder, read_base(FOLDER)).rank == version.rank
    assert not any(path.name.startswith("tmp") for path in sums._own.iterdir())
    (folder / "adapter_config.json").unlink()
    sums.make(version)
    assert read_checkpoint(folder, read_base(FOLDER)).rank == version.rank


def test_files_of_residents_stay_and_of_the_others_the_last(shelf, sums):
    versions = [sum_of(shelf, f"0.{number}") for number in range(1, 7)]
    names = [version.digest.removeprefix("sha256:") for version in versions]
    resident = {versions[0].digest}
    sums.residents = lambda: resident
    for version in versions:
        sums.make(version)
    assert built(sums) == {names[0], *names[3:]}  # two that have left, and the newest
    resident.clear()
    sums.make(versions[5])
    assert built(sums) == {names[0], names[5]}  # the first has left only now
    assert names[0] in built(sums)


def test_weights_that_make_it_too_large_are_named(shelf, sums):
    version = sum_of(shelf, "4", ["loud"])
    with pytest.raises(SumInvalid, match=r"added up with these weights, .* reaches 1\.2e"):
        sums.make(version)
    assert built(sums) == set()


def test_parts_are_checked_before_each_load(shelf, sums):
    store, versions = shelf
    objects = ServedObjects(store, read_base(FOLDER), sums)
    version = sum_of(shelf)
    objects.check(version)
    assert objects.path(version) == sums.path(version.digest)
    assert objects.path(versions["red"]) == store.path(versions["red"].digest)
    lost = store.path(versions["green"].digest)
    aside = lost.rename(lost.parent / "aside")
    try:
        with pytest.raises(ObjectMissing):
            objects.check(version)
    finally:
        aside.rename(lost)


def test_what_killed_servers_left_goes_but_not_what_others_use(shelf, sums, tmp_path):
    parent = tmp_path / "cache" / "sums"
    for name in ("dead", "alive", "unfinished"):
        (parent / name / "sum").mkdir(parents=True)
    (parent / "dead" / "lock").touch()
    held = os.open(parent / "alive" / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    sums.make(sum_of(shelf))
    assert {path.name for path in parent.iterdir()} == {"alive", "lock", sums._own.name}
    other = StackedSums(tmp_path / "cache", shelf[0], read_base(FOLDER), most=2)
    other.make(sum_of(shelf))
    assert sums._own.is_dir()
    os.close(held)
    other.close()
    sums.close()
    sums.close()
    assert {path.name for path in parent.iterdir()} == {"alive", "lock"}


def test_a_cache_that_cannot_be_written_is_an_error_of_the_store(shelf, tmp_path):
    (tmp_path / "file").touch()
    sums = StackedSums(tmp_path / "file", shelf[0], read_base(FOLDER), most=2)
    with pytest.raises(StoreUnwritable, match="the files of the sum green@1"):
        sums.make(sum_of(shelf))
    assert isinstance(sums.path(sum_of(shelf).digest), Path)
