"""The command line over a store: `lorry adapters ...`.

Prints tables for people and, with --json, one JSON document for scripts. Commands import inside
their bodies what they need, so that --help is quick. With --url a command acts on a running server:
`options.Site.opened` returns that server's catalog, which has the same methods.
"""

from collections.abc import Callable

import typer

from adapters.cli import facts, inspecting, publishing, rollout, upkeep

app = typer.Typer(
    name="adapters",
    help="Publish adapters to a store or a running server, roll them out and back, list them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

COMMANDS: dict[str, Callable[..., None]] = {
    "publish": publishing.publish,
    "compose": publishing.compose,
    "inspect": inspecting.inspect,
    "watch": publishing.watch,
    "list": facts.list_,
    "show": facts.show,
    "history": facts.history,
    "alias": rollout.alias,
    "unalias": rollout.unalias,
    "split": rollout.split,
    "rollback": rollout.rollback,
    "pin": rollout.pin,
    "unpin": rollout.unpin,
    "weight": rollout.weight,
    "gate": rollout.gate,
    "remove": rollout.remove,
    "load": rollout.load,
    "unload": rollout.unload,
    "verify": upkeep.verify,
    "gc": upkeep.gc,
    "backup": upkeep.backup,
    "restore": upkeep.restore,
}
for name, command in COMMANDS.items():
    app.command(name)(command)
