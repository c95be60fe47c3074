"""The fuzzing run without its engine: cases are reproducible, and a bad record fails."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.fuzz import bodies, callers, grammars
from tests.fuzz.case import Case, Step
from tests.fuzz.drive import Answer, Outcome
from tests.fuzz.judge import documented_unavailable, faults, is_checked, known
from tests.fuzz.verdict import failures, livez, report

PROBES = [{"at": n / 50, "took": 0.002, "status": 200, "no_core": 0.0} for n in range(100)]
GOOD: dict[str, Any] = {
    "seed": 7,
    "seconds": 60,
    "cases": {"bodies": 10},
    "statuses": {"200": 5, "400": 5},
    "checked": 1,
    "faults": [],
    "known": {"a cut tool call": 2},
    "livez": livez(PROBES),
    "stalls": [],
    "memory_mib": {"server": [500, 510]},
    "descriptors": {"server": [60, 61]},
    "threads": {"server": [20, 20]},
    "ended": [],
    "ordinary": {"calls": 9, "refused": 0, "longest": 0.4, "wrong": []},
}
STALL = {"seconds": 3.0, "no_core": 0.0, "name": "bodies:3", "title": "x", "suspects": []}
BAD = {
    "a fault": {"faults": [{"name": "bodies:3", "fault": "500 internal_error"}]},
    "a stall that repeats": {"stalls": [STALL | {"confirmed": True}]},
    "a wrong answer": {"ordinary": GOOD["ordinary"] | {"wrong": ["orders-sql: 'x', not 'y'"]}},
    "an end": {"ended": ["engine"]},
    "growth": {"memory_mib": {"engine": [1000, 1200]}},
    "descriptors": {"descriptors": {"server": [60, 90]}},
    "nothing measured": {"livez": {"probes": 0}},
}
ENVELOPE = {"message": "m", "type": "server_error", "param": None, "code": "internal_error"}


@pytest.mark.parametrize("kind", [bodies, grammars, callers])
def test_a_case_depends_on_seed_kind_and_number_alone(kind):
    first = [kind.make(7, number) for number in range(60)]
    again = [kind.make(7, number) for number in reversed(range(60))]
    assert first == again[::-1]
    assert [each.steps for each in first] != [kind.make(8, n).steps for n in range(60)]


def test_a_kept_case_sends_the_same_bytes():
    for kind in (bodies, grammars, callers):
        for number in range(10):
            case = kind.make(7, number)
            assert Case.from_json(case.to_json()) == case


def test_a_good_record_passes():
    assert failures(GOOD) == []
    assert "passed" in report(GOOD)


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_bad_record_fails(change):
    record = copy.deepcopy(GOOD) | change
    assert len(failures(record)) == 1
    assert "FAILED" in report(record)


def test_a_stall_that_does_not_repeat_is_reported_and_no_failure():
    record = GOOD | {"stalls": [STALL | {"confirmed": False}]}
    assert failures(record) == []
    assert "does not repeat" in report(record)


def outcome(status: int, body: Any, language: dict[str, Any] | None = None) -> Outcome:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    case = Case(7, "bodies", 0, "", (Step("answers", amount=1),), 1, language or {})
    answer = Answer(status, {"content-type": "application/json"}, content, complete=True)
    return Outcome(case, 0.0, 1.0, [answer])


def text_answer(text: str) -> dict[str, Any]:
    return {"choices": [{"finish_reason": "stop", "message": {"content": text}}]}


def test_answers_are_judged():
    dead = {"error": ENVELOPE | {"code": "engine_dead"}}
    assert "engine_dead" in documented_unavailable()
    assert faults(outcome(503, dead)) == []
    assert faults(outcome(400, {"error": ENVELOPE})) == []
    assert faults(outcome(500, {"error": ENVELOPE}))
    assert faults(outcome(400, {"detail": "x"}))
    assert faults(outcome(400, b"Bad Request"))
    assert faults(outcome(200, b"{"))
    assert faults(outcome(200, {"x": "Traceback (most recent call last)"}))
    assert faults(Outcome(outcome(200, {}).case, 0.0, 1.0, []))


def test_an_open_fault_is_told_from_others():
    refused = 'a valid grammar is refused: 400 b\'{"error": {"message": "Expecting value: line 1'
    assert known('/v1/messages json valid ["model", "tools"]', refused)
    assert not known('/v1/messages json valid ["model", "output_config"]', refused)
    assert not known('/v1/messages json valid ["model", "tools"]', "500 internal_error: x")


def test_a_finished_answer_must_be_in_its_language():
    for language, right, wrong in (
        ({"schema": {"type": "integer"}}, "5", '"5"'),
        ({"regex": "a+"}, "aa", "ab"),
        ({"choice": ["x", "y"]}, "x", "z"),
    ):
        assert is_checked(outcome(200, text_answer(right), language))
        assert faults(outcome(200, text_answer(right), language)) == []
        assert faults(outcome(200, text_answer(wrong), language))
        assert faults(outcome(400, {"error": ENVELOPE}, language))
