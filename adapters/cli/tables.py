"""Tables for people. Imports rich and the catalog: import it inside a command."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from adapters.catalog import AdapterVersion, Alias, Event
from adapters.catalog.evaluations import Recorded
from adapters.keys import Key

PIPE_WIDTH = 500


def shares_by_version(aliases: Sequence[Alias]) -> dict[str, dict[str, float]]:
    """For each NAME@VERSION, its share of the requests of each alias, from 0 to 1."""
    shares: dict[str, dict[str, float]] = {}
    for alias in aliases:
        total = sum(target.weight for target in alias.targets)
        for target in alias.targets:
            share = shares.setdefault(f"{alias.name}@{target.version}", {})
            share[alias.alias] = target.weight / total
    return shares


def describe_share(weight: float, total: float = 1) -> str:
    """The share in percent; empty for a whole alias."""
    return "" if weight == total else f" {100 * weight / total:.3g}%"


def print_versions(
    versions: Sequence[AdapterVersion], shares: Mapping[str, Mapping[str, float]]
) -> None:
    headings = (
        "adapter",
        "aliases",
        "pin",
        "weight",
        "digest",
        "rank",
        "size",
        "base",
        "published (UTC)",
    )
    rows = []
    for version in versions:
        named = shares.get(version.label, {}).items()
        rows.append(
            (
                version.label,
                ", ".join(f"{alias}{describe_share(share)}" for alias, share in named),
                "pinned" if version.pinned else "",
                f"{version.weight:g}",
                version.digest[:19],
                str(version.rank),
                decimal(version.size_bytes),
                version.base,
                f"{version.created_at:%Y-%m-%d %H:%M}",
            )
        )
    _print_table(headings, rows)


def print_events(events: Sequence[Event], subject: str = "adapter") -> None:
    rows = [
        (
            f"{event.happened_at:%Y-%m-%d %H:%M:%S}",
            event.actor,
            event.action,
            event.name,
            " ".join(f"{key}={_describe(value)}" for key, value in event.detail.items()),
        )
        for event in events
    ]
    _print_table(("when (UTC)", "who", "what", subject, ""), rows)


def print_keys(keys: Sequence[Key]) -> None:
    headings = ("key", "secret", "status", "scopes", "adapters", "base", "weight", "expires (UTC)")
    rows = [
        (
            key.name,
            f"{key.prefix}...",
            key.status(),
            ", ".join(sorted(key.scopes)),
            ", ".join(key.adapters) or "-",
            "base" if key.base else "",
            f"{key.weight:g}",
            f"{key.expires:%Y-%m-%d %H:%M}" if key.expires else "never",
        )
        for key in keys
    ]
    _print_table(headings, rows)


def describe_key(facts: Mapping[str, Any]) -> Iterator[str]:
    limits = facts["limits"]
    budget = limits["budget"]
    said = facts | limits | {"budget": f"{budget['tokens']}/{budget['period']}" if budget else None}
    for name, value in said.items():
        if name != "limits":
            yield f"{name:20}{', '.join(value) if isinstance(value, list) else _describe(value)}"


def describe_facts(facts: Mapping[str, Any]) -> Iterator[str]:
    for key, value in facts.items():
        if key != "provenance":
            yield f"{key:12}{', '.join(value) if isinstance(value, list) else value}"
    if facts["provenance"] is not None:
        yield f"provenance  {json.dumps(facts['provenance'], indent=2)}"


def describe_evaluation(found: Recorded) -> str:
    compared = ", ".join(
        f"{each.against} {each.score.mean:.4f}"
        f" (difference {each.difference.mean:+.4f}{'' if each.exceeds_noise else ', noise'})"
        for each in found.comparisons
    )
    return (
        f"{'evaluated':12}{found.judged_at:%Y-%m-%d %H:%M} {found.metric} {found.score.mean:.4f}"
        f" [{found.score.low:.4f}, {found.score.high:.4f}] of {found.examples}; {compared};"
        f" data {found.data_digest[:19]}, {found.by}"
    )


def _describe(value: Any) -> str:
    if isinstance(value, dict):  # a split, in the form of its command
        return "[" + " ".join(f"{version}={weight}" for version, weight in value.items()) + "]"
    return "-" if value is None else str(value)


def _print_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(box=None)
    for heading in headings:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row)
    # In a pipe no line is cut.
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    Console(highlight=False, markup=False, width=width).print(table)
