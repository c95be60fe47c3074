"""JSON schemas and regular expressions: simple ones that have to work, and hostile ones."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

from tests.fuzz.case import sizes
from tests.fuzz.values import Raw, scalar, text

_KEYWORDS = re.findall(
    r"\S+",
    """
    type enum const multipleOf maximum exclusiveMaximum minimum exclusiveMinimum maxLength
    minLength pattern maxItems minItems uniqueItems maxContains minContains maxProperties
    minProperties required dependentRequired format items prefixItems contains properties
    patternProperties additionalProperties propertyNames unevaluatedItems
    unevaluatedProperties allOf anyOf oneOf not if then else dependentSchemas $ref $defs
    definitions $anchor $dynamicRef $id $schema default x-guidance contentEncoding nullable
    discriminator
""",
)
_FORMATS = (
    "date-time",
    "date",
    "time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
    "uuid",
    "regex",
    "json-pointer",
    "unknown",
    "",
)
_REFERENCES = (
    "#",
    "#/$defs/a",
    "#/$defs/b",
    "#/properties/a",
    "#/nothing",
    "http://127.0.0.1:1/s.json",
    "file:///etc/passwd",
    "#/$defs/~1%25",
    "##",
    "",
)
_TYPES = ("string", "integer", "number", "boolean", "null", "array", "object", "any", "")


def any_schema(rng: random.Random, depth: int = 0) -> Any:
    if depth > 4 or rng.random() < 0.05:
        return rng.choice((True, False, {}, {"type": rng.choice(_TYPES)}, None, [], 3, "x"))
    return {
        key: _keyword(rng, key, depth) for key in rng.sample(_KEYWORDS, rng.randrange(1, 6))
    } | ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}} if not depth else {})


def _keyword(rng: random.Random, key: str, depth: int) -> Any:
    if rng.random() < 0.05:
        return scalar(rng)
    for keys, make in _VALUES:
        if key in keys:
            return make(rng, depth + 1)
    if key.startswith(("max", "min", "exclusive", "multipleOf")):
        return rng.choice(_BOUNDS) if rng.random() < 0.9 else sizes(rng, 1e9)
    return any_schema(rng, depth + 1)


def _named(rng: random.Random, depth: int) -> Any:
    names = rng.sample(("a", "b", '"', "\u2028", "", "é"), rng.randrange(4))
    return {name: any_schema(rng, depth) for name in names}


def _by_patterns(rng: random.Random, depth: int) -> Any:
    return {regex(rng): any_schema(rng, depth) for _ in range(rng.randrange(3))}


def _several(rng: random.Random, depth: int) -> Any:
    return [any_schema(rng, depth) for _ in range(rng.randrange(4))]


def _required(rng: random.Random, depth: int) -> Any:
    many = [str(n) for n in range(sizes(rng, 5000))]
    return rng.choice((["a"], ["a", "a"], ["zz"] * 100, {"a": ["b"]}, many))


def _guidance_options(rng: random.Random, depth: int) -> Any:
    return {"whitespace_flexible": False, "item_separator": regex(rng), "coerce_one_of": True}


_CONSTANTS = ([], [1, 1], ["a"] * 3, [{"a": []}], ["\0", "\u2028", "\ud800", 1e308], "x", 0.1)
_BOUNDS = (0, 1, 3, 0.1, 1e-9, -1, 10**6, 10**30, 2**63, 99_999, 1e300, True, Raw("1e400"))
_TYPE_LISTS = (*_TYPES, list(_TYPES[:3]), [], list(_TYPES))
_VALUES: tuple[tuple[tuple[str, ...], Callable[[random.Random, int], Any]], ...] = (
    (("type",), lambda rng, _: rng.choice(_TYPE_LISTS)),
    (("enum", "const", "default"), lambda rng, _: rng.choice(_CONSTANTS)),
    (("pattern",), lambda rng, _: regex(rng)),
    (("format",), lambda rng, _: rng.choice(_FORMATS)),
    (("required", "dependentRequired"), _required),
    (("properties", "$defs", "definitions", "dependentSchemas"), _named),
    (("patternProperties",), _by_patterns),
    (("allOf", "anyOf", "oneOf", "prefixItems"), _several),
    (("$ref", "$dynamicRef", "$id", "$schema", "$anchor"), lambda rng, _: rng.choice(_REFERENCES)),
    (("x-guidance",), _guidance_options),
)


def regex(rng: random.Random) -> str:
    return _regex(rng, 0)[:200_000]


def _regex(rng: random.Random, depth: int) -> str:
    atoms = (
        "a",
        ".",
        r"\d",
        r"\w",
        r"\s",
        r"\p{L}",
        r"\p{Greek}",
        r"[^\x00-\x7f]",
        r"\x{10ffff}",
        "[a-z&&[^aeiou]]",
        "(?=a)",
        "(?!a)",
        "(?<=a)",
        "(?<!b)",
        r"\1",
        "(?P<n>a)",
        "(?i)a",
        r"\b",
        "^",
        "$",
        r"\A",
        "é",
        "\u2028",
        "[",
        "]",
        "(",
        ")",
        "[]",
        "[^]",
        "\\",
        r"\u{110000}",
        r"\ud800",
        r"\Q",
        "a{,3}",
        "a{3",
        "{}",
        "[[:alpha:]]",
        "(?#x)",
        "(?>a)",
        r"\R",
        "[z-a]",
        r"\cA",
        "",
    )
    if depth > 5 or rng.random() < 0.3:
        return rng.choice(atoms)
    shape = rng.randrange(9)
    inner = _regex(rng, depth + 1)[:20_000]
    if shape == 0:
        return f"({inner}){rng.choice(('*', '+', '?', '*?', '{2}', '{,}', '{3,}'))}"
    if shape == 1:
        return f"(({inner})*)*" * rng.randrange(1, 4)
    if shape == 2:
        return f"({inner}){{{sizes(rng, 200_000)},{sizes(rng, 1e9)}}}"
    if shape == 3:
        return f"(({inner}){{0,{sizes(rng, 5000)}}}){{0,{sizes(rng, 5000)}}}"
    if shape == 4:
        return "|".join([inner, *(f"w{n}" for n in range(sizes(rng, 12_000)))])
    if shape == 5:
        return (
            rng.choice(("({}", "(?:{}", "[{}", "({}|")).replace("{}", "") * sizes(rng, 5000)
            + inner
            + ")" * sizes(rng, 5000)
        )
    if shape == 6:
        return f".*{inner}.{{{sizes(rng, 3000)}}}" * rng.randrange(1, 4)
    if shape == 7:
        return (inner + "?") * sizes(rng, 200) + inner * sizes(rng, 200)
    return inner + _regex(rng, depth + 1)


def large_schema(rng: random.Random) -> Any:
    size = sizes(rng, 30_000)
    shapes: tuple[Callable[[], Any], ...] = (
        lambda: {"enum": [f"v{n}" for n in range(size)]},
        lambda: {
            "type": "object",
            "properties": {f"p{n}": {"type": "string"} for n in range(size // 4)},
        },
        lambda: {
            "type": "object",
            "properties": {f"p{n}": {"type": "integer"} for n in range(size // 20)},
            "required": [f"p{n}" for n in range(size // 20)],
        },
        lambda: {"anyOf": [{"const": n} for n in range(size)]},
        lambda: {
            "allOf": [
                {"anyOf": [{"type": "string", "pattern": f"a{n}.*b"}, {"type": "integer"}]}
                for n in range(size % 40)
            ]
        },
        lambda: {
            "oneOf": [
                {"type": "object", "properties": {f"k{n}": {"type": "string"}}}
                for n in range(size // 10)
            ]
        },
        lambda: Raw('{"items":' * size + "{}" + "}" * size),
        lambda: Raw(
            '{"type":"object","properties":{"a":' * (size % 70) + "{}" + "}}" * (size % 70)
        ),
        lambda: {
            "$defs": {
                f"d{n}": {
                    "anyOf": [
                        {"$ref": f"#/$defs/d{(n * 7 + 1) % max(size // 10, 1)}"},
                        {"$ref": f"#/$defs/d{(n * 3) % max(size // 10, 1)}"},
                    ]
                }
                for n in range(size // 10)
            },
            "$ref": "#/$defs/d0",
        },
        lambda: {"type": "array", "prefixItems": [{"type": "boolean"}] * size, "minItems": size},
        lambda: {
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": "array", "maxItems": size},
                "maxItems": size,
            },
            "minItems": size,
        },
        lambda: {"type": "string", "minLength": size, "maxLength": size * 3, "pattern": regex(rng)},
        lambda: {
            "type": "object",
            "properties": {"a": {"$ref": "#"}, "b": {"type": "array", "items": {"$ref": "#"}}},
            "required": ["a"],
        },
        lambda: {
            "type": "number",
            "multipleOf": rng.choice((0.1, 0.0001, 7, 1e-30, 0, 999_983)),
            "maximum": sizes(rng, 1e18),
        },
        lambda: {
            "type": "integer",
            "minimum": -sizes(rng, 1e19),
            "maximum": sizes(rng, 1e19),
            "multipleOf": sizes(rng, 1e6),
        },
        lambda: {
            "type": "object",
            "patternProperties": {f"^{regex(rng)}{n}": {} for n in range(size % 30)},
            "minProperties": size % 50,
        },
        lambda: {
            "type": "object",
            "properties": {text(rng)[:20_000]: {}},
            "required": [text(rng)[:10]],
        },
    )
    return rng.choice(shapes)()


def simple_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    leaves: tuple[dict[str, Any], ...] = (
        {"type": "boolean"},
        {"type": "null"},
        {"type": "integer", "minimum": 0, "maximum": 99},
        {"type": "string", "maxLength": 5},
        {"enum": ["oslo", "bergen", 3, None, True]},
        {"const": "x"},
        {"type": "string", "pattern": "^[a-z]{1,4}$"},
        {"type": ["integer", "null"], "maximum": 9, "minimum": -9},
        {"type": "number", "minimum": 0, "maximum": 1},
        {"anyOf": [{"const": 1}, {"const": "b"}]},
    )
    kind = rng.random()
    if depth > 1 or kind < 0.35:
        return rng.choice(leaves)
    if kind < 0.55:
        return {
            "type": "array",
            "items": simple_schema(rng, depth + 1),
            "maxItems": rng.randrange(4),
        }
    names = rng.sample(["a", "b", "to", "item count", "é", '"'], rng.randrange(1, 4))
    properties = {name: simple_schema(rng, depth + 1) for name in names}
    made: dict[str, Any] = {"type": "object", "properties": properties, "required": names}
    if rng.random() < 0.3:
        made["required"] = names[:1]
    if rng.random() < 0.5:
        made["additionalProperties"] = False
    return made
