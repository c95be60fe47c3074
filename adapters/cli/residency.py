"""`lorry adapters load|unload`: what a running server keeps in its engine's memory."""

from collections.abc import Sequence

import typer

from adapters.cli.options import (
    JsonOption,
    ReferenceArgument,
    TokenFileOption,
    UrlOption,
    opened_server,
    print_json,
)


def load(
    reference: ReferenceArgument,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make resident on a running server what a reference means now, and wait until it is."""
    with opened_server(_needed(url), token_file) as server:
        from adapters.names import parse_reference

        labels = server.load(parse_reference(reference))
    _print("loaded", labels, as_json)


def unload(
    reference: ReferenceArgument,
    url: UrlOption = None,
    token_file: TokenFileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free it on a running server; the next call loads it again."""
    with opened_server(_needed(url), token_file) as server:
        from adapters.names import parse_reference

        labels = server.unload(parse_reference(reference))
    _print("unloaded", labels, as_json)


def _needed(url: str | None) -> str:
    if not url:
        said = "a store has nothing in memory: name a running server"
        raise typer.BadParameter(said, param_hint="--url")
    return url


def _print(what: str, labels: Sequence[str], as_json: bool) -> None:
    if as_json:
        print_json({what: labels})
    else:
        for label in labels:
            print(f"{what} {label}")
