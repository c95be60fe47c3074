"""A judgement as a table for people and as one JSON document. Imports rich: import it late."""

import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from adapters.catalog.evaluations import BASE, Comparison, Recorded
from training.evaluation.judge import Judged, Side

PIPE_WIDTH = 500


def print_judged(found: Judged, wrong: int) -> None:
    """The figures of all sides, and a few wrong answers of the version that was asked for."""
    count = len(found.heldout.examples)
    console = Console(
        highlight=False, markup=False, width=None if sys.stdout.isatty() else PIPE_WIDTH
    )
    console.print(f"{found.metric.name} of {count} examples, data {found.heldout.digest[:19]}")
    console.print(_tabulate(found))
    asked = found.sides[1]
    for each in found.wrong(asked, wrong):
        console.print(f"\nwrong: {each['where']} ({asked.label}, score {each['score']:g})")
        console.print(f"  expected {each['expected']!r}")
        console.print(f"  answered {each['answer']!r}")


def recorded_facts(found: Judged, recorded: Mapping[str, Recorded], wrong: int) -> dict[str, Any]:
    """Each version's evaluation as it is in the catalog, and its first wrong answers."""
    return {
        "data": list(found.heldout.sources),
        "data_digest": found.heldout.digest,
        "metric": found.metric.name,
        "examples": len(found.heldout.examples),
        "versions": [
            {
                "label": side.label,
                "evaluation": recorded[side.label].as_json(),
                "wrong": list(found.wrong(side, wrong)),
            }
            for side in found.sides
            if side.label != BASE
        ],
        "warnings": found.warnings(),
    }


def _tabulate(found: Judged) -> Table:
    table = Table(box=None)
    asked = found.sides[1]
    for heading in ("", "score", "95 % interval", f"{asked.label} is better by", "", "tokens"):
        table.add_column(heading, no_wrap=True)
    compared = {each.against: each for each in found.evaluation(asked).comparisons}
    for side in (asked, *(each for each in found.sides if each is not asked)):
        table.add_row(
            side.label,
            f"{side.score.mean:.4f}",
            f"{side.score.low:.4f} to {side.score.high:.4f}",
            *_describe(compared.get(side.label)),
            _length(side),
        )
    return table


def _describe(compared: Comparison | None) -> tuple[str, str]:
    if compared is None:
        return "", ""
    difference = compared.difference
    said = f"{difference.mean:+.4f} ({difference.low:+.4f} to {difference.high:+.4f})"
    return said, "exceeds noise" if compared.exceeds_noise else "within noise"


def _length(side: Side) -> str:
    return f"{side.median_tokens:g}" + (f", {side.cut} cut" if side.cut else "")
