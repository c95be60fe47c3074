"""`lorry adapters inspect`."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapters.cli.options import JSON, Site, acts_on, reported
from adapters.cli.publishing import (
    BaseNameOption,
    BaseOption,
    MaxRankOption,
    MismatchOption,
    find_base,
    make_rules,
)
from adapters.errors import quote

if TYPE_CHECKING:
    from adapters.inspection import Inspection


@acts_on(JSON)
def inspect(
    site: Site,
    source: Annotated[
        str, typer.Argument(metavar="FOLDER", help="The folder, or what publish takes.")
    ],
    base: BaseOption,
    base_name: BaseNameOption = None,
    max_rank: MaxRankOption = None,
    allow_base_mismatch: MismatchOption = False,
) -> None:
    """Say everything about an adapter's folder, and publish nothing; exits 1 if it is refused."""
    with reported():
        from adapters.inspection import inspect

        report = inspect(
            source, make_rules(find_base(base), base_name, max_rank, allow_base_mismatch)
        )
    site.print(report.as_json(), *_describe(report))
    if not report.publishable:
        raise typer.Exit(1)


def _describe(found: "Inspection") -> Iterator[str]:
    from rich.filesize import decimal

    from adapters.inspection import CHANGES

    facts = {
        "publishable": "yes" if found.publishable else "no",
        "trainer": f"{found.trainer} (a guess, by the files)",
        "base": f"{found.base}; its config names {quote(found.claimed_base or 'none')}",
        "rank": _listed(found.ranks) or found.rank,
        "alpha": found.alpha and f"{found.alpha:g}{' (rsLoRA)' if found.rslora else ''}",
        "scale": _listed(found.scales),
        "modules": _listed(found.modules),
        "tensors": _listed(found.dtypes),
        "size": decimal(found.size_bytes),
        "chat": ", ".join(f"{key} {value}" for key, value in found.chat_form.items())
        or "the base's form",
        "digest": found.digest,
    }
    for key, value in facts.items():
        if value:
            yield f"{key:12}{value}"
    for kind, problems in (("problem", found.problems), ("warning", found.warnings)):
        for problem in problems:
            shown = "change" if problem.code in CHANGES else kind
            yield f"{shown}: {problem}"


def _listed(counts: Mapping[Any, int]) -> str:
    """Each value with its count; without one if it is the only value."""
    if len(counts) == 1 and not isinstance(next(iter(counts)), str):
        return f"{next(iter(counts)):g}"
    return ", ".join(
        f"{value if isinstance(value, str) else format(value, 'g')} x {count}"
        for value, count in counts.items()
    )
