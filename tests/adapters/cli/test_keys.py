"""`lorry keys` on a store and on a running server, and what the catalog keeps of a secret."""

from __future__ import annotations

import hashlib
import re
from datetime import UTC, datetime, timedelta

import pytest
from api_keys import ADMIN, key
from key_life import check_life

from adapters.catalog import Catalog
from adapters.errors import KeyExists, KeyInvalid, KeyIsRevoked
from adapters.keys import Budget
from adapters.keys.texts import read_budget, read_duration


@pytest.fixture
def catalog(tmp_path):
    with Catalog.open(tmp_path / "store") as catalog:
        yield catalog


def test_a_secret_is_256_bits_and_only_its_digest_is_kept(catalog, tmp_path):
    made, secret = catalog.keys.create(key(), actor=ADMIN)
    assert re.fullmatch(r"lk-[A-Za-z0-9_-]{43}", secret)
    assert made.prefix == secret[:9]
    assert catalog.keys.find("team-a") == made
    held = catalog.keys.ring().find(secret)
    assert held is not None
    assert held.key == made
    catalog.close()
    kept = (tmp_path / "store" / "catalog.db").read_bytes()
    assert secret[9:].encode() not in kept
    assert hashlib.sha256(secret.encode()).hexdigest().encode() in kept
    others = {catalog.keys.create(key(f"k{n}"), actor=ADMIN)[1] for n in range(20)}
    assert len(others) == 20


def test_each_change_is_an_event_apart_from_those_of_adapters(catalog):
    keys = catalog.keys
    keys.create(key("orders"), actor="ann")
    keys.rotate("orders", overlap=timedelta(hours=1), actor="key:root")
    for change in (keys.block, keys.block, keys.unblock, keys.revoke):
        change("orders", actor="bob")
    seen = [(event.action, event.actor) for event in keys.list_events("orders")]
    assert seen == [
        ("key_created", "ann"),
        ("key_rotated", "key:root"),
        ("key_blocked", "bob"),
        ("key_unblocked", "bob"),
        ("key_revoked", "bob"),
    ]
    assert catalog.list_events() == catalog.list_events("orders") == []
    for change in (keys.block, keys.unblock, keys.revoke):
        with pytest.raises(KeyIsRevoked):
            change("orders", actor="bob")
    with pytest.raises(KeyExists):
        keys.create(key("orders"), actor="ann")


def test_another_process_sees_a_change_at_once_and_asks_the_database_once(catalog, tmp_path):
    with Catalog.open(tmp_path / "store") as other:
        assert not other.keys.ring()
        assert other.keys.remembered() is other.keys.ring()
        _, secret = catalog.keys.create(key(), actor=ADMIN)
        assert other.keys.remembered() is None
        assert other.keys.ring().find(secret)
        catalog.keys.block("team-a", actor=ADMIN)
        held = other.keys.ring().find(secret)
        assert held is not None
        assert held.key.status() == "blocked"
        assert other.keys.remembered() is other.keys.ring()


def test_a_keys_time_and_its_patterns():
    now = datetime.now(UTC)
    assert key(expires=now).status(now) == "expired"
    assert key(expires=now + timedelta(seconds=1)).status(now) == "active"
    some = key(adapters=("red*", "a?c", "x.y"))
    may = ["red", "red-1", "abc", "x.y"]
    not_ = ["re", "Red", "xred", "ac", "abbc", "x-y", ""]
    assert [name for name in may + not_ if some.may_use(name)] == may
    assert not some.may_use(None)
    assert not key(adapters=()).may_use("")


WRONG = [
    {"name": "a b"},
    {"name": ""},
    {"name": "x" * 65},
    {"scopes": frozenset()},
    {"scopes": frozenset({"root"})},
    {"adapters": ("[a-z]*",)},
    {"adapters": ("",)},
    {"adapters": ("a",) * 101},
    {"weight": 0.0},
    {"weight": float("nan")},
    {"weight": 1e9},
    {"expires": datetime.now(UTC) - timedelta(seconds=1)},
]


@pytest.mark.parametrize("wrong", WRONG)
def test_what_no_key_can_be_is_refused(catalog, wrong):
    with pytest.raises(KeyInvalid):
        catalog.keys.create(key(**{"name": "team-a", **wrong}), actor=ADMIN)
    assert catalog.keys.all() == []


def test_times_and_budgets_are_read_as_people_write_them():
    assert read_duration("90d") == timedelta(days=90)
    assert read_duration("1h") == timedelta(hours=1)
    assert read_budget("50M/month") == Budget(50_000_000, "month")
    assert read_budget("1.5k/day") == Budget(1500, "day")
    for wrong in ("", "90", "d", "-1d", "1.5d", "1y", "9" * 12 + "s", "999999999d"):
        with pytest.raises(KeyInvalid):
            read_duration(wrong)
    for wrong in ("", "50M", "50M/week", "x/day", "50MM/day", "-1/day", "1e9/day"):
        with pytest.raises(KeyInvalid):
            read_budget(wrong)


def test_the_life_of_a_key_on_a_store(tmp_path, capsys):
    from lorry import main

    def lorry_keys(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["keys", *arguments, "--store", str(tmp_path / "store")])
        assert ended.value.code == 0
        return capsys.readouterr().out

    check_life(lorry_keys)
