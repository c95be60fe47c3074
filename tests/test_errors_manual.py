"""docs/errors.md lists every error code, and the other pages name no other."""

import re
from collections.abc import Iterator
from pathlib import Path

import adapters.errors
import server.errors

ROOT = Path(__file__).parents[1]
MANUAL = (ROOT / "docs/errors.md").read_text()


def subclasses(kind: type) -> Iterator[type]:
    for each in kind.__subclasses__():
        yield each
        yield from subclasses(each)


def test_every_error_code_is_documented():
    codes = {
        each.code  # type: ignore[attr-defined]
        for base in (adapters.errors.AdapterError, server.errors.RequestError)
        for each in subclasses(base)
    }
    for package in ("adapters", "cluster", "server"):
        for source in (ROOT / package).rglob("*.py"):
            codes.update(re.findall(r'\bcode="([a-z_]+)"', source.read_text()))
    codes.update(server.errors._CODE_BY_STATUS.values())
    assert len(codes) > 50
    assert {code for code in codes if f"`{code}`" not in MANUAL} == set()


def test_the_codes_on_other_pages_are_in_the_manual():
    pages = [path.read_text() for path in (ROOT / "docs").glob("*.md")]
    named = {code for text in pages for code in re.findall(r"\b[45]\d\d `([a-z_]+)`", text)}
    assert len(named) > 20
    assert {code for code in named if f"`{code}`" not in MANUAL} == set()
