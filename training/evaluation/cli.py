"""`lorry evaluate REF --data FILE`: judge published versions on held-out data, and record it.

Progress and warnings go to stderr, figures to stdout.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.cli.options import JSON, SERVER, STORE, ReferenceArgument, Site, acts_on
from training.cli import reported

if TYPE_CHECKING:
    from adapters.catalog import AdapterVersion, Catalog
    from adapters.client import RemoteCatalog
    from training.data.forms import Example
    from training.evaluation.answers import Answer
    from training.evaluation.offline import OfflineBase

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
BASE = "base"


@app.command("evaluate")
@acts_on(STORE, SERVER, JSON)
def evaluate_command(
    site: Site,
    reference: ReferenceArgument,
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="FILE",
            help="Held-out examples, in any form that `lorry train` reads; repeatable.",
        ),
    ],
    metric: Annotated[
        str,
        typer.Option(
            help="exact-match, contains, json-equal, json-schema:FILE, sql-parses[:DIALECT] or"
            " FILE.py:FUNCTION."
        ),
    ] = "exact-match",
    against: Annotated[
        str, typer.Option(metavar="REF", help="Another version to compare with, besides the base.")
    ] = BASE,
    base: Annotated[
        str | None,
        typer.Option(
            help="The base, a folder or ORG/NAME[@REVISION] of the hub: needed offline, and for"
            " tool calls.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Only so many examples, the first. [default: all]"),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 256,
    trained_on: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="The training set, which must share no prompt; repeatable."
        ),
    ] = None,
    wrong: Annotated[int, typer.Option(min=0, help="How many wrong answers to show.")] = 3,
    offline: Annotated[
        bool, typer.Option("--offline", help="Compute the answers here, even if LORRY_URL is set.")
    ] = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            envvar=["LORRY_API_KEY", "OPENAI_API_KEY"],
            help="API key for the answers; better in a variable, where others can not read it.",
        ),
    ] = None,
) -> None:
    """Judge a version against the base on held-out data, and record the result with it.

    With --url the running server answers; else the base is loaded here in NF4, with the adapter.
    """
    if offline:
        site = replace(site, url=None)
    with reported(), site.opened() as index:
        from adapters.catalog.history import current_user
        from training.evaluation.heldout import read_heldout, refuse_training_set
        from training.evaluation.judge import judge
        from training.evaluation.metrics import find_metric
        from training.evaluation.offline import open_base
        from training.evaluation.report import print_judged, recorded_facts

        judged_by = find_metric(metric, Path())
        versions = _find(index, [reference] if against == BASE else [reference, against])
        loaded = open_base(base, versions, _progress, required=not site.url)
        tokenizer = loaded.tokenizer if loaded else None
        heldout = read_heldout(data, limit=limit, trained_on=trained_on or [], tokenizer=tokenizer)
        for version in versions:
            refuse_training_set(heldout, version.label, version.provenance)
        answers = _answer(site, versions, loaded, heldout.examples, max_tokens, api_key)
        by = "server" if site.url else "offline"
        found = judge(judged_by, heldout, answers, by=by, max_tokens=max_tokens)
        for warning in found.warnings():
            _progress(warning)
        if not site.as_json:
            print_judged(found, wrong)
        recorded = {
            version.label: index.evaluate(
                version.name, version.version, found.evaluation(side), actor=current_user()
            )
            for version, side in zip(versions, found.sides[1:], strict=True)
        }
    site.print(recorded_facts(found, recorded, wrong), f"recorded with {' and '.join(recorded)}")


def _find(index: "Catalog | RemoteCatalog", references: Sequence[str]) -> "list[AdapterVersion]":
    """The versions that are meant, each once."""
    from adapters.names import parse_reference

    found = [index.resolve_only(parse_reference(each)) for each in references]
    return list({version.label: version for version in found}.values())


def _answer(
    site: Site,
    versions: "Sequence[AdapterVersion]",
    base: "OfflineBase | None",
    examples: "Sequence[Example]",
    max_tokens: int,
    key: str | None,
) -> "dict[str, list[Answer]]":
    """The answers of the base and of each version, by label, the base first."""
    if site.url:
        from training.evaluation.served import Server, answer_by_server

        server = Server(site.url, key)
        return answer_by_server(server, versions, examples, max_tokens, _progress)
    from adapters.store import Store
    from training.evaluation.offline import answer_offline

    assert base is not None
    return answer_offline(base, versions, Store(site.store), examples, max_tokens, _progress)


def _progress(line: str) -> None:
    typer.echo(line, err=True)
