"""`lorry usage`: what keys have used of adapters."""

import csv
import sys
from typing import Annotated, Any

import typer

from adapters.cli.options import JSON, SERVER, STORE, Site, acts_on

app = typer.Typer(
    name="usage", add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None
)


@app.command(name="usage")
@acts_on(STORE, SERVER, JSON)
def usage(
    site: Site,
    by: Annotated[
        str,
        typer.Option(
            metavar="FIELDS", help="Sum by some of key, adapter, version, hour, day, month."
        ),
    ] = "key,adapter",
    since: Annotated[
        str, typer.Option(metavar="WHEN", help="24h, 7d, 2026-11-30 or 2026-11-30T12:00Z.")
    ] = "7d",
    until: Annotated[
        str | None, typer.Option(metavar="WHEN", help="Before that. [default: now]")
    ] = None,
    key: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this key only. [default: of all]")
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print comma-separated values.")] = False,
) -> None:
    """Show calls, tokens and engine time by key and adapter: in whole hours of UTC.

    What servers have counted is written every two seconds.
    """
    with site.opened() as index:
        from datetime import UTC, datetime

        from adapters.catalog.usage import parse_fields, parse_moment

        fields, now = parse_fields(by), datetime.now(UTC)
        begin = parse_moment(since, now)
        end = None if until is None else parse_moment(until, now)
        rows = index.usage.report(fields, begin, end, key)
    if as_csv:
        _print_csv(rows)
    elif site.as_json:
        site.print(rows)
    else:
        from adapters.cli.tables import print_usage

        print_usage(rows)


def _print_csv(rows: list[dict[str, Any]]) -> None:
    if rows:
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
