"""A watched folder: complete sub-folders are published, others are reported once and left."""

import threading
import time
from pathlib import Path

import pytest
from publishing import publish
from typer.testing import CliRunner

from adapters.catalog import Catalog
from adapters.cli import app
from adapters.errors import StoreUnwritable
from adapters.watch import Sighting, Watcher

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture
def drop(tmp_path: Path) -> Path:
    (tmp_path / "drop").mkdir()
    return tmp_path / "drop"


class House:
    """A watcher over a real store, and its news since the last call."""

    def __init__(self, drop: Path, store: Path, base: Path) -> None:
        self.store, self.base = store, base
        self.news: list[Sighting] = []
        self.published: list[str] = []
        self.watcher = Watcher(drop, self.publish, self.news.append, interval=0.01)

    def publish(self, folder: Path, name: str):
        self.published.append(name)
        return publish(folder, name=name, store=self.store, base=self.base, if_new=True)

    def look(self, times: int = 1) -> list[tuple[str, str]]:
        self.news.clear()
        for _ in range(times):
            self.watcher.poll()
        return [(seen.name, seen.status) for seen in self.news]


@pytest.fixture
def house(drop, tmp_path, base_folder) -> House:
    return House(drop, tmp_path / "store", base_folder)


def labels(store: Path) -> list[str]:
    with Catalog.open(store) as catalog:
        return [version.label for version in catalog.list_versions()]


def test_a_folder_is_published_under_its_name_once_it_stops_changing(house, drop, kit) -> None:
    kit.build().write(drop / "orders")
    assert house.look() == []
    assert house.look() == [("orders", "published")]
    assert house.news[0].message == "orders@1"
    assert house.look(5) == []
    assert house.published == ["orders"]


def test_other_bytes_are_the_next_version(house, drop, kit) -> None:
    kit.build().write(drop / "orders")
    house.look(2)
    kit.build(seed=2).write(drop / "orders")
    assert house.look() == [("orders", "waiting")]
    assert house.look() == [("orders", "published")]
    assert labels(house.store) == ["orders@1", "orders@2"]


def test_the_watcher_waits_for_a_slow_writer(house, drop, kit, tmp_path) -> None:
    content = (kit.build().write(tmp_path / "ready") / WEIGHTS).read_bytes()
    (drop / "orders").mkdir()
    (drop / "orders" / CONFIG).write_bytes((tmp_path / "ready" / CONFIG).read_bytes())
    assert house.look(3) == [("orders", "waiting")]
    assert house.news[0].message == f"{WEIGHTS} is not there yet"
    told = []
    with (drop / "orders" / WEIGHTS).open("wb") as file:
        for start in range(0, len(content), 1000):
            file.write(content[start : start + 1000])
            file.flush()
            told += house.look()
    assert told == [("orders", "waiting")]
    assert house.look(2) == [("orders", "published")]


def test_an_atomic_rename_is_published(house, drop, kit, tmp_path) -> None:
    kit.build().write(drop / ".orders.tmp")
    kit.build().write(drop / "orders.partial")
    assert house.look(3) == []
    (drop / ".orders.tmp").rename(drop / "orders")
    assert house.look(2) == [("orders", "published")]


def test_a_refused_folder_is_reported_once_with_all_problems_and_left_in_place(
    house, drop, kit
) -> None:
    bad = kit.build()
    bad.config |= {"use_dora": True, "bias": "all"}
    bad.write(drop / "bad")
    kit.build(seed=3).write(drop / "good")
    assert house.look(2) == [("bad", "refused"), ("good", "published")]
    assert "dora_unsupported" in house.news[0].message
    assert "bias_unsupported" in house.news[0].message
    assert house.look(5) == []
    assert sorted(path.name for path in (drop / "bad").iterdir()) == [CONFIG, WEIGHTS]
    kit.build().write(drop / "bad")
    assert house.look(2) == [("bad", "waiting"), ("bad", "published")]


def test_pickles_links_and_bad_names_are_reported(house, drop, kit, tmp_path) -> None:
    outside = kit.build().write(tmp_path / "outside")
    (drop / "linked").symlink_to(outside)
    linked_file = kit.build().write(drop / "linked-file")
    (linked_file / WEIGHTS).unlink()
    (linked_file / WEIGHTS).symlink_to(outside / WEIGHTS)
    pickled = kit.build().write(drop / "pickled")
    (pickled / WEIGHTS).rename(pickled / "adapter_model.bin")
    kit.build().write(drop / "two words")
    (drop / "notes.txt").write_text("hello")
    assert house.look(4) == [
        ("linked", "refused"),
        ("linked-file", "refused"),
        ("pickled", "refused"),
        ("two words", "refused"),
    ]
    assert ["file_pickle" in seen.message for seen in house.news] == [False, False, True, False]
    assert not (house.store / "objects").exists()


def test_a_folder_to_ignore_is_ignored_until_it_is_not(house, drop, kit) -> None:
    folder = kit.build().write(drop / "orders")
    (folder / ".lorry-ignore").touch()
    assert house.look(3) == []
    (folder / ".lorry-ignore").unlink()
    assert house.look(2) == [("orders", "published")]


def test_starting_again_moves_no_alias_back(house, drop, kit, tmp_path) -> None:
    kit.build(seed=1).write(drop / "orders")
    house.look(2)
    kit.build(seed=2).write(drop / "orders")
    house.look(3)
    # Somebody rolls back to the first version; the folder holds other bytes.
    first = kit.build(seed=1).write(tmp_path / "first")
    publish(first, name="orders", store=house.store, base=house.base)
    again = House(drop, house.store, house.base)
    assert again.look(3) == [("orders", "published")]
    with Catalog.open(house.store) as catalog:
        aliases = {version.version: version.aliases for version in catalog.list_versions("orders")}
    assert aliases == {1: ("stable",), 2: ()}


def test_a_removed_version_does_not_come_back_by_itself(house, drop, kit) -> None:
    kit.build().write(drop / "orders")
    house.look(2)
    with Catalog.open(house.store) as catalog:
        catalog.drop_alias("orders", "stable", actor="ann")
        catalog.remove("orders", 1, actor="ann")
    again = House(drop, house.store, house.base)
    assert again.look(3) == [("orders", "refused")]
    assert "was removed" in again.news[0].message
    assert labels(house.store) == []


def test_a_full_disk_is_reported_once_and_retried(house, drop, kit, monkeypatch) -> None:
    kit.build().write(drop / "orders")
    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise StoreUnwritable("the disk is full", "make room")

        patch.setattr(house.watcher, "_publish", fail)
        assert house.look(5) == [("orders", "failed")]
    assert house.look() == [("orders", "published")]


def test_a_folder_that_breaks_the_publisher_does_not_end_the_watch(
    house, drop, kit, monkeypatch
) -> None:
    for name in ("a-odd", "b-good"):
        kit.build().write(drop / name)
    publish = house.publish

    def break_on_odd(folder: Path, name: str):
        if name == "a-odd":
            raise RecursionError("too deep")
        return publish(folder, name)

    monkeypatch.setattr(house.watcher, "_publish", break_on_odd)
    assert house.look(2) == [("a-odd", "failed"), ("b-good", "published")]


def test_a_folder_that_goes_away_is_forgotten_and_comes_back(house, drop, kit, tmp_path) -> None:
    kit.build().write(drop / "orders")
    house.look(2)
    (drop / "orders").rename(tmp_path / "aside")
    assert house.look(2) == []
    drop.rename(tmp_path / "unmounted")
    assert house.look(3) == [("", "failed")]
    (tmp_path / "unmounted").rename(drop)
    (tmp_path / "aside").rename(drop / "orders")
    assert house.look(2) == [("orders", "published")]
    assert labels(house.store) == ["orders@1"]


def test_nothing_in_the_folder_is_changed(house, drop, kit) -> None:
    kit.build().write(drop / "orders")
    before = {path: path.stat().st_mtime_ns for path in drop.rglob("*")}
    house.look(4)
    assert {path: path.stat().st_mtime_ns for path in drop.rglob("*")} == before


def test_a_thread_watches_until_it_is_stopped(drop, tmp_path, base_folder, kit) -> None:
    seen = threading.Event()
    house = House(drop, tmp_path / "store", base_folder)

    def tell(sighting: Sighting) -> None:
        if sighting.status == "published":
            seen.set()

    watcher = Watcher(drop, house.publish, tell, interval=0.01)
    watcher.start()
    kit.build().write(drop / "orders")
    assert seen.wait(20)
    began = time.monotonic()
    assert watcher.stop(timeout=20)
    assert time.monotonic() - began < 5
    assert labels(house.store) == ["orders@1"]


def test_a_watcher_that_never_started_stops(drop, house) -> None:
    assert house.watcher.stop()


def test_the_watcher_waits_for_a_base_that_is_gone_for_a_while(
    house, drop, kit, base_folder
) -> None:
    away = base_folder.rename(base_folder.with_name("away"))
    try:
        kit.build().write(drop / "orders")
        assert house.look(3) == [("orders", "failed")]
    finally:
        away.rename(base_folder)
    assert house.look() == [("orders", "published")]


def test_a_name_with_control_characters_is_shown_in_quotes(drop, tmp_path, base_folder) -> None:
    (drop / "esc\x1b]0;pwned\x07").mkdir()
    words = ["watch", drop, "--base", base_folder, "--store", tmp_path / "store", "--once"]
    seen = CliRunner().invoke(app, [str(word) for word in [*words, "--interval", "0.05"]])
    assert "\x1b" not in seen.output
    assert "esc\\x1b" in seen.output


def test_the_command_polls_twice_and_reports(drop, kit, tmp_path, base_folder) -> None:
    kit.build().write(drop / "good")
    words = ["watch", drop, "--base", base_folder, "--store", tmp_path / "store"]
    words += ["--once", "--interval", "0.05"]
    good = CliRunner().invoke(app, [str(word) for word in words])
    assert (good.exit_code, good.stdout) == (0, "published good good@1\n")
    (drop / "empty").mkdir()
    bad = CliRunner().invoke(app, [str(word) for word in words])
    assert bad.exit_code == 1
    assert "waiting   empty adapter_config.json is not there yet" in bad.stderr
