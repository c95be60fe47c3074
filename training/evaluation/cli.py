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
    from adapters.catalog import AdapterVersion
    from training.data.tokens import Tokenizer
    from training.evaluation.answers import Answer
    from training.evaluation.heldout import HeldOut

app = typer.Typer(pretty_exceptions_enable=False, rich_markup_mode=None)
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
        Path | None,
        typer.Option(
            help="The base's folder: needed offline, and for tool calls.", show_default=False
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
            metavar="KEY", envvar="OPENAI_API_KEY", help="API key for the server's answers."
        ),
    ] = None,
) -> None:
    """Judge a version against the base on held-out data, and record the result with it.

    With --url the running server answers; else the base is loaded here in NF4, with the adapter.
    """
    if offline:
        site = replace(site, url=None)
    with reported(), site.opened() as index:
        from adapters.names import parse_reference
        from training.evaluation.heldout import read_heldout, refuse_training_set
        from training.evaluation.judge import judge
        from training.evaluation.metrics import find_metric
        from training.evaluation.report import print_judged, recorded_facts

        judged_by = find_metric(metric, Path())
        references = [reference] if against == BASE else [reference, against]
        versions = [index.resolve_only(parse_reference(each)) for each in references]
        versions = list({version.label: version for version in versions}.values())
        tokenizer = _load_tokenizer(base, versions, needed=not site.url)
        heldout = read_heldout(data, limit=limit, trained_on=trained_on or [], tokenizer=tokenizer)
        for version in versions:
            refuse_training_set(heldout, version.label, version.provenance)
        answers = (
            _ask_server(site.url, api_key, versions, heldout, max_tokens)
            if site.url
            else _ask_model(base, tokenizer, versions, site.store, heldout, max_tokens)
        )
        by = "server" if site.url else "offline"
        found = judge(judged_by, heldout, answers, by=by, max_tokens=max_tokens)
        for warning in found.warnings():
            _progress(warning)
        if not site.as_json:
            print_judged(found, wrong)
        from adapters.catalog.history import current_user

        recorded = {
            side.label: index.evaluate(
                version.name, version.version, found.evaluation(side), actor=current_user()
            )
            for version, side in zip(versions, found.sides[1:], strict=True)
        }
    site.print(recorded_facts(found, recorded, wrong), f"recorded with {' and '.join(recorded)}")


def _load_tokenizer(
    base: Path | None, versions: "Sequence[AdapterVersion]", *, needed: bool
) -> "Tokenizer | None":
    from training.data.tokens import load_tokenizer
    from training.errors import BaseInvalid
    from training.evaluation.offline import check_base

    if base is None:
        if needed:
            raise BaseInvalid(
                f"{versions[0].label} needs its base, {versions[0].base}, to answer",
                "give the folder with --base, or a running server with --url",
            )
        return None
    check_base(base, versions)
    return load_tokenizer(base, base.name)


def _ask_model(
    base: Path | None,
    tokenizer: "Tokenizer | None",
    versions: "Sequence[AdapterVersion]",
    store: Path,
    heldout: "HeldOut",
    max_tokens: int,
) -> "dict[str, list[Answer]]":
    from adapters.store import Store
    from training.evaluation.offline import answer_offline

    assert base is not None
    assert tokenizer is not None
    return answer_offline(
        base,
        tokenizer,
        versions,
        Store(store),
        heldout.examples,
        max_new_tokens=max_tokens,
        report=_progress,
    )


def _ask_server(
    url: str,
    key: str | None,
    versions: "Sequence[AdapterVersion]",
    heldout: "HeldOut",
    max_tokens: int,
) -> "dict[str, list[Answer]]":
    from training.evaluation.served import Asked, Server

    server = Server(url, key)
    asked = {BASE: Asked(server.find_base())}
    asked |= {version.label: Asked(version.label, version.digest) for version in versions}
    return {
        label: server.answer(
            each,
            heldout.examples,
            max_new_tokens=max_tokens,
            report=lambda line, label=label: _progress(f"{label}: {line}"),
        )
        for label, each in asked.items()
    }


def _progress(line: str) -> None:
    typer.echo(line, err=True)
