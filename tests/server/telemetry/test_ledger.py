"""Accounts of versions are bounded in number, and sums over them never decrease."""

from __future__ import annotations

import random

from server.telemetry.ledger import OTHER, Histogram, Ledger, labels_of

BOUNDS = {"seconds": (1.0, 2.0)}
TRACE = {"trace_id": "a" * 32}


def ledger(limit: int = 2) -> Ledger:
    return Ledger(BOUNDS, limit, fixed=["base"])


def total(ledger: Ledger, name: str = "calls") -> float:
    counts = [each.counters.get(name, {}) for each in ledger.accounts()]
    return sum(count.value for each in counts for count in each.values())


def observed(ledger: Ledger) -> tuple[int, float]:
    found = [each.histograms["seconds"] for each in ledger.accounts() if each.histograms]
    return sum(sum(each.counts) for each in found), sum(each.total for each in found)


def test_a_value_is_counted_in_the_first_bucket_that_is_not_below_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert (histogram.counts, histogram.total) == ([2, 2, 1], 14.0)


def test_beyond_the_limit_the_least_recently_used_is_folded_into_other():
    ours = ledger()
    for name in ("red", "green", "red", "blue"):
        ours.account(f"{name}@1").count("calls", "ok")
    assert ours.versions() == ["red@1", "blue@1"]
    assert ours.other.counters["calls"][("ok",)].value == 1
    ours.account("green@1").count("calls", "ok")  # a new account
    assert ours.find("green@1").counters["calls"][("ok",)].value == 1
    assert total(ours) == 5


def test_sums_never_decrease_even_for_folded_accounts_in_use():
    dice, ours, held = random.Random(1), ledger(limit=3), []
    calls, seconds = 0, 0.0
    for _ in range(2000):
        account = ours.account(f"a{dice.randrange(9)}@1")
        held = [*held[-20:], account]
        if dice.random() < 0.05:
            ours.fold(dice.choice(ours.versions()))
        for each in dice.sample(held, min(3, len(held))):
            value = dice.random() * 3
            each.count("calls", dice.choice(["ok", "error"]))
            each.observe("seconds", value)
            calls, seconds = calls + 1, seconds + value
        assert len(ours.versions()) <= 3
        assert total(ours) == calls
        assert observed(ours)[0] == calls
    assert abs(observed(ours)[1] - seconds) < 1e-6


def test_the_base_is_never_folded():
    ours = ledger(limit=1)
    ours.account("base").count("calls")
    for name in ("red", "green"):
        ours.account(f"{name}@1")
    ours.fold("base")
    assert total(ours) == 1
    assert ours.find("base").counters["calls"][()].value == 1
    assert ours.find("red@1").key == OTHER


def test_the_newest_exemplar_survives_a_fold():
    ours = ledger()
    red = ours.account("red@1")
    ours.other.observe("seconds", 0.5, {"trace_id": "b" * 32})
    red.observe("seconds", 0.7, TRACE)
    red.count("calls", trace=TRACE)
    ours.fold("red@1")
    assert ours.other.histograms["seconds"].exemplars[0].labels == TRACE
    assert ours.other.counters["calls"][()].exemplar.labels == TRACE


def test_sums_have_a_quarter_of_the_limit_and_fold_no_version(monkeypatch):
    now = 0.0
    monkeypatch.setattr("server.telemetry.ledger.time.monotonic", lambda: now)
    ours = ledger(8)
    for number in range(8):
        ours.account(f"red@{number + 1}").count("calls", "ok")
    for number in range(50):
        ours.account(f"red@1*0.{number}+blue@1").count("calls", "ok")
        assert len(ours.accounts()) <= 2 + 8 + 2
    assert ours.versions()[:8] == [f"red@{number + 1}" for number in range(8)]
    assert ours.versions()[8:] == ["red@1*0.0+blue@1", "red@1*0.1+blue@1"]
    assert total(ours) == 58
    assert ours.other.counters["calls"][("ok",)].value == 48
    assert labels_of("red@1*0.49+blue@1") == ("red@1*0.49+blue@1", "")
    assert labels_of("red@1") == ("red", "1")
    now += 1800
    ours.account("red@1*0.1+blue@1").count("calls", "ok")
    now += 1801
    for number in (3, 4):
        ours.account(f"red@1*0.{number}+blue@1").count("calls", "ok")
    assert ours.versions()[8:] == ["red@1*0.1+blue@1", "red@1*0.3+blue@1"], "the first was idle"
    ours.fold("red@1*0.1+blue@1")
    assert total(ours) == 61
