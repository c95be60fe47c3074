"""Invalid traffic is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from loadtest.plan.traffic import Arrival, Length, Popularity, Slug, Stream, Trace

INVALID = [
    (Length, 0),
    (Length, 1_000_001),
    (Length, 1.5),
    (Length, {"kind": "uniform", "least": 5, "most": 4}),
    (Length, {"kind": "uniform", "least": 0, "most": 4}),
    (Length, {"kind": "lognormal", "median": 0, "sigma": 1, "most": 9}),
    (Length, {"kind": "lognormal", "median": float("inf"), "sigma": 1, "most": 9}),
    (Length, {"kind": "lognormal", "median": 9, "sigma": 1}),
    (Length, {"kind": "normal", "median": 9}),
    (Popularity, {"kind": "power-law", "alpha": 0}),
    (Popularity, {"kind": "zipf", "exponent": -1}),
    (Popularity, {"kind": "hot-set", "hot": 0, "share": 0.5}),
    (Popularity, {"kind": "hot-set", "hot": 1, "share": 1.1}),
    (Popularity, {"kind": "in-turn", "alpha": 1}),
    (Arrival, {"kind": "poisson", "rate": 0}),
    (Arrival, {"kind": "poisson", "rate": float("nan")}),
    (Arrival, {"kind": "poisson", "rate": 100_001}),
    (Arrival, {"kind": "gamma", "rate": 1, "cv": 0}),
    (Arrival, {"kind": "ramp", "start": 1}),
    (Arrival, {"kind": "steps", "rates": []}),
    (Arrival, {"kind": "trace", "file": "a", "speed": float("inf")}),
    (Arrival, {"kind": "closed", "concurrency": 0}),
    (Stream, {"base_share": -0.1}),
    (Stream, {"endpoint": "embeddings"}),
    (Stream, {"adapters": {"count": 0}}),
    (Stream, {"adapter": {"count": 1}}),
    (Slug, "Mixed"),
    (Slug, "a/b"),
    (Slug, "a\n"),
]


def is_valid(kind: Any, value: Any) -> bool:
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def test_invalid_traffic_is_refused():
    assert [value for kind, value in INVALID if is_valid(kind, value)] == []


def test_a_traces_path_is_relative_to_the_scenarios_folder():
    given = {"kind": "trace", "file": "calls.jsonl"}
    found = Trace.model_validate(given, context={"folder": Path("/scenarios")})
    assert found.file == Path("/scenarios/calls.jsonl")
    absolute = Trace.model_validate(given | {"file": "/a.jsonl"}, context={"folder": Path("/b")})
    assert absolute.file == Path("/a.jsonl")
