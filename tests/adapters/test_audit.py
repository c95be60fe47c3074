import shutil
from pathlib import Path

import pytest

from adapters.catalog import Catalog
from adapters.publish import publish
from adapters.store import Store
from adapters.upkeep import audit


@pytest.fixture
def store(kit, base_folder, tmp_path) -> Path:
    for seed, name in ((1, "a"), (2, "b"), (1, "c")):
        folder = kit.build(seed=seed).write(tmp_path / name)
        publish(folder, name=name, store=tmp_path / "store", base=base_folder)
    return tmp_path / "store"


def findings(store: Path) -> list[tuple[str, tuple[str, ...]]]:
    with Catalog.open(store, create=False) as catalog:
        found = audit(Store(store), catalog)
    return sorted((finding.status, finding.labels) for finding in found)


def objects(store: Path) -> dict[tuple[str, ...], Path]:
    with Catalog.open(store, create=False) as catalog:
        found = audit(Store(store), catalog)
    return {finding.labels: Store(store).path(finding.digest) for finding in found}


def test_a_sound_store_has_one_finding_for_each_object(store) -> None:
    assert findings(store) == [("ok", ("a@1", "c@1")), ("ok", ("b@1",))]


def test_a_lost_object_is_missing_for_all_that_need_it(store) -> None:
    shutil.rmtree(objects(store)["a@1", "c@1"])
    assert findings(store) == [("missing", ("a@1", "c@1")), ("ok", ("b@1",))]


def test_changed_bytes_are_damage(store) -> None:
    path = objects(store)[("b@1",)] / "adapter_config.json"
    path.chmod(0o644)
    path.write_text("{}")
    assert findings(store) == [("damaged", ("b@1",)), ("ok", ("a@1", "c@1"))]


def test_an_object_without_a_version_is_a_harmless_orphan(store, kit, tmp_path) -> None:
    Store(store).add(kit.build(seed=9).write(tmp_path / "x"))
    assert findings(store)[-1] == ("orphan", ())
