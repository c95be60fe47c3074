"""The catalog's cache, and how soon it detects changes by others."""

import multiprocessing
import time
from contextlib import suppress

import pytest
from sqlalchemy import event

from adapters.catalog import Catalog
from adapters.catalog import catalog as catalog_module
from adapters.catalog.aliases import Target
from adapters.errors import AdapterNotFound
from adapters.names import parse_reference

SEEN_SECONDS = 1.0


@pytest.fixture
def in_sqlite(tmp_path):
    with Catalog.open(tmp_path) as catalog:
        yield catalog


def test_strange_names_do_not_fill_the_memory(enter, in_sqlite, monkeypatch) -> None:
    monkeypatch.setattr(catalog_module, "REMEMBERED", 3)
    enter(in_sqlite)
    in_sqlite.resolve(parse_reference("orders"))
    for number in range(50):
        with pytest.raises(AdapterNotFound):
            in_sqlite.resolve(parse_reference(f"unknown{number}"))
    for length in range(6, 30):
        in_sqlite.resolve(parse_reference("orders@sha256:" + "0" * length))
    assert len(in_sqlite._known.meanings) == 3


def test_the_oldest_answer_makes_room_for_a_new_one(enter, in_sqlite, monkeypatch) -> None:
    monkeypatch.setattr(catalog_module, "REMEMBERED", 2)
    enter(in_sqlite)
    references = [parse_reference(text) for text in ("orders", "orders@1", "orders@stable")]
    for reference in references:
        in_sqlite.resolve(reference)
    known = [in_sqlite.remembered(reference) is not None for reference in references]
    assert known == [False, True, True]


def test_only_earlier_answers_are_cached(enter, in_sqlite) -> None:
    reference = parse_reference("orders")
    enter(in_sqlite)
    assert in_sqlite.remembered(reference) is None
    assert in_sqlite.resolve(reference) == in_sqlite.remembered(reference)
    enter(in_sqlite, number=2)
    assert in_sqlite.remembered(reference) is None


def count_queries(catalog: Catalog) -> list[str]:
    asked: list[str] = []
    event.listen(
        catalog._transactions.engine, "before_cursor_execute", lambda *of: asked.append(of[2])
    )
    return asked


UNKNOWN = ["orders@999999", "orders@nothing", f"orders@sha256:{'e' * 12}", "nobody", "nobody@1"]


def test_what_does_not_exist_is_answered_from_memory(enter, catalog) -> None:
    enter(catalog)
    for text in ("orders", "orders@1", "nobody"):
        with suppress(AdapterNotFound):
            catalog.resolve(parse_reference(text))
    settle(catalog)
    asked = count_queries(catalog)
    for text in [*UNKNOWN, *(f"orders@{n}" for n in range(5, 50)), *(f"x{n}" for n in range(50))]:
        with pytest.raises(AdapterNotFound):
            catalog.remembered(parse_reference(text))
        with pytest.raises(AdapterNotFound):
            catalog.resolve(parse_reference(text))
    assert [
        query for query in asked if "max(events" not in query and "FROM versions" in query
    ] == []


def settle(catalog: Catalog) -> None:
    """Let a catalog in PostgreSQL poll once, which empties its cache, and ask again."""
    deadline = time.monotonic() + 10
    while getattr(catalog._transactions._freshness, "_newest", True) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    for text in ("orders", "nobody"):
        with suppress(AdapterNotFound):
            catalog.resolve(parse_reference(text))


def test_what_did_not_exist_is_found_once_it_is_published(enter, catalog) -> None:
    enter(catalog)
    for number in (2, 3):
        reference = parse_reference(f"orders@{number}")
        with pytest.raises(AdapterNotFound):
            catalog.resolve(reference)
        enter(catalog, number=number)
        assert catalog.resolve(reference).version == number
    with pytest.raises(AdapterNotFound):
        catalog.resolve(parse_reference("new"))
    enter(catalog, "new")
    assert catalog.resolve(parse_reference("new")).label == "new@1"
    assert catalog.remembered(parse_reference("new")).label == "new@1"


def test_unknown_names_of_a_huge_catalog_do_not_fill_the_memory(
    enter, in_sqlite, monkeypatch
) -> None:
    monkeypatch.setattr(catalog_module, "MOST_NAMES", 1)
    monkeypatch.setattr(catalog_module, "REMEMBERED", 5)
    enter(in_sqlite)
    enter(in_sqlite, "second")
    for number in range(50):
        for _ in range(2):
            with pytest.raises(AdapterNotFound):
                in_sqlite.resolve(parse_reference(f"unknown{number}"))
    assert in_sqlite._known.names is None
    assert len(in_sqlite._known.shelves) == 5
    asked = count_queries(in_sqlite)
    with pytest.raises(AdapterNotFound):
        in_sqlite.remembered(parse_reference("unknown49"))
    assert asked == []


def turn(folder, url, orders, answers) -> None:
    """In another process, as another server would: makes a change for each order."""
    with Catalog.open(folder, url) as catalog:
        changes = {
            "point": lambda: catalog.point("orders", "stable", 1, actor="eve"),
            "split": lambda: catalog.split("orders", "stable", {1: 1, 2: 3}, actor="eve"),
            "rollback": lambda: catalog.rollback("orders", "stable", actor="eve"),
            "drop": lambda: catalog.drop_alias("orders", "stable", actor="eve"),
        }
        while order := orders.get(timeout=60):
            changes[order]()
            answers.put(time.monotonic())


def test_a_change_by_another_process_is_seen_within_a_second(
    enter, catalog, catalog_url, tmp_path
) -> None:
    for number in (1, 2):
        enter(catalog, number=number)
    context = multiprocessing.get_context("spawn")
    orders, answers = context.Queue(), context.Queue()
    other = context.Process(target=turn, args=(tmp_path, catalog_url, orders, answers))
    other.start()
    reference = parse_reference("orders")

    def sides() -> set[int]:
        return {catalog.resolve(reference, str(key)).version for key in range(64)}

    assert sides() == {2}
    for order, expected in (("point", {1}), ("split", {1, 2}), ("rollback", {1}), ("drop", None)):
        orders.put(order)
        done = answers.get(timeout=60)
        seen = None
        while seen != expected or expected is None:
            try:
                seen = sides()
            except AdapterNotFound:
                break
            assert time.monotonic() - done < SEEN_SECONDS + 1, order
            time.sleep(0.01)
        assert time.monotonic() - done < SEEN_SECONDS, order
    orders.put(None)
    other.join(60)
    assert other.exitcode == 0
    assert catalog.list_aliases() == []


def test_a_change_of_our_own_is_seen_at_once(enter, catalog) -> None:
    for number in range(1, 6):
        enter(catalog, number=number)
        assert catalog.resolve(parse_reference("orders")).version == number
    assert catalog.rollback("orders", "stable", actor="ann").targets == (Target(4, 1),)
    assert catalog.resolve(parse_reference("orders")).version == 4
