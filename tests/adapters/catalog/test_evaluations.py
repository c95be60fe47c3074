"""Evaluations and the gate of aliases, the same on SQLite and PostgreSQL."""

import json
import math
from dataclasses import replace

import pytest
from evaluated import OTHER_SET, around, evaluation

from adapters.catalog import Catalog
from adapters.catalog.evaluations import Gate
from adapters.errors import AdapterNotFound, EvaluationInvalid, GateRefused

GATE = Gate("exact-match")


@pytest.fixture
def two(enter, catalog) -> Catalog:
    """A catalog with orders@1, which is stable, and orders@2."""
    enter(catalog, number=1)
    enter(catalog, number=2, aliases=())
    return catalog


def move(catalog: Catalog, gate: Gate = GATE, version: int = 2) -> None:
    catalog.point("orders", "stable", version, actor="ben", gate=gate)


def judge(catalog: Catalog, version: int, *scores: float, **others) -> None:
    catalog.evaluate("orders", version, evaluation(*scores, **others), actor="ann")


def last_event(catalog: Catalog) -> dict:
    return catalog.list_events(limit=1)[0].as_json()


def test_evaluations_are_listed_with_their_version_newest_last(two) -> None:
    first, second = evaluation(0.7), evaluation(0.8, metric="contains")
    recorded = [two.evaluate("orders", 2, each, actor="ann") for each in (first, second)]
    listed = two.list_evaluations("orders", "nobody")
    assert listed == {("orders", 2): recorded}
    newest = listed["orders", 2][-1]
    assert (newest.metric, newest.actor, newest.score) == ("contains", "ann", second.score)
    assert newest.judged_at.tzinfo is not None
    assert newest.comparisons == second.comparisons
    facts = newest.as_json()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["comparisons"][0]["against"] == "base"


def test_an_evaluation_is_an_event_with_its_figures(two) -> None:
    judge(two, 2, 0.7, 0.2)
    event = last_event(two)
    assert (event["action"], event["actor"], event["version"]) == ("evaluated", "ann", 2)
    assert (event["metric"], event["score"], event["base_score"]) == ("exact-match", 0.7, 0.2)


def test_evaluations_go_with_their_version(two) -> None:
    judge(two, 1, 0.5)
    judge(two, 2, 0.7)
    two.remove("orders", 2, actor="ben")
    assert list(two.list_evaluations("orders")) == [("orders", 1)]
    with pytest.raises(AdapterNotFound):
        judge(two, 2, 0.7)


BAD = {
    "above 1": {"score": around(1.5)},
    "not a number": {"score": replace(around(0.5), mean=math.nan)},
    "outside its interval": {"score": replace(around(0.5), low=0.6)},
    "no examples": {"examples": 0},
    "more cut than asked": {"cut": 201},
    "no base": {"comparisons": ()},
    "other first": {"comparisons": (replace(evaluation(0.5).base, against="orders@1"),)},
    "no metric": {"metric": ""},
    "by nobody": {"by": "guess"},
}


@pytest.mark.parametrize("wrong", BAD.values(), ids=BAD)
def test_figures_that_can_not_be_are_refused(two, wrong) -> None:
    with pytest.raises(EvaluationInvalid):
        judge(two, 2, 0.5, **wrong)
    assert two.list_evaluations("orders") == {}


def test_a_better_version_passes_and_the_event_names_the_gate(two) -> None:
    judge(two, 1, 0.5)
    judge(two, 2, 0.7)
    move(two)
    assert last_event(two) | {"happened_at": 0} == {
        "happened_at": 0,
        "actor": "ben",
        "action": "alias_moved",
        "name": "orders",
        "alias": "stable",
        "from": 1,
        "to": 2,
        "gate": "exact-match",
    }


def test_an_equal_version_passes(two) -> None:
    judge(two, 1, 0.7)
    judge(two, 2, 0.7)
    move(two)


def test_of_an_alias_that_points_nowhere_only_the_base_counts(two) -> None:
    judge(two, 2, 0.7)
    two.point("orders", "canary", 2, actor="ben", gate=GATE)
    assert last_event(two)["to"] == 2


def test_moving_to_where_it_points_needs_to_beat_the_base_alone(two) -> None:
    judge(two, 1, 0.7)
    move(two, version=1)


REFUSED = {
    "no evaluation": (lambda catalog: judge(catalog, 1, 0.5), "orders@2 has no evaluation by"),
    "another metric": (
        lambda catalog: judge(catalog, 2, 0.7, metric="contains"),
        r"no evaluation by exact-match \(it has some by contains\)",
    ),
    "as good as the base": (
        lambda catalog: judge(catalog, 2, 0.7, 0.7),
        "0.7000 by exact-match, which is not better than the base's 0.7000",
    ),
    "worse": (
        lambda catalog: (judge(catalog, 1, 0.8), judge(catalog, 2, 0.7)),
        r"0.7000 by exact-match, which is worse than the 0.8000 of orders@1",
    ),
    "target not judged": (
        lambda catalog: judge(catalog, 2, 0.7),
        "lorry evaluate orders@2 --against orders@1 --data FILE --metric exact-match",
    ),
    "target judged on other data": (
        lambda catalog: (judge(catalog, 1, 0.5, data_digest=OTHER_SET), judge(catalog, 2, 0.7)),
        "orders@1, which the alias points at, has no evaluation by exact-match on the data",
    ),
    "target judged by another file": (
        lambda catalog: (judge(catalog, 1, 0.5, metric_digest=OTHER_SET), judge(catalog, 2, 0.7)),
        "orders@1, which the alias points at, has no evaluation",
    ),
    "the newest evaluation counts": (
        lambda catalog: [judge(catalog, 1, 0.5), judge(catalog, 2, 0.7), judge(catalog, 2, 0.4)],
        "0.4000 by exact-match, which is worse than the 0.5000",
    ),
    "a side of a split is better": (
        lambda catalog: [
            judge(catalog, 1, 0.8),
            judge(catalog, 2, 0.7),
            catalog.split("orders", "stable", {1: 99, 2: 1}, actor="ben"),
        ],
        "worse than the 0.8000 of orders@1",
    ),
}


@pytest.mark.parametrize(("prepare", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_shown_to_be_better_is_refused_and_changes_nothing(two, prepare, said) -> None:
    prepare(two)
    before = two.list_aliases(), two.list_events()
    with pytest.raises(GateRefused, match=said) as raised:
        move(two)
    assert raised.value.code == "gate_refused"
    assert (two.list_aliases(), two.list_events()) == before


def test_a_forced_move_leaves_the_reason_in_its_event(two) -> None:
    judge(two, 2, 0.7, 0.8)
    move(two, Gate("exact-match", forced=True))
    event = last_event(two)
    assert (event["to"], event["gate"], event["forced"]) == (2, "exact-match", True)
    assert event["reason"].endswith("which is not better than the base's 0.8000")
    two.rollback("orders", "stable", actor="ben")
    assert last_event(two)["to"] == 1


def test_force_is_not_recorded_where_the_gate_is_passed(two) -> None:
    judge(two, 1, 0.5)
    judge(two, 2, 0.7)
    move(two, Gate("exact-match", forced=True))
    assert "forced" not in last_event(two)


def test_each_side_of_a_split_must_pass(two) -> None:
    judge(two, 1, 0.5)
    with pytest.raises(GateRefused, match="orders@2 has no evaluation"):
        two.split("orders", "stable", {1: 90, 2: 10}, actor="ben", gate=GATE)
    judge(two, 2, 0.7)
    two.split("orders", "stable", {1: 90, 2: 10}, actor="ben", gate=GATE)
    assert last_event(two)["to"] == {"1": 90, "2": 10}
