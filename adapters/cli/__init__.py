"""The command line over a store: `lorry adapters ...`.

Prints tables for people and, with --json, one JSON document for scripts. What a command needs is
imported inside it, so that --help is quick. Acting on a running server instead (`--url`) belongs
in `options.opened`, through which every command comes to its catalog.
"""

from collections.abc import Callable

import typer

from adapters.cli import facts, publishing, rollout, upkeep

app = typer.Typer(
    name="adapters",
    help="Publish adapters to a store, roll them out and back, and see what is in it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "publish": publishing.publish,
    "list": facts.list_,
    "show": facts.show,
    "history": facts.history,
    "alias": rollout.alias,
    "unalias": rollout.unalias,
    "split": rollout.split,
    "rollback": rollout.rollback,
    "pin": rollout.pin,
    "unpin": rollout.unpin,
    "remove": rollout.remove,
    "verify": upkeep.verify,
    "gc": upkeep.gc,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
