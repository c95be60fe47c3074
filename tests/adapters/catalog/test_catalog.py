"""The catalog's answers, the same on SQLite and PostgreSQL."""

import multiprocessing
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from refusals import not_refused
from sqlalchemy import event

from adapters.catalog import AdapterVersion, Catalog
from adapters.errors import AdapterNotFound, AmbiguousDigest, BadName, CatalogUnreadable
from adapters.names import Reference, parse_reference


def resolve(catalog: Catalog, text: str) -> AdapterVersion:
    return catalog.resolve(parse_reference(text))


def digest_of(number: int) -> str:
    return f"sha256:{number:064x}"


def test_a_published_version_has_all_its_facts(enter, catalog) -> None:
    version = enter(catalog, provenance={"recipe": "r.yaml"})
    assert (version.name, version.version, version.label) == ("orders", 1, "orders@1")
    assert (version.digest, version.rank, version.alpha) == (digest_of(1), 8, 16.0)
    assert (version.base, version.size_bytes) == ("tiny", 1234)
    assert version.aliases == ("stable",)
    assert version.provenance == {"recipe": "r.yaml"}
    assert version.created_at.tzinfo == UTC
    assert abs(version.created_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert resolve(catalog, "orders") == version
    assert catalog.list_versions() == [version]
    assert hash(version) == hash(resolve(catalog, "orders@1"))


def test_versions_count_from_one_for_each_name(enter, catalog) -> None:
    assert [enter(catalog, "a", number).version for number in (1, 2, 3)] == [1, 2, 3]
    assert enter(catalog, "b", 1).version == 1
    assert [version.label for version in catalog.list_versions()] == ["a@1", "a@2", "a@3", "b@1"]
    assert [version.label for version in catalog.list_versions("b")] == ["b@1"]
    assert catalog.list_versions("c") == []


def test_stable_follows_the_newest(enter, catalog) -> None:
    enter(catalog, number=1)
    enter(catalog, number=2)
    assert resolve(catalog, "orders").version == 2
    assert resolve(catalog, "orders@stable").version == 2
    assert resolve(catalog, "orders@1").aliases == ()


def test_other_aliases_leave_stable_where_it_was(enter, catalog) -> None:
    enter(catalog, number=1)
    enter(catalog, number=2, aliases=("canary", "beta", "canary"))
    assert resolve(catalog, "orders").version == 1
    assert resolve(catalog, "orders@canary").aliases == ("beta", "canary")


def test_the_same_bytes_are_not_a_new_version_but_the_aliases_move(enter, catalog) -> None:
    first = enter(catalog, number=1)
    enter(catalog, number=2)
    again = enter(catalog, number=1, provenance={"other": True})
    assert (again.version, again.created_at) == (1, first.created_at)
    assert again.provenance is None
    assert len(catalog.list_versions()) == 2
    assert resolve(catalog, "orders").version == 1


def test_a_digest_prefix_names_a_version(enter, catalog) -> None:
    enter(catalog, number=0xABC)
    enter(catalog, number=0xABD)
    enter(catalog, "others", number=0xABC)
    assert resolve(catalog, f"orders@sha256:{0xABC:064x}").label == "orders@1"
    with pytest.raises(AmbiguousDigest, match="orders@1, orders@2"):
        resolve(catalog, "orders@sha256:000000")


UNKNOWN = ["nobody", "orders@2", "orders@canary", "orders@sha256:ffffff", "ORDERS"]


def test_an_unknown_reference_is_not_found(enter, catalog) -> None:
    enter(catalog)
    assert not_refused(lambda text: resolve(catalog, text), AdapterNotFound, UNKNOWN) == []


def test_a_missing_alias_lists_the_ones_there_are(enter, catalog) -> None:
    enter(catalog, aliases=("canary",))
    with pytest.raises(AdapterNotFound, match=r"no 'stable'; ask for one of canary, 1"):
        resolve(catalog, "orders")


def test_every_change_is_an_event(enter, catalog) -> None:
    enter(catalog, number=1, actor="ann")
    enter(catalog, number=2, actor="ben")
    enter(catalog, number=2, actor="eve")
    events = [(e.actor, e.action, e.name, e.detail) for e in catalog.list_events()]
    assert events == [
        ("ann", "published", "orders", {"version": 1, "digest": digest_of(1)}),
        ("ann", "alias_moved", "orders", {"alias": "stable", "from": None, "to": 1}),
        ("ben", "published", "orders", {"version": 2, "digest": digest_of(2)}),
        ("ben", "alias_moved", "orders", {"alias": "stable", "from": 1, "to": 2}),
    ]


def test_a_bad_alias_publishes_nothing(enter, catalog) -> None:
    with pytest.raises(BadName):
        enter(catalog, aliases=("stable", "7"))
    assert catalog.list_versions() == []


def test_the_digest_of_the_base_is_kept(enter, catalog) -> None:
    assert enter(catalog).base_digest is None
    assert enter(catalog, number=2, base_digest=digest_of(9)).base_digest == digest_of(9)
    assert resolve(catalog, "orders@2").base_digest == digest_of(9)


def test_a_version_may_be_published_without_rolling_it_out(enter, catalog) -> None:
    enter(catalog)
    assert enter(catalog, number=2, aliases=()).aliases == ()
    assert resolve(catalog, "orders").version == 1


def test_events_can_be_of_one_adapter_or_the_newest(enter, catalog) -> None:
    for number, name in enumerate(("a", "b", "a"), start=1):
        enter(catalog, name, number)
    assert {event.name for event in catalog.list_events("a")} == {"a"}
    assert len(catalog.list_events("a")) == 4
    assert catalog.list_events(limit=3) == catalog.list_events()[-3:]
    assert catalog.list_events("nobody") == []


def test_the_catalog_opens_again_with_everything_in_it(enter, catalog_url, tmp_path) -> None:
    with Catalog.open(tmp_path, catalog_url) as catalog:
        version = enter(catalog, provenance={"a": [1]})
    with Catalog.open(tmp_path, catalog_url, create=False) as catalog:
        assert catalog.list_versions() == [version]


def test_a_late_answer_never_lands_in_a_newer_memory(enter, catalog, monkeypatch) -> None:
    """An answer that was read before a change and arrives after it must not be cached."""
    enter(catalog, number=1)
    remember = catalog._remember

    def remember_late(answers, key, value):
        if isinstance(key, Reference):  # the reading has ended
            monkeypatch.setattr(catalog, "_remember", remember)
            enter(catalog, number=2)
            assert resolve(catalog, "orders").version == 2
        remember(answers, key, value)

    monkeypatch.setattr(catalog, "_remember", remember_late)
    assert resolve(catalog, "orders").version == 1
    assert resolve(catalog, "orders").version == 2


def test_resolving_a_known_name_is_fast_enough_for_an_event_loop(enter, catalog) -> None:
    for number in range(10):
        enter(catalog, f"adapter-{number}", number)
    references = 10 * [parse_reference(f"adapter-{number}") for number in range(10)]
    for reference in references:
        catalog.resolve(reference)
    best = min(time_all(catalog, references) for _ in range(5))
    assert best / len(references) < 200e-6


def time_all(catalog: Catalog, references: list) -> float:
    started = time.perf_counter()
    for reference in references:
        catalog.resolve(reference)
    return time.perf_counter() - started


def test_threads_may_resolve_while_another_publishes(enter, catalog) -> None:
    enter(catalog, number=1)
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        newest = 0
        try:
            while not done.is_set():
                version = resolve(catalog, "orders").version
                assert version >= newest
                newest = version
        except (AssertionError, AdapterNotFound, CatalogUnreadable) as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(2, 20):
        enter(catalog, number=number)
    done.set()
    for reader in readers:
        reader.join(10)
    assert failures == []


def publish_many(enter, folder: Path, url: str | None, numbers: range, start) -> None:
    start.wait(10)
    for number in numbers:
        with Catalog.open(folder, url) as catalog:
            enter(catalog, number=number)


def test_processes_that_publish_at_once_all_get_their_own_versions(
    enter, catalog_url, tmp_path
) -> None:
    """Processes, because each opens the catalog anew and races to create it."""
    context = multiprocessing.get_context("fork")
    start = context.Barrier(3)
    folder = tmp_path / "new"
    workers = [
        context.Process(
            target=publish_many, args=(enter, folder, catalog_url, range(n, n + 8), start)
        )
        for n in (1, 5, 101)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    with Catalog.open(folder, catalog_url, create=False) as catalog:
        versions = catalog.list_versions()
        assert [version.version for version in versions] == list(range(1, 21))
        assert len({version.digest for version in versions}) == 20
        moved = [event for event in catalog.list_events() if event.action == "alias_moved"]
        assert resolve(catalog, "orders").version == moved[-1].detail["to"]


def test_the_list_of_names_has_what_each_stands_for(enter, catalog) -> None:
    enter(catalog, "b", 1)
    enter(catalog, "a", 1, provenance={"recipe": "r"})
    newer = enter(catalog, "a", 2)
    catalog.split("a", "stable", {1: 30, 2: 70}, actor="t")
    catalog.point("b", "canary", 1, actor="t")
    enter(catalog, "c", 1, aliases=())
    first, second = catalog.list_published()
    assert (first.name, first.version, first.split) == ("a", 2, {1: 30, 2: 70})
    assert (first.digest, first.created_at) == (newer.digest, newer.created_at)
    assert (second.name, second.version, second.split) == ("b", 1, None)


def test_the_list_of_names_is_read_once_for_each_change(enter, tmp_path) -> None:
    asked: list[str] = []
    with Catalog.open(tmp_path) as catalog, Catalog.open(tmp_path) as other:
        enter(catalog, "a", 1)
        event.listen(
            catalog._transactions.engine, "before_cursor_execute", lambda *of: asked.append(of[2])
        )
        listed = catalog.list_published()
        assert catalog.list_published() is listed
        (query,) = [each for each in asked if "FROM targets" in each]
        assert "provenance" not in query
        other.drop_alias("a", "stable", actor="t")
        assert catalog.list_published() == ()
