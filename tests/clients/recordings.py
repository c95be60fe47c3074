"""The recordings of real clients: what each asked, and what it made of the answers.

`tests/clients/record` makes them; nobody writes them by hand.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "recordings"


@dataclass(frozen=True)
class Asked:
    """One HTTP request, and the status that it got."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any
    status: int


@dataclass(frozen=True)
class Case:
    name: str
    requests: list[Asked]
    got: dict[str, Any]  # as the client's own types had it; `error` for a refusal


@dataclass(frozen=True)
class Recording:
    name: str
    title: str
    packages: list[str]
    cases: dict[str, Case]


def read(name: str) -> Recording:
    facts, *cases = map(json.loads, path(name).read_text().splitlines())
    shared = facts["headers"]
    read_cases = {
        each["case"]: Case(
            each["case"],
            [Asked(**asked | {"headers": shared | asked["headers"]}) for asked in each["requests"]],
            each["got"],
        )
        for each in cases
    }
    return Recording(name, facts["title"], facts["packages"], read_cases)


def write(name: str, facts: dict[str, Any], cases: list[dict[str, Any]]) -> None:
    """`facts`: title, packages, and the headers that all requests have; a line for each case."""
    path(name).write_text("".join(json.dumps(each) + "\n" for each in (facts, *cases)))


def path(name: str) -> Path:
    return FOLDER / f"{name}.jsonl"
