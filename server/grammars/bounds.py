"""Bounds on a grammar, checked before any library reads it.

A grammar is a JSON schema, a regular expression, a list of choices, a grammar in EBNF or Lark, or
a structural tag. Patterns hide in schemas under many keys, so every text of a schema is measured
as if it were one. The bounds are settings (`max_grammar_...`); a refusal names the one it met.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from server.errors import GrammarRefused, GrammarTooLarge

Kind = Literal["json", "json_object", "regex", "choice", "grammar", "lark", "structural_tag"]

# An escaped character, which means itself; or one that nests or separates.
_STRUCTURE = re.compile(r"\\.|[()\[\]{}|]", re.DOTALL)
_REPEATS = re.compile(r"\{\s*(?:\d*\s*,\s*)?(\d+)")  # a{3,10}, a{,10}
_LARK_REPEATS = re.compile(r"~\s*(?:\d+\s*\.\.\s*)?(\d+)")  # a~3..10; elsewhere "about 3"
_OPENING, _CLOSING = "([{", ")]}"
_PROSE = frozenset({"description", "title", "$comment"})  # for people, where it is a text
_TOO_DEEP = "The grammar is nested too deeply."
_COUNTS = frozenset(
    f"{bound}{what}"
    for bound in ("min", "max")
    for what in ("Length", "Items", "Properties", "Contains")
)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a caller asks for: `text` is JSON for json, choice and structural_tag."""

    kind: Kind
    text: str

    @classmethod
    def of(cls, kind: Kind, value: Any) -> Grammar:
        """Raises GrammarTooLarge: it is nested too deeply to be written as JSON."""
        if kind == "json_object":
            return cls(kind, "")
        try:
            return cls(kind, value if isinstance(value, str) else json.dumps(value))
        except RecursionError:
            raise GrammarTooLarge(_TOO_DEEP) from None


@dataclass(frozen=True, slots=True)
class Bounds:
    """The largest grammar that is read; each field is the setting `max_grammar_...`."""

    bytes: int
    depth: int
    alternatives: int
    repeats: int
    number: int

    def check(self, grammar: Grammar) -> None:
        """Raises GrammarTooLarge, naming the bound; GrammarRefused: it is not JSON."""
        self.check_length(grammar.text)
        alternatives = 0
        if grammar.kind in ("json", "choice", "structural_tag"):
            document = _parse(grammar.text)
            for value, depth in _values(document):
                self._hold("depth", depth, "is nested {} levels deep")
                alternatives += self._measure(value)
                self._hold("alternatives", alternatives, "has {} alternatives")
        else:
            self._hold("alternatives", self._measure(grammar.text), "has {} alternatives")
        if grammar.kind == "grammar":
            self._check_repeats(_LARK_REPEATS, grammar.text)

    def check_length(self, text: str) -> None:
        """Raises GrammarTooLarge: it has too many bytes even to be parsed."""
        self._hold("bytes", len(text.encode(errors="replace")), "is {} bytes long")

    def _measure(self, value: Any) -> int:
        """Check one value of a document; returns how many alternatives it adds."""
        if isinstance(value, str):
            return self._measure_text(value)
        if isinstance(value, list):
            return len(value)
        if isinstance(value, dict):
            for key in _COUNTS & value.keys():
                if isinstance(value[key], int | float):
                    self._hold("repeats", value[key], f"has a {key} of {{}}")
            return sum(self._measure_text(key) for key in value)
        if isinstance(value, int | float):
            self._hold("number", abs(value), "has the number {}")
        return 0

    def _measure_text(self, text: str) -> int:
        depth = deepest = alternatives = 0
        for match in _STRUCTURE.finditer(text):
            character = match.group()
            if character in _OPENING:
                depth += 1
                deepest = max(deepest, depth)
            elif character in _CLOSING:
                depth = max(depth - 1, 0)
            alternatives += character == "|"
        self._hold("depth", deepest, "is nested {} levels deep")
        self._check_repeats(_REPEATS, text)
        return alternatives

    def _check_repeats(self, pattern: re.Pattern[str], text: str) -> None:
        for match in pattern.finditer(text):
            digits = match.group(1).lstrip("0")
            self._hold("repeats", int(digits[:18] or "0"), "repeats {} times")

    def _hold(self, bound: str, found: float, what: str) -> None:
        limit = getattr(self, bound)
        if not found <= limit:  # also for NaN
            raise GrammarTooLarge(
                f"The grammar {what.format(_shown(found))}; this server takes at most {limit} "
                f"(its setting max_grammar_{bound})."
            )


def _shown(number: float) -> str:
    text = str(number)
    return text if len(text) <= 24 else f"{text[:20]}..."


def _parse(text: str) -> Any:
    try:
        return json.loads(text)
    except RecursionError:
        raise GrammarTooLarge(_TOO_DEEP) from None
    except ValueError as error:
        raise GrammarRefused(f"The grammar is not JSON: {error}.") from None


def _values(document: Any) -> Iterator[tuple[Any, int]]:
    """Every value of a document but its prose, with its depth, without recursion."""
    rest = [(document, 0)]
    while rest:
        value, depth = rest.pop()
        yield value, depth
        if isinstance(value, dict):
            for key, each in value.items():
                if not (key in _PROSE and isinstance(each, str)):
                    rest.append((each, depth + 1))
        elif isinstance(value, list):
            rest.extend((each, depth + 1) for each in value)
