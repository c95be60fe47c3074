"""The `lorry` command: one Typer app per package, imported only when it is asked for.

Kept this light on purpose: the engine process re-imports `__main__` when it is spawned, and
`lorry adapters list` must never pay for torch.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "serve": ("server.cli", "Serve one base model and its adapters over HTTP."),
    "adapters": ("adapters.cli", "Publish, list and verify adapters."),
    "train": ("training.cli", "Train an adapter from a recipe with QLoRA."),
    "loadtest": ("loadtest.cli", "Load-test a server, per adapter, with a verdict."),
}


class LazyGroup(TyperGroup):
    """Lists the commands by name and help alone; imports a package when its command runs."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command = typer.main.get_command(importlib.import_module(module).app)
        # A package with several top-level commands has a group; `adapters` itself is one.
        return getattr(command, "commands", {}).get(cmd_name, command)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_) for name, (_, help_) in COMMANDS.items()])


if "LORRY_PARENT_PID" in os.environ:
    # A process below a server, which imports this first of all. One that is killed while it
    # starts must leave no engine behind either, and vLLM loads plugins only some time later.
    from server.kernels import watchdog

    watchdog.arm()

app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def root() -> None:
    """One quantized base model, many LoRA adapters, one server that says which one answered."""


def main(arguments: Sequence[str] | None = None) -> None:
    app(args=list(arguments) if arguments is not None else None, prog_name="lorry")


if __name__ == "__main__":
    main()
