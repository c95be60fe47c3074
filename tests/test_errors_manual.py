"""docs/errors.md lists every error code."""

import re
from collections.abc import Iterator
from pathlib import Path

import adapters.errors
import server.errors

ROOT = Path(__file__).parents[1]


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
    for package in ("adapters", "server"):
        for source in (ROOT / package).rglob("*.py"):
            codes.update(re.findall(r'\bcode="([a-z_]+)"', source.read_text()))
    codes.update(server.errors._CODE_BY_STATUS.values())
    manual = (ROOT / "docs/errors.md").read_text()
    assert len(codes) > 50
    assert {code for code in codes if f"`{code}`" not in manual} == set()
