"""Aliases, splits, rollback, pins and removal, the same on SQLite and PostgreSQL."""

from collections import Counter
from hashlib import sha256

import pytest
from refusals import not_refused

from adapters.catalog import AdapterVersion, Catalog
from adapters.catalog.aliases import Alias, Target
from adapters.errors import (
    AdapterNotFound,
    AliasIsSplit,
    AliasNotFound,
    BadName,
    NothingToRollBack,
    SplitInvalid,
    VersionInUse,
    WeightInvalid,
)
from adapters.names import Reference, parse_reference

ORDERS = Reference("orders")


@pytest.fixture
def three(enter, catalog) -> Catalog:
    """A catalog with orders@1, @2 and @3; each was stable until the next one came."""
    for number in (1, 2, 3):
        enter(catalog, number=number)
    return catalog


def resolve(catalog: Catalog, text: str, key: str | None = None) -> AdapterVersion:
    return catalog.resolve(parse_reference(text), key)


def stable(catalog: Catalog) -> dict[int, int]:
    (alias,) = (each for each in catalog.list_aliases("orders") if each.alias == "stable")
    return {target.version: target.weight for target in alias.targets}


def last_event(catalog: Catalog) -> tuple:
    (event,) = catalog.list_events(limit=1)
    return event.actor, event.action, event.name, event.detail


def test_an_alias_points_at_the_given_version(three) -> None:
    alias = three.point("orders", "canary", 2, actor="ben")
    assert alias == Alias("orders", "canary", (Target(2, 1),))
    assert resolve(three, "orders@canary").version == 2
    detail = {"alias": "canary", "from": None, "to": 2}
    assert last_event(three) == ("ben", "alias_moved", "orders", detail)
    assert [each.label for each in three.list_aliases()] == ["orders@canary", "orders@stable"]
    assert three.list_aliases("nobody") == []


def test_pointing_where_it_points_already_is_no_change(three) -> None:
    before = three.list_events()
    three.point("orders", "stable", 3, actor="ben")
    three.split("orders", "stable", {3: 70, 1: 0}, actor="ben")
    assert three.list_events() == before


def test_of_a_split_each_caller_stays_on_one_side(three) -> None:
    three.split("orders", "stable", {1: 90, 2: 10}, actor="ben")
    detail = {"alias": "stable", "from": 3, "to": {"1": 90, "2": 10}}
    assert last_event(three) == ("ben", "alias_moved", "orders", detail)
    keys = [f"user-{number}" for number in range(1000)]
    first = [resolve(three, "orders", key).version for key in keys]
    assert [resolve(three, "orders@stable", key).version for key in keys] == first
    assert 60 <= Counter(first)[2] <= 140
    assert {resolve(three, "orders").version for _ in range(300)} == {1, 2}
    assert resolve(three, "orders@1").aliases == ("stable",)
    assert resolve(three, "orders@2").aliases == ("stable",)


def test_a_reference_means_all_sides_of_a_split(three) -> None:
    assert [version.label for version in three.resolve_all(ORDERS)] == ["orders@3"]
    three.split("orders", "stable", {2: 1, 1: 9}, actor="ben")
    assert [version.label for version in three.resolve_all(ORDERS)] == ["orders@1", "orders@2"]
    (second,) = three.resolve_all(parse_reference("orders@2"))
    assert second.key == ("orders@2", f"sha256:{2:064x}")


def test_new_weights_move_as_few_keys_as_possible(three) -> None:
    keys = [f"user-{number}" for number in range(500)]
    three.split("orders", "stable", {1: 90, 2: 10}, actor="ben")
    before = {key: resolve(three, "orders", key).version for key in keys}
    three.split("orders", "stable", {1: 80, 2: 20}, actor="ben")
    after = {key: resolve(three, "orders", key).version for key in keys}
    moved = Counter((before[key], after[key]) for key in keys if before[key] != after[key])
    assert set(moved) == {(1, 2)}


def test_a_side_is_what_the_hash_says(three) -> None:
    """Other programs that share the catalog must get the same side."""
    three.split("orders", "stable", {3: 5, 1: 2, 2: 3}, actor="ben")
    for key in ("ann", "", "ü", "a:b"):
        point = int.from_bytes(sha256(f"orders@stable:{key}".encode()).digest()[:8], "big") % 10
        expected = 1 if point < 2 else 2 if point < 5 else 3
        assert resolve(three, "orders", key).version == expected


def test_the_same_user_is_not_on_the_small_side_of_every_split(enter, catalog) -> None:
    for name in ("a", "b"):
        for number in (1, 2):
            enter(catalog, name, number)
        catalog.split(name, "stable", {1: 1, 2: 1}, actor="ben")
    keys = [str(number) for number in range(200)]
    agreeing = sum(
        resolve(catalog, "a", k).version == resolve(catalog, "b", k).version for k in keys
    )
    assert 50 < agreeing < 150


def test_a_key_that_utf8_cannot_write_has_a_side_too(three) -> None:
    three.split("orders", "stable", {1: 1, 2: 1}, actor="ben")
    assert resolve(three, "orders", "\ud800").version in (1, 2)


def test_a_split_is_refused_where_one_version_is_needed(three) -> None:
    assert three.resolve_only(ORDERS).version == 3
    three.split("orders", "stable", {1: 9, 2: 1}, actor="ben")
    with pytest.raises(AliasIsSplit, match=r"orders@stable is split .*orders@1 \(9\), orders@2"):
        three.resolve_only(ORDERS)


BAD_WEIGHTS = [{}, {1: 0}, {1: 0, 2: 0}, {1: -1, 2: 5}, {1: 10**7}, {1: 1.5, 2: 1}, {1: True}]


def test_invalid_weights_are_refused(three) -> None:
    before = three.list_events()

    def split(weights) -> None:
        three.split("orders", "stable", weights, actor="ben")

    too_many = dict.fromkeys(range(1, 102), 1)
    assert not_refused(split, SplitInvalid, [*BAD_WEIGHTS, too_many]) == []
    assert three.list_events() == before


def test_aliases_point_at_versions_that_exist(three) -> None:
    before = three.list_events()
    for name, alias, version in (("orders", "stable", 4), ("nobody", "stable", 1)):
        with pytest.raises(AdapterNotFound):
            three.point(name, alias, version, actor="ben")
    with pytest.raises(AdapterNotFound):
        three.split("orders", "stable", {1: 1, 9: 1}, actor="ben")
    with pytest.raises(BadName):
        three.point("orders", "7", 1, actor="ben")
    assert three.list_events() == before


def test_a_dropped_alias_means_nothing_until_it_is_rolled_back(three) -> None:
    three.drop_alias("orders", "stable", actor="ben")
    assert last_event(three)[3] == {"alias": "stable", "from": 3, "to": None}
    with pytest.raises(AdapterNotFound):
        resolve(three, "orders")
    with pytest.raises(AliasNotFound, match="has no alias 'stable'"):
        three.drop_alias("orders", "stable", actor="ben")
    with pytest.raises(AdapterNotFound, match="there is no adapter 'nobody'"):
        three.drop_alias("nobody", "stable", actor="ben")
    three.rollback("orders", "stable", actor="ben")
    assert resolve(three, "orders").version == 3


def test_rolling_back_twice_goes_two_back_and_no_further(three) -> None:
    assert three.rollback("orders", "stable", actor="eve").targets == (Target(2, 1),)
    detail = {"alias": "stable", "from": 3, "to": 2}
    assert last_event(three) == ("eve", "alias_rolled_back", "orders", detail)
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {1: 1}
    with pytest.raises(NothingToRollBack):
        three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {1: 1}


def test_after_a_rollback_the_way_back_is_the_earlier_one(three) -> None:
    three.rollback("orders", "stable", actor="eve")  # 3 -> 2
    three.point("orders", "stable", 3, actor="eve")
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {2: 1}
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {1: 1}


def test_a_split_is_rolled_back_to_and_from(three) -> None:
    three.split("orders", "stable", {2: 50, 3: 50}, actor="eve")
    three.point("orders", "stable", 1, actor="eve")
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {2: 50, 3: 50}
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {3: 1}


def test_a_rollback_can_go_straight_to_a_version_of_the_way(three) -> None:
    three.rollback("orders", "stable", actor="eve", to=1)
    assert stable(three) == {1: 1}
    with pytest.raises(NothingToRollBack, match="no way back to version 3"):
        three.rollback("orders", "stable", actor="eve", to=3)


def test_a_rollback_skips_removed_versions(three) -> None:
    three.remove("orders", 2, actor="eve")
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {1: 1}
    with pytest.raises(NothingToRollBack):
        three.rollback("orders", "stable", actor="eve")


def test_a_rollback_is_always_a_change(three) -> None:
    """After 2 -> 3 -> 2 with 3 removed, a rollback does not stay at 2."""
    three.point("orders", "stable", 2, actor="eve")
    three.remove("orders", 3, actor="eve")
    three.rollback("orders", "stable", actor="eve")
    assert stable(three) == {1: 1}


def test_aliases_have_ways_of_their_own(three) -> None:
    three.point("orders", "canary", 1, actor="eve")
    with pytest.raises(NothingToRollBack, match="orders@canary never pointed"):
        three.rollback("orders", "canary", actor="eve")
    with pytest.raises(AliasNotFound):
        three.rollback("orders", "nothing", actor="eve")
    with pytest.raises(AdapterNotFound):
        three.rollback("nobody", "stable", actor="eve")


def test_fifty_times_forward_and_back(three) -> None:
    for _ in range(50):
        three.point("orders", "stable", 1, actor="eve")
        assert resolve(three, "orders").version == 1
        three.rollback("orders", "stable", actor="eve")
        assert resolve(three, "orders").version == 3
    assert three.rollback("orders", "stable", actor="eve").targets == (Target(2, 1),)


def test_pins_are_events_and_hold_a_version(three) -> None:
    assert three.pin("orders", 1, actor="ben").pinned
    assert last_event(three) == ("ben", "pinned", "orders", {"version": 1})
    assert [version.label for version in three.pins()] == ["orders@1"]
    assert [version.pinned for version in three.list_versions()] == [True, False, False]
    before = three.list_events()
    three.pin("orders", 1, actor="ben")
    three.unpin("orders", 2, actor="ben")
    assert three.list_events() == before
    with pytest.raises(VersionInUse, match="orders@1 is pinned; unpin it first"):
        three.remove("orders", 1, actor="ben")
    assert not three.unpin("orders", 1, actor="ben").pinned
    assert last_event(three)[1] == "unpinned"
    assert three.pins() == []
    with pytest.raises(AdapterNotFound):
        three.pin("orders", 9, actor="ben")


def test_a_weight_belongs_to_the_name_and_is_an_event(enter, three) -> None:
    assert {version.weight for version in three.list_versions()} == {1.0}
    assert resolve(three, "orders@1").weight == 1.0
    three.weigh("orders", 2.5, actor="ben")
    assert last_event(three) == ("ben", "weight_changed", "orders", {"from": 1.0, "to": 2.5})
    assert [resolve(three, text).weight for text in ("orders", "orders@1")] == [2.5, 2.5]
    assert enter(three, number=4).weight == 2.5
    assert enter(three, name="others").weight == 1.0
    before = three.list_events()
    three.weigh("orders", 2.5, actor="ben")
    assert three.list_events() == before


def test_a_weight_outlives_the_versions(enter, catalog) -> None:
    enter(catalog, aliases=())
    catalog.weigh("orders", 0.01, actor="ben")
    catalog.remove("orders", 1, actor="ben")
    with pytest.raises(AdapterNotFound, match="there is no adapter 'orders'"):
        catalog.weigh("orders", 1, actor="ben")
    assert enter(catalog).weight == 0.01


@pytest.mark.parametrize("weight", [0, -1, 0.009, 100.1, float("nan"), float("inf")])
def test_other_numbers_are_no_weights(three, weight: float) -> None:
    with pytest.raises(WeightInvalid, match=r"out of range; give a number from 0\.01 to 100"):
        three.weigh("orders", weight, actor="ben")
    assert resolve(three, "orders").weight == 1.0


def test_a_version_in_use_is_not_removed(three) -> None:
    three.split("orders", "canary", {1: 1, 2: 1}, actor="ben")
    for number, alias in ((3, "stable"), (2, "canary")):
        with pytest.raises(VersionInUse, match=f"orders@{number} is in use: {alias} points at it"):
            three.remove("orders", number, actor="ben")
    assert len(three.list_versions()) == 3


def test_a_removed_version_is_gone_and_its_number_is_never_reused(enter, three) -> None:
    digest = resolve(three, "orders@2").digest
    three.remove("orders", 2, actor="ben")
    assert last_event(three) == ("ben", "removed", "orders", {"version": 2, "digest": digest})
    with pytest.raises(AdapterNotFound):
        resolve(three, "orders@2")
    with pytest.raises(AdapterNotFound):
        three.remove("orders", 2, actor="ben")
    assert enter(three, number=2, aliases=()).label == "orders@4"
    three.remove("orders", 4, actor="ben")
    assert enter(three, number=2).label == "orders@5"
    assert resolve(three, "orders").digest == digest


def test_an_adapter_without_versions_keeps_its_numbers(enter, catalog) -> None:
    enter(catalog, aliases=())
    catalog.remove("orders", 1, actor="ben")
    assert catalog.list_versions() == []
    assert enter(catalog).label == "orders@2"
