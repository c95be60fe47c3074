"""A grammar beyond a bound is refused, wherever in it the bound is met, and no ordinary one is."""

from __future__ import annotations

import json
import time

import pytest

from server.errors import GrammarRefused, GrammarTooLarge
from server.grammars.bounds import Bounds, Grammar

BOUNDS = Bounds(bytes=200_000, depth=20, alternatives=100, repeats=1_000, number=2**64)
DEEP = "(" * 21 + "a" + ")" * 21


def nested(levels, leaf):
    for _ in range(levels):
        leaf = {"type": "array", "items": leaf}
    return leaf


ORDINARY = [
    ("json", {"type": "object", "properties": {"a": {"type": "integer", "maximum": 2**63}}}),
    ("json", {"type": "string", "maxLength": 1_000, "pattern": r"^\(\(\(\(a{1,1000}"}),
    ("json", nested(19, {"type": "string"})),
    ("json", {"enum": list(range(90))}),
    ("json", {"type": "number", "minimum": -1.5, "description": "(see [1] and {x}) | or not"}),
    ("json", {"type": "integer", "description": "inhabitants, ~1500 in a village"}),
    ("json", {"type": "string", "description": "of {123456} (" + "(" * 30}),
    ("regex", r"\p{L}{1,1000}"),
    ("regex", r"\(" * 500),
    ("regex", "(a)" * 500),
    ("choice", [f"choice {number}" for number in range(100)]),
    ("grammar", 'root ::= "a" | "b" root'),
    ("json_object", True),
]
BEYOND = [
    ("depth", "json", {"type": "string", "pattern": DEEP}),
    ("depth", "json", {"patternProperties": {DEEP: {"type": "string"}}}),
    ("depth", "json", {"properties": {"description": {"pattern": DEEP}}}),
    ("depth", "json", {"allOf": [{"properties": {"x": {"propertyNames": {"pattern": DEEP}}}}]}),
    ("depth", "json", nested(21, {"type": "string"})),
    ("depth", "regex", DEEP),
    ("depth", "regex", "[" * 21),
    ("depth", "grammar", f"root ::= {DEEP}"),
    ("depth", "structural_tag", {"structures": [{"schema": {"pattern": DEEP}}]}),
    ("alternatives", "choice", ["a"] * 101),
    ("alternatives", "json", {"enum": list(range(101))}),
    ("alternatives", "json", {"properties": {str(n): {"enum": [1, 2]} for n in range(60)}}),
    ("alternatives", "regex", "|".join("a" * 102)),
    ("alternatives", "grammar", "root ::= " + "|".join(['"a"'] * 102)),
    ("repeats", "json", {"type": "string", "maxLength": 1_001}),
    ("repeats", "json", {"items": {"type": "array", "minItems": 1e9}}),
    ("repeats", "json", {"type": "string", "pattern": "a{1001}"}),
    ("repeats", "regex", "a{0,1001}"),
    ("repeats", "regex", "a{" + "9" * 5_000 + "}"),
    ("repeats", "grammar", "start: A~1..5000"),
    ("number", "json", {"type": "integer", "maximum": 10**30}),
    ("number", "json", {"type": "integer", "enum": [-(10**30)]}),
    ("number", "json", '{"const": 1e999}'),
    ("number", "json", '{"const": NaN}'),
    ("bytes", "regex", "a" * 200_001),
    ("bytes", "json", {"description": "a" * 200_000}),
]


@pytest.mark.parametrize(("kind", "value"), ORDINARY)
def test_an_ordinary_grammar_is_within_the_bounds(kind, value):
    BOUNDS.check(Grammar.of(kind, value))


@pytest.mark.parametrize(("bound", "kind", "value"), BEYOND)
def test_a_grammar_beyond_a_bound_is_refused_with_the_setting(bound, kind, value):
    with pytest.raises(GrammarTooLarge, match=rf"setting max_grammar_{bound}\)"):
        BOUNDS.check(Grammar.of(kind, value))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000])
def test_a_text_that_no_parser_can_nest_is_refused(text):
    with pytest.raises((GrammarTooLarge, GrammarRefused)):
        BOUNDS.check(Grammar.of("json", text))


def test_a_value_that_can_not_be_written_as_json_is_refused():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(GrammarTooLarge):
        Grammar.of("json", value)
    while value:  # or its destructor recurses
        value = value.pop()


def test_what_is_no_json_is_refused():
    with pytest.raises(GrammarRefused, match="not JSON"):
        BOUNDS.check(Grammar.of("json", "{"))


def test_the_largest_grammar_is_measured_in_a_fraction_of_a_second():
    pairs = {f"k{number}": "a|b{1,2}(c)[d]" for number in range(4_000)}
    wide = Bounds(bytes=200_000, depth=64, alternatives=10_000, repeats=1_000, number=2**64)
    started = time.process_time()
    wide.check(Grammar.of("json", json.dumps(pairs)))
    assert time.process_time() - started < 1  # 0.06 s; quadratic work would take minutes
